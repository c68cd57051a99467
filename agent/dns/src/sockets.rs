//! The sockets that a network is served on.

use std::{
    ffi::OsString,
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen, setsockopt,
    socket, sockopt,
};

/// TCP connections that the kernel keeps until they are accepted, e.g. while no process serves the
/// socket.
const BACKLOG: i32 = 256;

/// One address to be served, over UDP and TCP.
#[derive(Debug)]
pub struct Sockets {
    /// For datagrams.
    pub udp: UdpSocket,
    /// For connections.
    pub tcp: TcpListener,
}

impl Sockets {
    /// Binds both in the calling thread's network namespace. The address need not be there yet
    /// (`IP_FREEBIND`).
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::open(address, None)
    }

    /// The same for what comes by one device only (`SO_BINDTODEVICE`), which has to be there:
    /// whoever else reaches the address by another way gets no answer.
    pub fn bind_on(address: SocketAddr, device: &str) -> io::Result<Self> {
        Self::open(address, Some(device))
    }

    fn open(address: SocketAddr, device: Option<&str>) -> io::Result<Self> {
        let open = |kind, protocol| -> nix::Result<_> {
            let (family, sockaddr) = match address {
                SocketAddr::V4(v4) => (AddressFamily::Inet, SockaddrStorage::from(v4)),
                SocketAddr::V6(v6) => (AddressFamily::Inet6, SockaddrStorage::from(v6)),
            };
            let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)?;
            // The IPv4 option at level IP is what IPv6 sockets go by, too.
            setsockopt(&socket, sockopt::IpFreebind, &true)?;
            if address.is_ipv6() {
                setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            }
            if kind == SockType::Stream {
                setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            }
            if let Some(device) = device {
                setsockopt(&socket, sockopt::BindToDevice, &OsString::from(device))?;
            }
            bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &sockaddr)?;
            Ok(socket)
        };
        let udp = open(SockType::Datagram, SockProtocol::Udp)?;
        let tcp = open(SockType::Stream, SockProtocol::Tcp)?;
        listen(&tcp, Backlog::new(BACKLOG)?)?;
        Ok(Self { udp: udp.into(), tcp: tcp.into() })
    }
}
