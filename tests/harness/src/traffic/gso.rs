//! UDP as QUIC sends it: one system call, one packet through the stack, many datagrams
//! (`UDP_SEGMENT`, udp(7)).

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt::{RcvBufForce, UdpGroSegment},
};

use super::udp::bind;
use crate::{Error, Netns, Result, poll_until};

/// Receive buffer: several bursts, with the kernel's overhead for small packets.
const RECEIVE_BUFFER: usize = 32 << 20;
/// How long a burst may take before the next is sent without it.
const BURST_TIMEOUT: Duration = Duration::from_secs(2);

/// Bursts of datagrams, each burst one GSO packet.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `run`"]
pub struct GsoTransfer {
    segment: u16,
    segments: u16,
    bursts: u32,
    gro: bool,
}

/// What arrived of a [`GsoTransfer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GsoReport {
    /// Datagrams sent, each a segment.
    pub sent: u64,
    /// Datagrams that arrived whole, with the right content.
    pub received: u64,
    /// Datagrams that arrived with another length or content.
    pub damaged: u64,
}

impl GsoTransfer {
    /// 50 bursts of `segments` datagrams of `segment` bytes, 8 at least. The kernel allows up to 64
    /// segments and 65,507 bytes in a burst, and a segment must fit the path's MTU.
    pub fn new(segment: u16, segments: u16) -> Self {
        Self { segment: segment.max(8), segments, bursts: 50, gro: false }
    }

    /// Number of bursts.
    pub fn bursts(mut self, bursts: u32) -> Self {
        self.bursts = bursts;
        self
    }

    /// The receiver takes coalesced packets (`UDP_GRO`), as QUIC servers do.
    pub fn receive_coalesced(mut self) -> Self {
        self.gro = true;
        self
    }

    /// Sends from `client` to `server_address` in `server`. The sender waits for each burst, so
    /// that nothing is lost for want of room.
    pub fn run(&self, client: &Netns, server: &Netns, server_address: IpAddr) -> Result<GsoReport> {
        let receiver = bind(server, SocketAddr::new(server_address, 0))?;
        setsockopt(&receiver, RcvBufForce, &RECEIVE_BUFFER).map_err(Error::system("size socket"))?;
        setsockopt(&receiver, UdpGroSegment, &self.gro).map_err(Error::system("set UDP_GRO"))?;
        let target = receiver.local_addr().map_err(Error::system("read socket's address"))?;
        let any: IpAddr = match server_address {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let sender = bind(client, SocketAddr::new(any, 0))?;

        let counts = Arc::new(Counts::default());
        let reading = {
            let (counts, segment) = (Arc::clone(&counts), usize::from(self.segment));
            thread::spawn(move || counts.receive(&receiver, segment))
        };
        let sent = self.send(&sender, target, &counts);
        counts.stop.store(true, Ordering::Relaxed);
        reading.join().map_err(|_| Error::Traffic("the receiving thread panicked".to_owned()))?;
        Ok(GsoReport {
            sent: sent?,
            received: counts.received.load(Ordering::Relaxed),
            damaged: counts.damaged.load(Ordering::Relaxed),
        })
    }

    fn send(&self, sender: &std::net::UdpSocket, target: SocketAddr, counts: &Counts) -> Result<u64> {
        let mut sent = 0;
        for _ in 0..self.bursts {
            let burst: Vec<u8> = (0..u64::from(self.segments))
                .flat_map(|index| datagram(sent + index, self.segment.into()))
                .collect();
            sendmsg(
                sender.as_raw_fd(),
                &[IoSlice::new(&burst)],
                &[ControlMessage::UdpGsoSegments(&self.segment)],
                MsgFlags::empty(),
                Some(&SockaddrStorage::from(target)),
            )
            .map_err(Error::system(format!("send {} bytes in segments to {target}", burst.len())))?;
            sent += u64::from(self.segments);
            // What is missing then shows in the report.
            let _ = poll_until(BURST_TIMEOUT, || (counts.all() >= sent).then_some(()));
        }
        Ok(sent)
    }
}

impl GsoReport {
    /// The report itself when all arrived undamaged, else an error.
    pub fn all_arrived(self) -> Result<Self> {
        if self.received == self.sent && self.damaged == 0 {
            return Ok(self);
        }
        let Self { sent, received, damaged } = self;
        Err(Error::Traffic(format!(
            "{received} of {sent} datagrams of GSO packets arrived, {damaged} damaged ones"
        )))
    }
}

#[derive(Debug, Default)]
struct Counts {
    stop: AtomicBool,
    received: AtomicU64,
    damaged: AtomicU64,
}

impl Counts {
    fn all(&self) -> u64 {
        self.received.load(Ordering::Relaxed) + self.damaged.load(Ordering::Relaxed)
    }

    fn receive(&self, socket: &std::net::UdpSocket, segment: usize) {
        let mut buffer = vec![0; 1 << 16];
        while !self.stop.load(Ordering::Relaxed) {
            let Some((len, size)) = receive_one(socket, &mut buffer) else { continue };
            for piece in buffer[..len].chunks(size.unwrap_or(len).max(1)) {
                let counter = if is_intact(piece, segment) { &self.received } else { &self.damaged };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// One receive: bytes, and the size of the datagrams when the kernel coalesced several.
fn receive_one(socket: &std::net::UdpSocket, buffer: &mut [u8]) -> Option<(usize, Option<usize>)> {
    let mut space = nix::cmsg_space!(i32);
    let mut parts = [std::io::IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).ok()?;
    let size = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    Some((message.bytes, size))
}

/// Datagram `number`: its number, then bytes that depend on it.
fn datagram(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(len, number.to_le_bytes()[0]);
    bytes
}

fn is_intact(bytes: &[u8], len: usize) -> bool {
    bytes.first_chunk().is_some_and(|number| bytes == datagram(u64::from_be_bytes(*number), len))
}
