//! Packets that no ordinary socket sends.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::udp::TICK;
use crate::{Error, Netns, Result};

/// Length of an IPv4 header without options.
const IPV4: usize = 20;
/// The flag that begins a connection.
const SYN: u8 = 2;
/// How many packets are sent before the receiver is given the CPU.
const BURST: u32 = 64;

/// Speaks SCTP over IPv4, also where the kernel has no such sockets: what it sends and receives
/// begins with the header.
#[derive(Debug)]
pub struct RawSocket {
    socket: UdpSocket,
}

impl RawSocket {
    /// Opens a socket in `netns` that receives all SCTP there.
    pub fn sctp(netns: &Netns) -> Result<Self> {
        Ok(Self { socket: open(netns, SockProtocol::Sctp)? })
    }

    /// Sends a packet.
    pub fn send(&self, packet: &[u8], target: Ipv4Addr) -> Result<()> {
        let sent = self.socket.send_to(packet, SocketAddr::new(target.into(), 0));
        sent.map(drop).map_err(Error::system(format!("send to {target}")))
    }

    /// The next packet, and who sent it; nothing when none comes within `timeout`.
    pub fn receive(&self, timeout: Duration) -> Result<Option<(Ipv4Addr, Vec<u8>)>> {
        let (begin, mut buffer) = (Instant::now(), [0; 2048]);
        while begin.elapsed() < timeout {
            match self.socket.recv_from(&mut buffer) {
                // A raw socket hands over the IP header too.
                Ok((length, SocketAddr::V4(sender))) if length >= IPV4 => {
                    return Ok(Some((*sender.ip(), buffer[IPV4..length].to_vec())));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(Error::system("receive SCTP")(error)),
            }
        }
        Ok(None)
    }
}

/// Sends and sees segments of a TCP connection beside the socket that has it.
#[derive(Debug)]
pub struct RawTcp {
    socket: UdpSocket,
    source: SocketAddr,
}

impl RawTcp {
    /// Sends from `source`, and sees what arrives there.
    pub fn open(netns: &Netns, source: SocketAddr) -> Result<Self> {
        let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        Ok(Self { socket: open_family(netns, family, SockProtocol::Tcp)?, source })
    }

    /// Sends a segment without payload.
    pub fn send(&self, target: SocketAddr, flags: u8, sequence: u32) -> Result<()> {
        let segment = segment(self.source, target, flags, sequence);
        let sent = self.socket.send_to(&segment, SocketAddr::new(target.ip(), 0));
        sent.map(drop).map_err(Error::system(format!("send to {target}")))
    }

    /// The next segment to `source`, whoever sent it, with its flags; nothing when none comes
    /// within `timeout`.
    pub fn receive(&self, timeout: Duration) -> Result<Option<(SocketAddr, u8)>> {
        let (begin, mut buffer) = (Instant::now(), [0; 2048]);
        while begin.elapsed() < timeout {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, sender)) => {
                    let start = if sender.is_ipv4() { IPV4 } else { 0 };
                    let Some([f0, f1, t0, t1, .., flags]) =
                        buffer.get(start..length).and_then(|segment| segment.first_chunk::<14>())
                    else {
                        continue;
                    };
                    if u16::from_be_bytes([*t0, *t1]) == self.source.port() {
                        let port = u16::from_be_bytes([*f0, *f1]);
                        return Ok(Some((SocketAddr::new(sender.ip(), port), *flags)));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(Error::system("receive TCP")(error)),
            }
        }
        Ok(None)
    }
}

/// Begins `count` TCP connections from `netns` that nobody goes on with, each from the source that
/// `source` says.
pub fn syn_flood(
    netns: &Netns,
    target: SocketAddrV4,
    count: u32,
    source: impl Fn(u32) -> SocketAddrV4,
) -> Result<()> {
    let socket = open(netns, SockProtocol::Raw)?;
    for number in 0..count {
        let sent = socket.send_to(&syn(source(number), target), SocketAddr::V4(target));
        sent.map_err(Error::system(format!("flood {target}")))?;
        if number % BURST == 0 {
            std::thread::yield_now();
        }
    }
    Ok(())
}

fn open(netns: &Netns, protocol: SockProtocol) -> Result<UdpSocket> {
    open_family(netns, AddressFamily::Inet, protocol)
}

pub(super) fn open_family(netns: &Netns, family: AddressFamily, protocol: SockProtocol) -> Result<UdpSocket> {
    let failed = || Error::system(format!("open a raw socket in {}", netns.name()));
    let raw = netns
        .enter(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol))?
        .map_err(|errno| failed()(errno.into()))?;
    // The same calls send and receive on it.
    let socket = UdpSocket::from(raw);
    socket.set_read_timeout(Some(TICK)).map_err(failed())?;
    Ok(socket)
}

/// An IPv4 packet with the first segment of a connection. The kernel fills in the IP header's
/// length and checksum.
fn syn(source: SocketAddrV4, target: SocketAddrV4) -> Vec<u8> {
    let (from, to) = (source.ip().octets(), target.ip().octets());
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(from);
    packet.extend(to);
    packet.extend(segment(source.into(), target.into(), SYN, 1));
    packet
}

/// A TCP segment without payload.
fn segment(source: SocketAddr, target: SocketAddr, flags: u8, sequence: u32) -> Vec<u8> {
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut segment = [source.port().to_be_bytes(), target.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&octets(source)[..], &octets(target), &[0, 6, 0, 20], &segment].concat();
    let mut sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum += sum >> 16;
    let [.., high, low] = (!sum).to_be_bytes();
    segment[16..18].copy_from_slice(&[high, low]);
    segment
}
