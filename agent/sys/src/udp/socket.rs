//! The socket, and sending a single datagram.

use std::{
    io, mem,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::AtomicBool,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket,
        sockopt::{Ipv6V6Only, Mark, RcvBuf, RcvBufForce, ReusePort, SndBuf, SndBufForce, UdpGroSegment},
    },
};

use super::address::encode;

/// What the kernel may hold for us, so that a burst does not drown while we encrypt.
const SOCKET_BUFFER: usize = 8 << 20;
/// 8-byte words of room for control messages.
pub(super) const CONTROL: usize = 8;

/// A control area, aligned as control messages must be.
pub(super) type Control = [u64; CONTROL];

/// The socket.
#[derive(Debug)]
pub struct UdpSocket {
    pub(super) fd: OwnedFd,
    pub(super) v6: bool,
    /// Whether UDP GSO works; found out by sending.
    pub(super) gso: AtomicBool,
}

impl UdpSocket {
    /// Binds `port` on all addresses of both families (of IPv4 alone where the kernel has no IPv6),
    /// in the calling thread's network namespace. `shared`: other sockets of this process are to
    /// have the same port. `mark`: the firewall mark of what it sends.
    pub fn bind(port: u16, shared: bool, mark: u32) -> io::Result<Self> {
        let open = |family| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        let (fd, v6) = match open(AddressFamily::Inet6) {
            Ok(fd) => (fd, true),
            Err(Errno::EAFNOSUPPORT) => (open(AddressFamily::Inet)?, false),
            Err(errno) => return Err(errno.into()),
        };
        if shared {
            setsockopt(&fd, ReusePort, &true)?;
        }
        if v6 {
            setsockopt(&fd, Ipv6V6Only, &false)?;
            bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)))?;
        } else {
            bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
        }
        // The forced form needs CAP_NET_ADMIN over the first namespace; the other is capped by a
        // sysctl.
        if setsockopt(&fd, RcvBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&fd, RcvBuf, &SOCKET_BUFFER)?;
        }
        if setsockopt(&fd, SndBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&fd, SndBuf, &SOCKET_BUFFER)?;
        }
        // Without GRO (before 5.0) datagrams come one by one.
        let _ = setsockopt(&fd, UdpGroSegment, &true);
        let socket = Self { fd, v6, gso: AtomicBool::new(true) };
        socket.allow_fragments()?;
        socket.mark(mark)?;
        Ok(socket)
    }

    /// Takes over a socket that another process bound, and marks what it sends: an earlier version
    /// may not have done so.
    pub fn from_fd(fd: OwnedFd, mark: u32) -> io::Result<Self> {
        let address: nix::sys::socket::SockaddrStorage = nix::sys::socket::getsockname(fd.as_raw_fd())?;
        let socket = Self { fd, v6: address.as_sockaddr_in6().is_some(), gso: AtomicBool::new(true) };
        socket.mark(mark)?;
        Ok(socket)
    }

    /// Marks what it sends. Without the privilege for it, what it sends stays unmarked.
    fn mark(&self, mark: u32) -> io::Result<()> {
        match setsockopt(&self.fd, Mark, &mark) {
            Ok(()) | Err(Errno::EPERM) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Another handle of the same socket.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Clears "don't fragment" on IPv4, as the kernel's WireGuard does: a path whose MTU is less
    /// than that of the first hop then costs speed, not the connection.
    fn allow_fragments(&self) -> io::Result<()> {
        let value = libc::IP_PMTUDISC_DONT;
        let size = libc::socklen_t::try_from(mem::size_of_val(&value)).unwrap_or_default();
        // SAFETY: the kernel reads `size` bytes of an `int` that lives past the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                (&raw const value).cast(),
                size,
            )
        };
        Errno::result(result)?;
        Ok(())
    }

    /// Sends one datagram.
    pub fn send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        let (address, len) = encode(to, self.v6);
        // SAFETY: buffer and address live past the call, with the sizes given.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                datagram.as_ptr().cast(),
                datagram.len(),
                libc::MSG_NOSIGNAL,
                (&raw const address).cast(),
                len,
            )
        };
        Errno::result(sent)?;
        Ok(())
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
