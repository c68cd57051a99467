//! Published ports and the host's own: whether a socket of the host has one, and keeping the host from choosing
//! one for its outgoing connections.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use mesh_model::{Protocol, PublishedPort};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::agent::Agent;

/// Whether a socket of the calling thread's network namespace listens on a published port, on the address that it is
/// published on or else on one of `addresses`, the host's own.
///
/// A trial socket is bound and closed: for TCP with `SO_REUSEADDR`, so that ended connections are in nobody's
/// way; for UDP without. A protocol that the kernel does not have has no sockets.
pub fn is_taken(port: &PublishedPort, addresses: &BTreeSet<IpAddr>) -> bool {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let addresses: Vec<IpAddr> = match port.host_ip {
        Some(address) => vec![address],
        // One by one and not the unspecified address: the mesh's own name server has port 53 on others.
        None => addresses.iter().copied().chain([loopback]).collect(),
    };
    let taken = |address: IpAddr| {
        let tried = try_bind(port.protocol, SocketAddr::new(address, port.published));
        matches!(tried, Err(Errno::EADDRINUSE))
    };
    addresses.into_iter().any(taken)
}

fn try_bind(protocol: Protocol, address: SocketAddr) -> nix::Result<()> {
    let (kind, protocol) = match protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        Protocol::Sctp => (SockType::Stream, SockProtocol::Sctp),
    };
    let (family, address) = match address {
        SocketAddr::V4(v4) => (AddressFamily::Inet, SockaddrStorage::from(v4)),
        SocketAddr::V6(v6) => (AddressFamily::Inet6, SockaddrStorage::from(v6)),
    };
    let trial = socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    if kind == SockType::Stream {
        setsockopt(&trial, sockopt::ReuseAddr, &true)?;
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&trial), &address)
}

/// `net.ipv4.ip_local_reserved_ports` of the process's network namespace, for IPv6 too: ports that the kernel does not
/// choose by itself.
pub const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The published ports, reserved: the answers to an outgoing connection of the host from such a port would be taken
/// for requests to the service.
#[derive(Debug)]
pub struct Reservation {
    sysctl: PathBuf,
    record: PathBuf,
    /// The ports that were not reserved before we did it.
    ours: BTreeSet<u16>,
}

/// What is on the disk of it: so that an agent that was killed gives back what it took, and nothing else.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    ports: BTreeSet<u16>,
}

impl Reservation {
    /// Takes up what a former agent reserved in `sysctl` ([`RESERVED_PORTS`]), by the record that it left in `record`.
    pub fn open(sysctl: PathBuf, record: PathBuf) -> Self {
        let ours = fs::read(&record).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        Self { sysctl, record, ours: ours.unwrap_or_default().ports }
    }

    /// Reserves these ports, and gives back those that we reserved and that are not among them.
    pub fn set(&mut self, ports: &BTreeSet<u16>) -> io::Result<()> {
        let there = parse(&fs::read_to_string(&self.sysctl)?);
        let foreign: BTreeSet<u16> = there.difference(&self.ours).copied().collect();
        let wanted: BTreeSet<u16> = foreign.union(ports).copied().collect();
        let ours: BTreeSet<u16> = ports.difference(&foreign).copied().collect();
        if ours != self.ours {
            // The record first, and of both: what is ours must not look like somebody else's after a kill.
            let both = Record { ports: ours.union(&self.ours).copied().collect() };
            fs::write(&self.record, serde_json::to_vec(&both)?)?;
        }
        if wanted != there {
            fs::write(&self.sysctl, print(&wanted))?;
        }
        if ours != self.ours {
            fs::write(&self.record, serde_json::to_vec(&Record { ports: ours.clone() })?)?;
            self.ours = ours;
        }
        Ok(())
    }
}

/// Keeps the published ports reserved, and what leaves masqueraded off them, for ever.
pub async fn reserve(agent: Arc<Agent>, mut reservation: Reservation) {
    let mut changes = agent.service_changes();
    let mut said = String::new();
    let mut avoided = BTreeSet::new();
    loop {
        changes.mark_unchanged();
        let ports = agent.read(|state| state.view.services.published_ports());
        let masqueraded =
            ports.iter().copied().filter(|port| mesh_planner::may_be_masqueraded(*port)).collect();
        if avoided != masqueraded {
            avoided = masqueraded;
            agent.look_again();
        }
        if let Err(error) = reservation.set(&ports)
            && std::mem::replace(&mut said, error.to_string()) != said
        {
            tracing::warn!(%error, "published ports are not kept out of the host's own choice of ports");
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Reads the sysctl's form: `1,2,10-20`.
fn parse(text: &str) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            ports.extend(first..=last);
        }
    }
    ports
}

/// Writes it. An empty line clears it: the kernel takes no empty write.
fn print(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*port) => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    let range = |(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    let ranges: Vec<String> = ranges.iter().map(range).collect();
    format!("{}\n", ranges.join(","))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn port(published: u16, protocol: Protocol, host_ip: Option<&str>) -> PublishedPort {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PublishedPort { host_ip, ..PublishedPort::ingress(published, 80, protocol) }
    }

    #[test]
    fn a_port_is_taken_while_a_socket_of_its_protocol_has_it() {
        let addresses = BTreeSet::new();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = tcp.local_addr().unwrap().port();
        assert!(is_taken(&port(number, Protocol::Tcp, None), &addresses));
        assert!(is_taken(&port(number, Protocol::Tcp, Some("127.0.0.1")), &addresses));
        assert!(!is_taken(&port(number, Protocol::Tcp, Some("127.0.0.2")), &addresses));
        assert!(!is_taken(&port(number, Protocol::Udp, None), &addresses));
        drop(tcp);
        assert!(!is_taken(&port(number, Protocol::Tcp, None), &addresses));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let number = udp.local_addr().unwrap().port();
        assert!(is_taken(&port(number, Protocol::Udp, None), &addresses));
        assert!(!is_taken(&port(number, Protocol::Tcp, None), &addresses));
    }

    #[test]
    fn only_what_we_reserved_is_given_back_even_by_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let (sysctl, record) = (dir.path().join("sysctl"), dir.path().join("record.json"));
        fs::write(&sysctl, "8080,9000-9002\n").unwrap();
        let open = || Reservation::open(sysctl.clone(), record.clone());
        let text = || fs::read_to_string(&sysctl).unwrap();
        let mut first = open();
        first.set(&[8080, 8081, 30000].into()).unwrap();
        assert_eq!(text(), "8080-8081,9000-9002,30000\n");
        let mut next = open();
        next.set(&[30000].into()).unwrap();
        assert_eq!(text(), "8080,9000-9002,30000\n");
        next.set(&BTreeSet::new()).unwrap();
        assert_eq!(text(), "8080,9000-9002\n");
        fs::write(&sysctl, "\n").unwrap();
        open().set(&[65535].into()).unwrap();
        assert_eq!(text(), "65535\n");
        open().set(&BTreeSet::new()).unwrap();
        assert_eq!(text(), "\n");
    }
}
