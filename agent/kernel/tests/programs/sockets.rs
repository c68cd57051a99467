//! The host's own access to published ports.

use mesh_ebpf_types::{Address, MapEntry, Published, PublishedKey, STAND_INS, TableEntry};
use mesh_kernel::programs::{AttachedProgram, Datapath, Options, Programs};

use crate::hosts::{Setup, enter, succeed};
use crate::services::hosts;
use crate::support::{Instance, VNI};
use crate::traffic::Server;

/// Speaks to a published port: TCP, then UDP, connected and not. Whom it sees is whom it asked.
const CLIENT: &str = r"
import socket, sys
address, http, echoes = sys.argv[1], int(sys.argv[2]), [int(port) for port in sys.argv[3:]]
family = socket.AF_INET6 if ':' in address else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(10)
s.connect((address, http)); assert s.getpeername()[:2] == (address, http), s.getpeername()
s.sendall(b'x' * 3000000); s.shutdown(socket.SHUT_WR)
assert len(s.recv(64, socket.MSG_WAITALL)) == 64
for port in echoes:
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(5)
    s.sendto(b'one', (address, port))
    data, sender = s.recvfrom(100); assert (data, sender[:2]) == (b'one', (address, port)), (data, sender)
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(5)
    s.connect((address, port)); s.send(b'two')
    assert s.recv(100) == b'two' and s.getpeername()[:2] == (address, port)
";

/// Ports that are published on that address alone, for the second container.
fn on_one_address(address: Address) -> [TableEntry; 2] {
    [(9080, 7000, 6), (9090, 7001, 17)].map(|(port, target, protocol)| {
        let key = PublishedKey { address, port: u16::to_be_bytes(port), protocol, padding: 0 };
        let (vni, target) = (VNI, u16::to_be_bytes(target));
        TableEntry::Published(key, Published { first: 16, size: 1, vni, target, ..Published::default() })
    })
}

#[test]
fn the_host_reaches_published_ports_by_its_own_addresses() {
    let mut hosts = hosts(Setup::default());
    let _second = Server::start(&hosts.hosts[1].container);
    let _first = Server::start(&hosts.hosts[0].container);
    for host in &hosts.hosts {
        let route = ["ip", "-6", "route", "add", "default", "via", "fd4d:0:0:1::1"];
        succeed(&enter(&host.container, &route));
    }
    let own = Address::from_v4(hosts.hosts[0].address);
    let own6 = Address("fd77::11".parse::<std::net::Ipv6Addr>().expect("an address").octets());
    for host in &mut hosts.hosts {
        host.inside(|datapath| {
            datapath.put_tables(&on_one_address(own)).expect("written");
            datapath.put_tables(&on_one_address(own6)).expect("written");
        });
    }
    let host = &mut hosts.hosts[0];
    for command in [
        "ip addr add fd77::11/64 dev eth0 nodad",
        "ip route add 169.254.42.0/24 dev mesh0 src 192.168.77.11",
        "ip -6 route add fd00:6d65:7368::/120 dev mesh0 src fd77::11",
    ] {
        succeed(&enter(&host.netns, &command.split(' ').collect::<Vec<_>>()));
    }
    host.inside(|datapath| {
        for (number, address) in STAND_INS.map(u32::from).zip([own, own6]) {
            datapath.put(&MapEntry::StandIn(number, address)).expect("written");
            datapath.put(&MapEntry::HostAddress(address, number)).expect("written");
        }
        assert_eq!(datapath.sockets().expect("asked"), None);
        datapath.attach_sockets().expect("attached");
        assert_eq!(datapath.sockets().expect("asked"), Some(AttachedProgram::Current));
    });
    let ask =
        |address, ports: &[&str]| enter(&host.netns, &[&["python3", "-c", CLIENT, address], ports].concat());
    for address in ["127.0.0.1", "192.168.77.11", "::1", "fd77::11"] {
        succeed(&ask(address, &["8080", "8090", "8091"]));
    }
    for (address, loopback) in [("192.168.77.11", "127.0.0.1"), ("fd77::11", "::1")] {
        succeed(&ask(address, &["9080", "9090"]));
        assert!(!ask(loopback, &["9080", "9090"]).status.success(), "not published on {loopback}");
    }
    // Sockets of other namespaces are left alone: nobody listens there.
    let other = enter(&host.container, &["python3", "-c", CLIENT, "127.0.0.1", "8080"]);
    assert!(!other.status.success());
    host.inside(|datapath| datapath.detach_sockets().expect("detached"));
    let closed = enter(&host.netns, &["python3", "-c", CLIENT, "127.0.0.1", "8080"]);
    assert!(!closed.status.success());
}

#[test]
fn the_next_process_replaces_the_programs_of_the_hosts_sockets() {
    let mut node = Instance::load();
    node.datapath.attach_sockets().expect("attached");
    let mut next = Datapath::new(Options::new(&node.dir));
    next.load().expect("loaded");
    assert_eq!(next.sockets().expect("asked"), Some(AttachedProgram::Earlier));
    next.attach_sockets().expect("replaced");
    assert_eq!(next.sockets().expect("asked"), Some(AttachedProgram::Current));
}
