//! Real traffic to VIPs and to published ports, between two hosts.

use mesh_ebpf_types::{
    Address, Backend, EndpointKey, LOCAL, MapEntry, Published, PublishedKey, Reason, Service, TableEntry,
};
use mesh_kernel::programs::Programs;

use crate::hosts::{Hosts, Setup, enter, succeed};
use crate::support::{VNI, v4, v6};
use crate::traffic::{DATAGRAM, SEGMENTS, Server, TRANSFER};

/// The numbers of the containers' backends: of the first host, and of the second.
const FIRST: u32 = 5;
pub(crate) const SECOND: u32 = 7;
/// A VIP of the first container, one of the second, and the ports published for them.
const VIP_FIRST: &str = "10.64.0.40";
pub(crate) const VIP_SECOND: &str = "10.64.0.41";
const VIP6_SECOND: &str = "fd4d:0:0:1::29";

/// The entries of both services, on one of the hosts.
fn tables(host: usize) -> Vec<TableEntry> {
    let backend = |number, last, node| {
        let here = usize::from(number == SECOND) == host;
        let backend = Backend {
            vni: VNI,
            ipv4: [10, 64, 0, last],
            ipv6: v6(last),
            node: Address::from_v4([192, 168, 77, node]),
            flags: if here { LOCAL } else { 0 },
            peer: 0,
        };
        TableEntry::Backend(number, backend)
    };
    let key = |address| EndpointKey { vni: VNI, address };
    let vip = |address, first| TableEntry::Service(key(address), Service { first, size: 1, flags: 0 });
    let mut entries = vec![
        backend(FIRST, 5, 11),
        backend(SECOND, 70, 12),
        vip(v4(40), 0),
        vip(v6(40), 0),
        vip(v4(41), 16),
        vip(v6(41), 16),
    ];
    entries.extend([v4(5), v6(5), v4(70), v6(70)].map(|address| TableEntry::BackendAddress(key(address))));
    for (port, first, target) in
        [(7000, 16, 7000), (8080, 16, 7000), (8081, 0, 7000), (8090, 16, 7001), (8091, 0, 7001)]
    {
        for protocol in [6, 17] {
            let key = PublishedKey { port: u16::to_be_bytes(port), protocol, ..PublishedKey::default() };
            let value = Published {
                first,
                size: 1,
                vni: VNI,
                target: u16::to_be_bytes(target),
                ..Published::default()
            };
            entries.push(TableEntry::Published(key, value));
        }
    }
    entries
}

/// Two hosts whose containers are backends.
pub(crate) fn hosts(setup: Setup) -> Hosts {
    let mut hosts = Hosts::new(setup);
    for (number, host) in hosts.hosts.iter_mut().enumerate() {
        let address = host.address;
        host.inside(|datapath| {
            datapath.write_backend_tables(0, &[FIRST]).expect("written");
            datapath.write_backend_tables(16, &[SECOND]).expect("written");
            datapath.put_tables(&tables(number)).expect("written");
            datapath.put(&MapEntry::HostAddress(Address::from_v4(address), 0)).expect("written");
        });
    }
    hosts
}

fn vips(setup: Setup) {
    let mut hosts = hosts(setup);
    let _second = Server::start(&hosts.hosts[1].container);
    let _first = Server::start(&hosts.hosts[0].container);
    for address in [VIP_SECOND, VIP6_SECOND, VIP_FIRST] {
        hosts.run(&["ping", "-c", "2", "-i", "0.05", "-W", "1", address]);
        hosts.run(&["python3", "-c", TRANSFER, address, "50"]);
        hosts.run(&["python3", "-c", SEGMENTS, address]);
        hosts.run(&["python3", "-c", DATAGRAM, address]);
    }
    // Nobody is told to listen there: the error comes from the VIP.
    let refused = r"
import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.connect((sys.argv[1], 9)); s.send(b'x')
try: s.recv(1); sys.exit('answered')
except ConnectionRefusedError: pass
";
    for address in [VIP_SECOND, VIP6_SECOND] {
        hosts.run(&["python3", "-c", refused, address]);
    }
    hosts.have_dropped_nothing();
}

#[test]
fn a_vip_carries_everything_to_a_backend_on_another_node_and_to_the_client_itself() {
    vips(Setup::default());
}

#[test]
fn a_vip_carries_everything_without_offloads() {
    vips(Setup { offloads: false, ..Setup::default() });
}

/// Asks for the address that the server saw.
const WHO: &str = r"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
s.shutdown(socket.SHUT_WR)
assert len(s.recv(64, socket.MSG_WAITALL)) == 64
";

fn published(setup: Setup) {
    let mut hosts = hosts(setup);
    let _second = Server::start(&hosts.hosts[1].container);
    let _first = Server::start(&hosts.hosts[0].container);
    let client = hosts.hosts[1].netns.clone();
    // 7000 and 8080: to the container on the client's host, through the other host and back. 8081:
    // the container there.
    for port in ["7000", "8080", "8081"] {
        succeed(&enter(&client, &["python3", "-c", WHO, "192.168.77.11", port]));
    }
    let transfer = TRANSFER.replace("7000", "8080");
    succeed(&enter(&client, &["python3", "-c", &transfer, "192.168.77.11", "50"]));
    for port in ["8090", "8091"] {
        let segments = SEGMENTS.replace("7001", port);
        succeed(&enter(&client, &["python3", "-c", &segments, "192.168.77.11"]));
        let datagram = DATAGRAM.replace("7001", port);
        succeed(&enter(&client, &["python3", "-c", &datagram, "192.168.77.11"]));
    }
    // A container uses the ports of its own host; the second one leads to itself.
    hosts.run(&["python3", "-c", WHO, "192.168.77.11", "8080"]);
    hosts.run(&["python3", "-c", WHO, "192.168.77.11", "8081"]);
    hosts.have_dropped_nothing();
    assert_ne!(hosts.hosts[0].counter(VNI, Reason::Published), 0);
}

#[test]
fn a_published_port_carries_everything_from_outside() {
    published(Setup::default());
}

#[test]
fn a_published_port_carries_everything_without_offloads() {
    published(Setup { offloads: false, ..Setup::default() });
}
