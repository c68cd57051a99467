//! Named network namespaces under /run/netns.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

use crate::{Cmd, Error, Output, ProcessId, Result, ip_batch};

/// Where iproute2 keeps named namespaces.
const NETNS_DIR: &str = "/run/netns";

/// Handle of a named network namespace. It owns nothing; see [`OwnedNetns`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Handle of the namespace called `name`, whether it exists or not.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, e.g. `/run/netns/ml-h1`.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Runs `body` on a thread inside the namespace and hands back its result. Sockets that it
    /// makes stay in the namespace wherever they are used later, and so do processes that it
    /// starts.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.open()?;
        thread::scope(|scope| {
            let inside =
                scope.spawn(move || {
                    setns(&namespace, CloneFlags::CLONE_NEWNET).map(|()| body()).map_err(|errno| {
                        Error::File { action: "enter", path: self.path(), source: errno.into() }
                    })
                });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into the namespace for good.
    pub fn enter_for_good(&self) -> Result<()> {
        setns(self.open()?, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::File {
            action: "enter",
            path: self.path(),
            source: errno.into(),
        })
    }

    /// A command line to be run inside.
    pub fn cmd<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Cmd {
        Cmd::new(argv).netns(self)
    }

    /// Runs a command line inside and waits for it.
    pub fn run<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output> {
        self.cmd(argv).output()
    }

    /// Sets a sysctl inside, e.g. `("net.ipv4.ip_forward", "1")`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        self.enter(|| std::fs::write(&path, value))?.map_err(Error::file("write", &path))
    }

    /// One of the kernel's counters of TCP in this namespace, e.g. `TCPSynRetrans`
    /// (`/proc/net/netstat`).
    pub fn tcp_counter(&self, name: &str) -> Result<u64> {
        // Another thread's namespace is not the process's.
        let path = Path::new("/proc/thread-self/net/netstat");
        let text = self.enter(|| fs::read_to_string(path))?.map_err(Error::file("read", path))?;
        let mut words =
            text.lines().filter_map(|line| line.strip_prefix("TcpExt: ")).map(str::split_whitespace);
        let (names, values) = (words.next().into_iter().flatten(), words.next().into_iter().flatten());
        let found =
            names.zip(values).find(|(known, _)| *known == name).and_then(|(_, value)| value.parse().ok());
        found.ok_or_else(|| Error::Traffic(format!("the kernel does not count {name}")))
    }

    /// Processes whose namespace this is; a process that has merely a thread in it is not one of
    /// them.
    pub fn processes(&self) -> Vec<ProcessId> {
        let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        let Some(wanted) = identity(&self.path()) else {
            return Vec::new();
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter_map(ProcessId::of)
            .filter(|process| identity(Path::new(&format!("/proc/{}/ns/net", process.pid))) == Some(wanted))
            .collect()
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).map_err(Error::file("open", self.path()))
    }
}

/// A namespace that exists as long as this value.
#[derive(Debug)]
pub struct OwnedNetns {
    netns: Netns,
}

impl OwnedNetns {
    /// Makes the namespace, with its loopback device up. A taken name is an error.
    pub fn create(name: impl Into<String>) -> Result<Self> {
        let netns = Netns::named(name);
        create_all([&netns])?;
        Ok(Self { netns })
    }
}

impl std::ops::Deref for OwnedNetns {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for OwnedNetns {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.netns) {
            eprintln!("clean-up: {error}");
        }
    }
}

/// Makes namespaces with their loopback devices up.
pub(crate) fn create_all<'a>(namespaces: impl IntoIterator<Item = &'a Netns>) -> Result<()> {
    let names: Vec<&str> = namespaces.into_iter().map(Netns::name).collect();
    let add: Vec<String> = names.iter().map(|name| format!("netns add {name}")).collect();
    ip_batch(&add)?;
    for name in names {
        crate::ip_batch_in(&Netns::named(name), &["link set lo up"])?;
    }
    Ok(())
}

/// Removes the namespace's name; the kernel removes the rest once nothing is inside. One that is
/// absent is fine.
pub(crate) fn delete(netns: &Netns) -> Result<()> {
    let path = netns.path();
    match nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH) {
        // EINVAL: a plain file, left by a creation that did not get as far as the mount.
        Ok(()) | Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EINVAL) => {}
        Err(errno) => return Err(Error::File { action: "unmount", path, source: errno.into() }),
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::File { action: "remove", path, source: error })
        }
        _ => Ok(()),
    }
}
