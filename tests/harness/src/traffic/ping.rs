//! ICMP echo. Not the system's ping, which gives up on the last requests too early: as soon as one
//! reply has come, it waits for the others no longer than twice the longest round trip or one
//! interval, whatever it was told, and a reply that a busy machine gives later is lost to it.

use std::{
    fmt::Write as _,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    process,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, ipproto, socket_with,
    sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover},
};

use crate::{Error, Netns, Result};

/// Bytes before an echo's data: type, code, checksum, identifier, sequence number (RFC 792, RFC
/// 4443).
const HEADER: usize = 8;
/// Largest IP packet.
const MAX_PACKET: usize = 65_535;

/// A ping to be run.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `run`"]
pub struct Ping {
    address: IpAddr,
    count: u16,
    interval: Duration,
    wait: Duration,
    size: u16,
    dont_fragment: bool,
}

/// What came of a ping.
#[derive(Debug, Clone)]
pub struct PingReport {
    /// Requests sent, or refused by the sender's own system.
    pub sent: u32,
    /// Replies received.
    pub received: u32,
    /// What became of each request, and the round-trip times, to be read.
    pub output: String,
}

impl Ping {
    /// Three requests with 56 bytes of data, 50 ms apart, the last given 2 s.
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            count: 3,
            interval: Duration::from_millis(50),
            wait: Duration::from_secs(2),
            size: 56,
            dont_fragment: false,
        }
    }

    /// Number of requests.
    pub fn count(mut self, count: u16) -> Self {
        self.count = count;
        self
    }

    /// Time between two requests.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Time to wait for replies after the last request.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Bytes of data after the 8 of the ICMP header.
    pub fn size(mut self, bytes: u16) -> Self {
        self.size = bytes;
        self
    }

    /// Forbids fragments, here and on the way.
    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// Runs it from `netns`. Missing replies are not an error here; see
    /// [`PingReport::all_answered`].
    pub fn run(&self, netns: &Netns) -> Result<PingReport> {
        let socket = netns.enter(|| self.socket())?.map_err(Error::system(format!(
            "ping {} from {}",
            self.address,
            netns.name()
        )))?;
        Exchange::new(self, socket).run().map_err(Error::system(format!("ping {}", self.address)))
    }

    fn socket(&self) -> io::Result<UdpSocket> {
        let (family, protocol) = match self.address {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        if self.dont_fragment {
            match self.address {
                IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?,
                IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?,
            }
        }
        // A connected one, for which it does not matter that the protocol is another.
        let socket = UdpSocket::from(socket);
        socket.connect(SocketAddr::new(self.address, 0))?;
        Ok(socket)
    }
}

/// A ping that runs.
struct Exchange<'p> {
    ping: &'p Ping,
    socket: UdpSocket,
    identifier: u16,
    requests: Vec<Request>,
}

/// What became of a request.
struct Request {
    at: Instant,
    round_trip: Option<Duration>,
    /// Whether it was not even sent.
    refused: bool,
    error: Option<io::Error>,
}

impl<'p> Exchange<'p> {
    fn new(ping: &'p Ping, socket: UdpSocket) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Other processes and threads may ping in the same namespace, where each socket hears all.
        let [low, high, ..] = process::id().to_le_bytes();
        let identifier = u16::from_le_bytes([low, high]).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        Self { ping, socket, identifier, requests: Vec::new() }
    }

    fn run(mut self) -> io::Result<PingReport> {
        for sequence in 1..=self.ping.count {
            let at = Instant::now();
            let request = self.message(sequence);
            // What comes of an earlier request is told once, by whichever call is next.
            let result = self.socket.send(&request).or_else(|_| self.socket.send(&request));
            self.requests.push(Request {
                at,
                round_trip: None,
                refused: result.is_err(),
                error: result.err(),
            });
            if sequence < self.ping.count {
                self.receive(at + self.ping.interval, |_| false)?;
            } else {
                self.receive(at + self.ping.wait, Self::is_complete)?;
            }
        }
        Ok(self.report())
    }

    /// An echo request.
    fn message(&self, sequence: u16) -> Vec<u8> {
        let kind = if self.ping.address.is_ipv4() { 8 } else { 128 };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.identifier.to_be_bytes());
        message.extend(sequence.to_be_bytes());
        message.extend(data(self.ping.size));
        if self.ping.address.is_ipv4() {
            // For IPv6 the kernel does it.
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        message
    }

    /// Takes replies until the given time, or until `enough` says so.
    fn receive(&mut self, until: Instant, enough: impl Fn(&Self) -> bool) -> io::Result<()> {
        let mut buffer = vec![0; MAX_PACKET];
        while !enough(self) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut buffer) {
                Ok(len) => {
                    let now = Instant::now();
                    if let Some(request) =
                        self.answered(&buffer[..len]).and_then(|sequence| self.requests.get_mut(sequence))
                    {
                        request.round_trip.get_or_insert(now - request.at);
                    }
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // An ICMP error, which does not say whose.
                Err(error) => {
                    if let Some(request) = self.requests.last_mut() {
                        request.error.get_or_insert(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Which request a received packet answers, counted from 0.
    fn answered(&self, packet: &[u8]) -> Option<usize> {
        let (message, kind) = match self.ping.address {
            IpAddr::V4(_) => (packet.get(usize::from(packet.first()? & 0x0F) * 4..)?, 0),
            IpAddr::V6(_) => (packet, 129),
        };
        let (header, content) = message.split_first_chunk::<HEADER>()?;
        let [own_kind, 0, _, _, i0, i1, s0, s1] = *header else { return None };
        let ours = own_kind == kind
            && u16::from_be_bytes([i0, i1]) == self.identifier
            && content.iter().copied().eq(data(self.ping.size));
        if ours { usize::from(u16::from_be_bytes([s0, s1])).checked_sub(1) } else { None }
    }

    fn is_complete(&self) -> bool {
        // An error that arrived does not end a request: it may be another's.
        self.requests.iter().all(|request| request.round_trip.is_some() || request.refused)
    }

    fn report(self) -> PingReport {
        let mut output = String::new();
        let mut times = Vec::new();
        for (request, number) in self.requests.iter().zip(1..) {
            // Writing to a string cannot fail.
            let _ = match (request.round_trip, &request.error) {
                (Some(time), _) => writeln!(output, "{number}: answered after {}", milliseconds(time)),
                (None, Some(error)) => writeln!(output, "{number}: {error}"),
                (None, None) => writeln!(output, "{number}: no answer"),
            };
            times.extend(request.round_trip);
        }
        let received = u32::try_from(times.len()).unwrap_or(u32::MAX);
        if let (Some(least), Some(most)) = (times.iter().min(), times.iter().max()) {
            let mean = times.iter().sum::<Duration>() / received;
            let [least, mean, most] = [*least, mean, *most].map(milliseconds);
            let _ = writeln!(output, "rtt min/avg/max {least}/{mean}/{most}");
        }
        PingReport { sent: self.ping.count.into(), received, output }
    }
}

impl PingReport {
    /// The report itself when every request was answered, else an error.
    pub fn all_answered(self) -> Result<Self> {
        self.check(|report| report.received == report.sent)
    }

    /// The report itself when no request was answered, else an error.
    pub fn none_answered(self) -> Result<Self> {
        self.check(|report| report.received == 0)
    }

    fn check(self, holds: impl FnOnce(&Self) -> bool) -> Result<Self> {
        if holds(&self) {
            return Ok(self);
        }
        Err(Error::Traffic(format!("{} of {} pings answered:\n{}", self.received, self.sent, self.output)))
    }
}

/// What requests carry and replies must bring back.
fn data(size: u16) -> impl Iterator<Item = u8> {
    (0..=u8::MAX).cycle().take(size.into())
}

/// The Internet's checksum (RFC 1071).
fn checksum(message: &[u8]) -> u16 {
    let words =
        message.chunks(2).map(|word| u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = words.map(u32::from).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    // It is below 65536 now.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
