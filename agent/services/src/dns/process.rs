//! The name server process. It outlives the agent, like the datapath, and has no privileges.
//!
//! It runs as `nobody`, without capabilities, and can gain none. The agent sends it sockets on
//! gateway addresses as descriptors, and names as changes. It ends with `cluster leave`, when a
//! newer one replaces it, and when its own socket is removed while no agent is connected.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use mesh_dns::{DnsServer, Sockets, Zones};
use mesh_ebpf_types::NAME_SERVER_GROUP;
use mesh_sys::confine::confine;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use parking_lot::Mutex;
use rustix::net::sockopt::socket_peercred;
use tokio::sync::watch;

use super::wire::{Answer, Program, Request, receive, send, strange};

/// The command of `meshd` that runs the process: `meshd dns-server RUN_DIR RESOLV_CONF`.
pub const COMMAND: &str = "dns-server";

/// Name of the process' socket in the run directory.
pub(super) const SOCKET: &str = "dns.sock";
/// Interval between checks whether the socket's file exists.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a replaced process continues: as long as an answer from outside may take.
const RETIREMENT: Duration = Duration::from_secs(10);
/// `nobody`, which by convention owns no files.
const NOBODY: u32 = 65534;

/// Runs the process until it is replaced or ended.
pub fn main(run_dir: &Path, resolv_conf: &Path) -> ExitCode {
    match run(run_dir, resolv_conf) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the name server cannot run: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(run_dir: &Path, resolv_conf: &Path) -> io::Result<()> {
    // Start a session, to outlive the parent. EPERM: the process already leads one.
    let _ = rustix::process::setsid();
    let program = Program::own(resolv_conf)?;
    let owner = nix::unistd::geteuid().as_raw();
    let path = run_dir.join(SOCKET);
    // The parent found no process there, or wants to replace it.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    let itself = std::fs::OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(&path)?;
    // Each forwarded query holds sockets.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let names = watch::Sender::new(Zones::default());
    // Read the file of the resolvers once while the process may read any file.
    let server = DnsServer::new(names.subscribe(), resolv_conf);
    if owner == 0 {
        drop_rights()?;
    }
    if let Err(error) = confine() {
        // The kernel does not support such filters. The process still has no privileges.
        eprintln!("warning: the name server runs without a filter of system calls: {error}");
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let process = Arc::new(Process {
        runtime: runtime.handle().clone(),
        names,
        server,
        served: Mutex::default(),
        program,
        agents: AtomicUsize::new(0),
        end: watch::Sender::new(false),
    });
    let accepting = Arc::clone(&process);
    thread::Builder::new().name("agents".to_owned()).spawn(move || accept(&accepting, &listener, owner))?;
    let mut end = process.end.subscribe();
    runtime.block_on(async {
        loop {
            tokio::select! {
                _ = end.wait_for(|end| *end) => return,
                () = tokio::time::sleep(CHECK_INTERVAL) => {
                    let is_there = itself.metadata().is_ok_and(|file| file.nlink() > 0);
                    if !is_there && process.agents.load(Ordering::Relaxed) == 0 {
                        return;
                    }
                }
            }
        }
    });
    Ok(())
}

/// Drops all privileges, so that code that parses untrusted bytes cannot change anything.
fn drop_rights() -> io::Result<()> {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NAME_SERVER_GROUP));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    // This drops all capabilities too (capabilities(7)).
    setresuid(user, user, user)?;
    prctl::set_no_new_privs()?;
    Ok(())
}

struct Process {
    runtime: tokio::runtime::Handle,
    names: watch::Sender<Zones>,
    server: DnsServer,
    /// Copies of the served sockets.
    served: Mutex<BTreeMap<(String, IpAddr), Sockets>>,
    program: Program,
    agents: AtomicUsize,
    end: watch::Sender<bool>,
}

fn accept(process: &Arc<Process>, listener: &UnixListener, owner: u32) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            thread::sleep(CHECK_INTERVAL);
            continue;
        };
        if !socket_peercred(&stream).is_ok_and(|peer| peer.uid.as_raw() == owner) {
            continue;
        }
        let (process, counted) = (Arc::clone(process), process);
        process.agents.fetch_add(1, Ordering::Relaxed);
        let talk = move || {
            // If an agent is killed in the middle of a message, its connection ends too.
            let _ = process.converse(&stream);
            process.agents.fetch_sub(1, Ordering::Relaxed);
        };
        if thread::Builder::new().name("agent".to_owned()).stack_size(256 << 10).spawn(talk).is_err() {
            counted.agents.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Process {
    fn converse(&self, stream: &UnixStream) -> io::Result<()> {
        while let Some((request, sockets)) = receive(stream)? {
            let answer = match self.answer(stream, request, sockets) {
                Ok(answer) => answer,
                Err(error) => Answer::Failed(error.to_string()),
            };
            send(stream, &answer, None)?;
        }
        Ok(())
    }

    fn answer(&self, stream: &UnixStream, request: Request, sockets: Option<Sockets>) -> io::Result<Answer> {
        match request {
            Request::Hello => {
                let served = self.served().keys().cloned().collect();
                return Ok(Answer::Hello { program: self.program.clone(), served });
            }
            Request::Zones { change, from_nothing } => {
                let before = if from_nothing { Zones::default() } else { self.names.borrow().clone() };
                let now = change.apply(&before)?;
                self.names.send_replace(now);
            }
            Request::Serve { network } => self.serve(network, sockets.ok_or_else(strange)?)?,
            Request::Stop { network } => self.stop(&network),
            Request::Give => {
                for ((network, _), sockets) in &*self.served() {
                    send(stream, &Answer::Sockets { network: network.clone() }, Some(sockets))?;
                }
            }
            Request::Status => {
                let status = self.server.status().into_iter();
                return Ok(Answer::Status(status.map(|(name, status)| (name, status.into())).collect()));
            }
            Request::Retire => {
                self.served().clear();
                self.server.retire();
                let end = self.end.clone();
                self.runtime.spawn(async move {
                    tokio::time::sleep(RETIREMENT).await;
                    end.send_replace(true);
                });
            }
            Request::End => {
                send(stream, &Answer::Done, None)?;
                self.end.send_replace(true);
            }
        }
        Ok(Answer::Done)
    }

    fn serve(&self, network: String, sockets: Sockets) -> io::Result<()> {
        let address = sockets.udp.local_addr()?.ip();
        let copy = Sockets { udp: sockets.udp.try_clone()?, tcp: sockets.tcp.try_clone()? };
        let _guard = self.runtime.enter();
        self.server.serve(&network, copy)?;
        self.served().insert((network, address), sockets);
        Ok(())
    }

    fn stop(&self, network: &str) {
        self.served().retain(|(name, _), _| name != network);
        self.runtime.block_on(self.server.stop(network));
    }

    fn served(&self) -> parking_lot::MutexGuard<'_, BTreeMap<(String, IpAddr), Sockets>> {
        // Each change is complete when the lock is released.
        self.served.lock()
    }
}
