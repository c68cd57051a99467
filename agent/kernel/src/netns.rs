//! Network namespaces of containers.
//!
//! Nothing of ours stays in another namespace: the calling thread enters, opens what is to be
//! opened there, and returns at once. A thread of its own for each visit would cost two more
//! changes of threads on the way of every attach. A socket belongs to the namespace that it was
//! opened in, and can be used from everywhere.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use mesh_model::IfName;
use mesh_model::endpoint::NetnsRef;
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::KernelError;
use crate::links::{self, RawLink};
use crate::netlink::Netlink;

/// Runs a closure in a namespace.
///
/// The calling thread is back in its own when this returns or unwinds. A thread that cannot return
/// must not go on: whatever it did next would be done in a container.
pub(crate) fn inside<T>(namespace: &File, work: impl FnOnce() -> T) -> io::Result<T> {
    struct Return(File);

    impl Drop for Return {
        fn drop(&mut self) {
            if setns(&self.0, CloneFlags::CLONE_NEWNET).is_err() {
                std::process::abort();
            }
        }
    }

    let back = Return(File::open(OWN_THREAD)?);
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let result = work();
    drop(back);
    Ok(result)
}

/// The kernel's own number of the calling thread's namespace (`SO_NETNS_COOKIE`, Linux 5.14); 0
/// where it has none to tell.
#[expect(unsafe_code, reason = "nix has no wrapper for this socket option")]
fn own_cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the descriptor is open for the whole call, and the kernel writes at most `length`
    // bytes, which is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    match Errno::result(result) {
        Ok(_) => Ok(cookie),
        Err(Errno::ENOPROTOOPT) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the namespace is still the one at its path. With a device of ours still in it, it is
/// alive, and nobody else has its inode number; otherwise the cookie tells, for which it has to be
/// entered.
pub(crate) fn exists(netns: &NetnsRef, has_device: bool) -> bool {
    if has_device {
        std::fs::metadata(&netns.path).is_ok_and(|found| found.ino() == netns.inode)
    } else {
        open(netns).is_ok()
    }
}

/// Opens the namespace, if it is still the one at its path.
pub(crate) fn open(netns: &NetnsRef) -> Result<File, KernelError> {
    let gone = |source| KernelError::NamespaceGone { path: netns.path.clone(), source };
    let file = File::open(&netns.path).map_err(|source| gone(Some(source)))?;
    let inode = file.metadata().map_err(|source| gone(Some(source)))?.ino();
    if inode != netns.inode {
        return Err(gone(None));
    }
    let cookie = inside(&file, own_cookie).and_then(|cookie| cookie).map_err(|source| gone(Some(source)))?;
    if cookie == netns.cookie { Ok(file) } else { Err(gone(None)) }
}

/// Opens a netlink socket inside a namespace, after some further work there.
pub(crate) fn netlink(
    netns: &NetnsRef,
    namespace: &File,
    before: impl FnOnce(),
) -> Result<Netlink, KernelError> {
    let opened = inside(namespace, || {
        before();
        Netlink::open()
    });
    opened.and_then(|opened| opened).map_err(|source| {
        let action = format!("enter the network namespace {}", netns.path.display());
        match source.kind() {
            io::ErrorKind::PermissionDenied => KernelError::Permission { action, source },
            _ => KernelError::Netlink { action, source },
        }
    })
}

/// Where a process finds the namespace that it runs in, and a thread its own.
const OWN: &str = "/proc/self/ns/net";
const OWN_THREAD: &str = "/proc/thread-self/ns/net";

/// Names a container's namespace by its path, its inode and its cookie, and lists its devices, in
/// one visit.
///
/// Fails where there is nothing, something that is no network namespace, or the calling process's
/// own.
pub fn find(path: &Path) -> Result<(NetnsRef, BTreeSet<IfName>), KernelError> {
    // What is no namespace may be something that blocks whoever opens it.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => KernelError::NamespaceGone { path: path.to_owned(), source: Some(source) },
        _ => KernelError::NoNamespace { path: path.to_owned(), source },
    })?;
    let opened = inside(&file, || Ok((Netlink::open()?, own_cookie()?)));
    let opened = opened.and_then(|opened: io::Result<_>| Ok((opened?, file.metadata()?)));
    let ((mut netlink, cookie), metadata) = opened.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => KernelError::Permission {
            action: format!("enter the network namespace {}", path.display()),
            source,
        },
        _ => KernelError::NoNamespace { path: path.to_owned(), source },
    })?;
    let own = std::fs::metadata(OWN).is_ok_and(|own| same(&own, &metadata));
    if own {
        return Err(KernelError::OwnNamespace { path: path.to_owned() });
    }
    let names = names(&mut netlink, path)?;
    Ok((NetnsRef { path: path.to_owned(), inode: metadata.ino(), cookie }, names))
}

/// Whether both are the same file.
fn same(one: &std::fs::Metadata, other: &std::fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Opens a TCP socket inside a namespace, if it is still the one at its path: not connected, and
/// non-blocking.
pub fn tcp_socket(netns: &NetnsRef, ipv6: bool) -> Result<TcpStream, KernelError> {
    let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let namespace = open(netns)?;
    let opened = inside(&namespace, || socket(family, SockType::Stream, flags, SockProtocol::Tcp));
    opened.and_then(|opened| Ok(TcpStream::from(opened?))).map_err(|source| KernelError::Netlink {
        action: format!("open a socket in the network namespace {}", netns.path.display()),
        source,
    })
}

/// The names of the devices in a namespace.
fn names(netlink: &mut Netlink, path: &Path) -> Result<BTreeSet<IfName>, KernelError> {
    let listed = links::dump(netlink)
        .map_err(|error| error.during(format!("list the interfaces of {}", path.display())))?;
    Ok(listed.into_iter().filter_map(|RawLink { name, .. }| name.parse().ok()).collect())
}

/// The first free one of `eth0`, `eth1`, ...
///
/// ```
/// let taken = ["lo", "eth0"].map(|name| name.parse().unwrap()).into();
/// assert_eq!(mesh_kernel::netns::free_ifname(&taken).as_str(), "eth1");
/// ```
pub fn free_ifname(taken: &BTreeSet<IfName>) -> IfName {
    let mut names = (0u32..).filter_map(|number| format!("eth{number}").parse::<IfName>().ok());
    names.find(|name| !taken.contains(name)).expect("there are more names than a namespace has devices")
}
