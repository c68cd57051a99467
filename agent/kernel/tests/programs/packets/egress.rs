//! What leaves by the data-path device, and whose the answers are: published ports share the host's
//! with its own flows.

use std::net::{TcpListener, UdpSocket};

use aya::programs::{TestRun, TestRunOptions};
use mesh_ebpf_types::{
    Address, Backend, CONTROL_ADDRESS, HOST_ADDRESS, MARK, Mac, MapEntry, Member, ProgramKind, Published,
    PublishedKey, Reason, TableEntry, Vni,
};
use mesh_kernel::programs::Programs;

use crate::support::{
    DROP, Instance, LOCAL, Outcome, PASS, REDIRECT, REMOTE, VNI, checksum, frame, ipv4, ipv6, udp,
};

const EGRESS: ProgramKind = ProgramKind::Egress;
const UNDERLAY: ProgramKind = ProgramKind::Underlay;
const CLIENT: [u8; 4] = [192, 0, 2, 77];
const CLIENT6: Address = Address([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77]);
const LOCAL6: Address = Address([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11]);
const PORT: u16 = 8080;
const UDP: u8 = 17;
const TCP: u8 = 6;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 0x10;

/// A node whose port 8080 leads to a backend on another node, which has a WireGuard port.
fn node() -> Instance {
    let mut node = Instance::configured();
    let member = Member { wireguard_port: 51820_u16.to_be_bytes(), ..Member::default() };
    node.put(MapEntry::Member(Address::from_v4(REMOTE), member));
    node.put(MapEntry::HostAddress(LOCAL6, 0));
    let backend = Backend {
        vni: VNI,
        ipv4: [10, 64, 0, 70],
        ipv6: Address([0xfd, 0x4d, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 70]),
        node: Address::from_v4(REMOTE),
        ..Backend::default()
    };
    let published = |protocol| {
        let key = PublishedKey { port: PORT.to_be_bytes(), protocol, ..PublishedKey::default() };
        let target = u16::to_be_bytes(80);
        TableEntry::Published(key, Published { first: 0, size: 1, vni: VNI, target, ..Published::default() })
    };
    node.datapath.write_backend_tables(0, &[7]).expect("written");
    let entries = [TableEntry::Backend(7, backend), published(TCP), published(UDP)];
    node.datapath.put_tables(&entries).expect("written");
    node
}

fn to_device(packet: &[u8]) -> Vec<u8> {
    frame(Mac([0; 6]), Mac([2, 0, 0, 0, 0, 9]), 0x0800, packet)
}

fn datagram(source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Vec<u8> {
    to_device(&ipv4(source.0, destination.0, UDP, &udp(source.1, destination.1, b"some question")))
}

fn segment(source: ([u8; 4], u16), destination: ([u8; 4], u16), flags: u8) -> Vec<u8> {
    let mut segment = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 10, 0, 0, 0, 20, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    to_device(&ipv4(source.0, destination.0, TCP, &segment))
}

fn datagram6(source: (Address, u16), destination: (Address, u16)) -> Vec<u8> {
    let mut datagram = udp(source.1, destination.1, b"some question");
    datagram[6] = 1;
    let packet = ipv6(source.0, destination.0, UDP, 64, &datagram);
    frame(Mac([0; 6]), Mac([2, 0, 0, 0, 0, 9]), 0x86dd, &packet)
}

/// Runs `egress` on a packet that carries Mesh's mark.
fn run_marked(node: &Instance, packet: &[u8]) -> i32 {
    let mut context = [0_u8; 192];
    context[8..12].copy_from_slice(&MARK.to_ne_bytes());
    let options =
        TestRunOptions { data_in: Some(packet), ctx_in: Some(&context), ..TestRunOptions::default() };
    let program = node.datapath.program(EGRESS).expect("a loaded program");
    program.test_run(options).expect("a test run").return_value.cast_signed()
}

#[track_caller]
fn is_published(outcome: &Outcome) {
    assert_eq!(
        (outcome.verdict, outcome.counted.as_slice()),
        (REDIRECT, [(VNI, Reason::Published)].as_slice())
    );
}

#[test]
fn udp_to_a_tunnels_port_of_a_node_leaves_only_with_the_mark() {
    let mut node = node();
    for port in [4789, 51820] {
        let packet = datagram((LOCAL, 40000), (REMOTE, port));
        node.run(EGRESS, &packet).is(DROP, Vni::NONE, Reason::ForeignTunnel);
        assert_eq!(run_marked(&node, &packet), PASS);

        // Options before the ports, or other fragments after them.
        let mut options = packet.clone();
        options[14] = 0x46;
        options.splice(34..34, [1, 1, 1, 0]);
        options[17] += 4;
        node.run(EGRESS, &options).is(DROP, Vni::NONE, Reason::ForeignTunnel);
        let mut first = packet.clone();
        first[20] = 0x20;
        node.run(EGRESS, &first).is(DROP, Vni::NONE, Reason::ForeignTunnel);
        let mut later = packet.clone();
        later[20..22].copy_from_slice(&[0, 2]);
        node.run(EGRESS, &later).passed();
    }
    for packet in [
        datagram((LOCAL, 4789), (CLIENT, 4789)),
        datagram((LOCAL, 40000), (REMOTE, 4790)),
        segment((LOCAL, 40000), (REMOTE, 4789), SYN),
        // From no node: dropped there.
        datagram((CLIENT, 40000), (REMOTE, 4789)),
    ] {
        node.run(EGRESS, &packet).passed();
    }
    // Another node's address: not through here, unless this host routes to it.
    let forged = datagram(([192, 168, 77, 13], 40000), (REMOTE, 4789));
    node.run(EGRESS, &forged).passed();
    node.put(MapEntry::Member(Address::from_v4([192, 168, 77, 13]), Member::default()));
    node.run(EGRESS, &forged).is(DROP, Vni::NONE, Reason::ForeignTunnel);
}

#[test]
fn udp_to_a_tunnels_port_leaves_to_no_other_address_of_a_node_either() {
    let mut node = node();
    for (last, kind) in [(112, CONTROL_ADDRESS), (113, HOST_ADDRESS)] {
        let other = [192, 168, 77, last];
        let member = Member { wireguard_port: 51820_u16.to_be_bytes(), kind, ..Member::default() };
        node.run(EGRESS, &datagram((LOCAL, 40000), (other, 4789))).passed();
        node.put(MapEntry::Member(Address::from_v4(other), member));
        for port in [4789, 51820] {
            let packet = datagram((LOCAL, 40000), (other, port));
            node.run(EGRESS, &packet).is(DROP, Vni::NONE, Reason::ForeignTunnel);
            assert_eq!(run_marked(&node, &packet), PASS);
        }
        node.run(EGRESS, &datagram((LOCAL, 40000), (other, 53))).passed();
    }
}

#[test]
fn an_answer_to_a_flow_that_left_from_a_published_port_is_the_hosts_and_a_new_client_the_services() {
    let mut node = node();
    let (here, there) = ((LOCAL, PORT), (CLIENT, 9990));
    for (out, back) in [
        (datagram(here, there), datagram(there, here)),
        (segment(here, there, SYN), segment(there, here, SYN | ACK)),
        (segment(here, there, ACK), segment(there, here, ACK)),
        (datagram6((LOCAL6, PORT), (CLIENT6, 9990)), datagram6((CLIENT6, 9990), (LOCAL6, PORT))),
    ] {
        node.run(EGRESS, &out).passed();
        node.run(UNDERLAY, &back).passed();
    }
    is_published(&node.run(UNDERLAY, &datagram((CLIENT, 9991), here)));
    is_published(&node.run(UNDERLAY, &segment((CLIENT, 9991), here, SYN)));
    is_published(&node.run(UNDERLAY, &datagram6((CLIENT6, 9991), (LOCAL6, PORT))));
    // Nothing of this from other ports, nor of what Mesh sends.
    node.run(EGRESS, &datagram((LOCAL, 8079), (CLIENT, 9992))).passed();
    assert_eq!(run_marked(&node, &datagram(here, (CLIENT, 9992))), PASS);
    is_published(&node.run(UNDERLAY, &datagram((CLIENT, 9992), here)));
}

#[test]
fn what_the_fast_path_knows_of_a_tuple_ends_when_the_host_begins_a_flow_with_it() {
    let mut node = node();
    let (here, there) = ((LOCAL, PORT), (CLIENT, 9990));
    for _ in 0..4 {
        is_published(&node.run(UNDERLAY, &datagram(there, here)));
    }
    node.run(EGRESS, &datagram(here, there)).passed();
    node.run(UNDERLAY, &datagram(there, here)).passed();
}

#[test]
fn a_connection_may_begin_with_the_tuple_of_one_of_the_hosts_that_has_ended() {
    let mut node = node();
    let (here, there) = ((LOCAL, PORT), (CLIENT, 9990));
    node.run(EGRESS, &segment(here, there, ACK)).passed();
    node.run(UNDERLAY, &segment(there, here, SYN)).passed();
    for end in [FIN | ACK, RST] {
        node.run(EGRESS, &segment(here, there, ACK)).passed();
        node.run(EGRESS, &segment(here, there, end)).passed();
        node.run(UNDERLAY, &segment(there, here, ACK)).passed();
        is_published(&node.run(UNDERLAY, &segment(there, here, SYN)));
    }
    // A reset begins nothing.
    node.run(EGRESS, &segment(here, (CLIENT, 9995), RST)).passed();
    is_published(&node.run(UNDERLAY, &segment((CLIENT, 9995), here, SYN)));
}

#[test]
fn a_packet_for_a_socket_of_the_host_is_its_own_whatever_is_published() {
    let mut node = node();
    let here = (LOCAL, PORT);
    let (asked, begun) = (datagram((CLIENT, 9990), here), segment((CLIENT, 9990), here, SYN));
    let asked6 = datagram6((CLIENT6, 9990), (LOCAL6, PORT));
    let udp = UdpSocket::bind(("::", PORT)).expect("a socket");
    let tcp = TcpListener::bind(("0.0.0.0", PORT)).expect("a listener");
    node.run(UNDERLAY, &asked).passed();
    node.run(UNDERLAY, &asked6).passed();
    node.run(UNDERLAY, &begun).passed();
    drop((udp, tcp));
    is_published(&node.run(UNDERLAY, &asked));
    is_published(&node.run(UNDERLAY, &asked6));
    is_published(&node.run(UNDERLAY, &begun));
}

#[test]
fn a_tunnels_port_of_a_node_is_no_client_of_a_published_port() {
    let mut node = node();
    for port in [4789, 51820] {
        let packet = datagram((REMOTE, port), (LOCAL, PORT));
        node.run(UNDERLAY, &packet).is(DROP, Vni::NONE, Reason::ForeignTunnel);
        is_published(&node.run(UNDERLAY, &datagram((CLIENT, port), (LOCAL, PORT))));
        is_published(&node.run(UNDERLAY, &segment((REMOTE, port), (LOCAL, PORT), SYN)));
    }
    is_published(&node.run(UNDERLAY, &datagram((REMOTE, 40000), (LOCAL, PORT))));
}

#[test]
fn whatever_arrives_for_a_port_that_is_not_published_is_left_alone() {
    let mut node = node();
    node.run(UNDERLAY, &datagram((REMOTE, 4789), (LOCAL, 8081))).passed();
    let packet = datagram((CLIENT, 4789), (LOCAL, 8081));
    node.run(UNDERLAY, &packet).passed();
    assert_eq!(checksum(&packet[14..34]), 0);
}
