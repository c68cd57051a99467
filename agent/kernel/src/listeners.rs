//! The sockets of a network namespace that wait for packets of anybody: one reading of each table,
//! regardless of the number of ports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_model::Protocol;

/// The tables of the calling thread's namespace (proc(5)). All listening TCP sockets precede the
/// others.
const TABLES: &str = "/proc/thread-self/net";
/// The states in these tables, in hexadecimal: `TCP_LISTEN`, and `TCP_CLOSE` for a UDP socket
/// without a peer.
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";

/// Local addresses of sockets, by protocol and port. The unspecified address means every address of
/// its family. That of IPv6 means both families, as it does for most sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listeners(BTreeMap<(Protocol, u16), BTreeSet<IpAddr>>);

impl Listeners {
    /// Reads the sockets of the calling thread's namespace: listening TCP sockets, UDP sockets
    /// without a peer, SCTP endpoints. A protocol that the kernel does not have has no sockets.
    pub fn read() -> io::Result<Self> {
        let mut listeners = Self::default();
        for table in ["tcp", "tcp6"] {
            listeners.read_table(table, Protocol::Tcp, LISTEN)?;
        }
        for table in ["udp", "udp6"] {
            listeners.read_table(table, Protocol::Udp, UNCONNECTED)?;
        }
        for line in lines("sctp/eps")? {
            listeners.add_sctp(&line?);
        }
        Ok(listeners)
    }

    /// The local addresses of the sockets that have a port.
    pub fn at(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = IpAddr> + '_ {
        self.0.get(&(protocol, port)).into_iter().flatten().copied()
    }

    /// Adds a socket.
    pub fn add(&mut self, protocol: Protocol, address: IpAddr, port: u16) {
        self.0.entry((protocol, port)).or_default().insert(address.to_canonical());
    }

    fn read_table(&mut self, table: &str, protocol: Protocol, state: &str) -> io::Result<()> {
        for line in lines(table)? {
            let line = line?;
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (Some(local), Some(found)) = (fields.next(), fields.nth(1)) else { continue };
            match parse_local(local) {
                Some((address, port)) if found == state => self.add(protocol, address, port),
                // A host may have a million connections, and none of them matters.
                Some(_) if protocol == Protocol::Tcp => break,
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads a line of `ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS...`.
    fn add_sctp(&mut self, line: &str) {
        let mut fields = line.split_ascii_whitespace().skip(5);
        let Some(port) = fields.next().and_then(|port| port.parse().ok()) else { return };
        for address in fields.skip(2).filter_map(|address| address.parse().ok()) {
            self.add(Protocol::Sctp, address, port);
        }
    }
}

/// The lines of a table after its header; none if the kernel does not have the protocol.
fn lines(table: &str) -> io::Result<impl Iterator<Item = io::Result<String>>> {
    let file = match File::open(format!("{TABLES}/{table}")) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(file.into_iter().flat_map(|file| BufReader::new(file).lines().skip(1)))
}

/// Reads `0100007F:1F90`: the kernel prints each 32-bit word of an address as a number in the
/// machine's byte order.
fn parse_local(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let address = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.as_flattened().try_into().ok()?;
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn at(protocol: Protocol, port: u16) -> Vec<IpAddr> {
        Listeners::read().unwrap().at(protocol, port).collect()
    }

    #[test]
    fn a_socket_is_listed_while_it_waits_for_packets_of_anybody() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(at(Protocol::Tcp, port), [IpAddr::from([127, 0, 0, 1])]);
        assert!(at(Protocol::Udp, port).is_empty());
        assert!(at(Protocol::Tcp, client.local_addr().unwrap().port()).is_empty());
        drop(tcp);
        assert!(at(Protocol::Tcp, port).is_empty());
        let udp = UdpSocket::bind("[::]:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        assert_eq!(at(Protocol::Udp, port), [IpAddr::from(Ipv6Addr::UNSPECIFIED)]);
        udp.connect("[::1]:9").unwrap();
        assert!(at(Protocol::Udp, port).is_empty());
    }

    #[test]
    fn sctp_endpoints_are_listed_with_all_their_addresses() {
        let mut listeners = Listeners::default();
        listeners.add_sctp(" ffff8881 ffff8882 2   10  29   5060 0 4711 192.0.2.1 2001:db8::1");
        let addresses: Vec<String> = listeners.at(Protocol::Sctp, 5060).map(|a| a.to_string()).collect();
        assert_eq!(addresses, ["192.0.2.1", "2001:db8::1"]);
    }
}
