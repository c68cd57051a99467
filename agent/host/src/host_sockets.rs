//! The host's own sockets, and which published ports they conflict with.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_kernel::Listeners;
use mesh_model::PublishedPort;

/// The host's sockets, and the addresses that published ports are served on.
#[derive(Debug, Clone, Default)]
pub struct HostSockets {
    listeners: Listeners,
    addresses: BTreeSet<IpAddr>,
}

impl HostSockets {
    /// The sockets of a host with these addresses.
    pub fn new(listeners: Listeners, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        // Of the loopback addresses, published ports are served on these two.
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let others = addresses.into_iter().filter(|address| !address.is_loopback());
        Self { listeners, addresses: others.chain(loopback).collect() }
    }

    /// The address of a socket that listens where this port is served, or is to be.
    pub fn conflict(&self, port: &PublishedPort) -> Option<IpAddr> {
        let conflicts = |listens: &IpAddr| match port.host_ip {
            Some(served) if listens.is_unspecified() => {
                // A socket of the unspecified IPv6 address takes IPv4 packets, too.
                (served.is_loopback() || self.addresses.contains(&served))
                    && (listens.is_ipv6() || served.is_ipv4())
            }
            Some(served) => *listens == served,
            None => listens.is_unspecified() || self.addresses.contains(listens),
        };
        self.listeners.at(port.protocol, port.published).find(conflicts)
    }
}

#[cfg(test)]
mod tests {
    use crate::fake::host_sockets;

    fn conflicts(port: &str, listeners: &[&str]) -> bool {
        host_sockets(listeners).conflict(&port.parse().unwrap()).is_some()
    }

    #[test]
    fn a_socket_conflicts_where_the_port_is_served_and_nowhere_else() {
        for listener in ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "127.0.0.1", "::1"] {
            assert!(conflicts("8080:80", &[listener]), "{listener}");
        }
        // Neither is served: another loopback address, and that of the mesh's own name server.
        assert!(!conflicts("8080:80", &["127.0.0.7", "10.64.0.1"]));
        assert!(!conflicts("8080:80/udp", &["0.0.0.0"]) && !conflicts("8081:80", &["0.0.0.0"]));
        for listener in ["0.0.0.0", "::", "192.0.2.1"] {
            assert!(conflicts("192.0.2.1:8080:80", &[listener]), "{listener}");
        }
        assert!(!conflicts("192.0.2.1:8080:80", &["127.0.0.1", "192.0.2.2", "2001:db8::1"]));
        // Another host's address, at which nothing arrives here.
        assert!(!conflicts("192.0.2.9:8080:80", &["0.0.0.0", "::"]));
        assert!(!conflicts("[2001:db8::1]:8080:80", &["0.0.0.0"]));
        assert!(conflicts("127.0.0.7:8080:80", &["127.0.0.7"]));
    }
}
