//! What happens to the host's network, as it happens.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::proto::Connection;

use crate::KernelError;

/// Devices, filters, addresses and routes of both families.
const ROUTE_GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];
/// The multicast group of nftables' changes.
const NFTABLES_GROUP: u32 = 7;
/// Enough for hundreds of changes at once. When it overflows, that is an event too.
const SOCKET_BUFFER: u32 = 1 << 20;

/// What has changed. What exactly is found by looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A device, filter, address or route: see [`crate::Depth::Quick`].
    Network,
    /// The firewall: see [`crate::Depth::Full`].
    Firewall,
}

/// The events of a network namespace, from the moment of subscription on.
pub struct Events {
    /// Only its socket is read: what a message says does not matter, and one that the packet
    /// library cannot parse must be an event, too.
    route: Connection<RouteNetlinkMessage>,
    /// `None` where the kernel has no nftables.
    nftables: Option<TokioSocket>,
}

impl Events {
    /// Subscribes in the calling thread's namespace. Must be called within a tokio runtime.
    pub fn subscribe() -> Result<Self, KernelError> {
        let failed =
            |source| KernelError::Netlink { action: "subscribe to the kernel's events".to_owned(), source };
        let (mut route, ..) = rtnetlink::new_multicast_connection(&ROUTE_GROUPS).map_err(failed)?;
        route.socket_mut().socket_ref().set_rx_buf_sz(SOCKET_BUFFER).map_err(failed)?;
        let nftables = nftables_socket().ok();
        Ok(Self { route, nftables })
    }

    /// Waits for the next event. Several of one kind that came together are one. May be dropped at
    /// any time.
    pub async fn next(&mut self) -> Result<Event, KernelError> {
        let (received, event) = match &mut self.nftables {
            Some(nftables) => tokio::select! {
                received = drain(self.route.socket_mut()) => (received, Event::Network),
                received = drain(nftables) => (received, Event::Firewall),
            },
            None => (drain(self.route.socket_mut()).await, Event::Network),
        };
        received.map_err(|source| KernelError::Netlink {
            action: "wait for the kernel's events".to_owned(),
            source,
        })?;
        Ok(event)
    }
}

fn nftables_socket() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_ref().set_rx_buf_sz(SOCKET_BUFFER)?;
    socket.socket_mut().add_membership(NFTABLES_GROUP)?;
    Ok(socket)
}

/// Waits for a message and takes all that are there. Their content does not matter.
async fn drain(socket: &mut TokioSocket) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    let first = socket.recv(&mut buffer).await;
    loop {
        buffer.clear();
        match socket.socket_ref().recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // More happened than there was room for: what exactly is lost, that it happened is not.
            Err(error) if is_overrun(&error) => {}
            Err(error) => return Err(error),
        }
    }
    match first {
        Err(error) if !is_overrun(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether the kernel dropped messages.
fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}
