//! Network namespaces of containers: which ones, and what is in them.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use mesh_model::IfName;
use mesh_model::endpoint::NetnsRef;
use mesh_sys::netlink::Netlink;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::KernelError;
use crate::links::{self, RawLink};
use crate::namespace::{inside, open, own_cookie};
use crate::netlink::{self, During as _};

/// The namespace that this process runs in.
const OWN: &str = "/proc/self/ns/net";

/// Names a container's namespace by its path, its inode and its cookie, and lists its devices, in
/// one visit.
///
/// Fails where there is nothing, something that is no network namespace, or the calling process's
/// own.
pub fn find(path: &Path) -> Result<(NetnsRef, BTreeSet<IfName>), KernelError> {
    // The path may lead to something else whose open would block, such as a FIFO.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => KernelError::NamespaceGone { path: path.to_owned(), source: Some(source) },
        _ => KernelError::NoNamespace { path: path.to_owned(), source },
    })?;
    let opened = inside(&file, || Ok((netlink::open()?, own_cookie()?)));
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
