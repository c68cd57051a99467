//! What the host sends to endpoints.

use mesh_ebpf_types::{Mac, ProgramKind, Reason, Vni};

use crate::support::{DROP, HOST_MAC, Instance, OTHER_VNI, REDIRECT, VNI, frame, ipv4, ipv6, mac, udp, v6};

const HOST: ProgramKind = ProgramKind::Host;

fn from_host(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    frame(HOST_MAC, HOST_MAC, 0x0800, &ipv4(source, destination, 17, &udp(1, 2, b"")))
}

#[test]
fn the_network_of_a_packet_from_the_host_is_told_by_its_destination() {
    let mut node = Instance::configured();
    let outcome = node.run(HOST, &from_host([10, 64, 0, 1], [10, 64, 0, 5]));
    outcome.is(REDIRECT, VNI, Reason::FromHost);
    assert_eq!(outcome.frame[..6], mac(5).0);
    let outcome = node.run(HOST, &from_host([8, 8, 8, 8], [10, 65, 0, 5]));
    outcome.is(REDIRECT, OTHER_VNI, Reason::FromHost);
    let packet = ipv6(v6(1), v6(6), 17, 64, &udp(1, 2, b""));
    node.run(HOST, &frame(HOST_MAC, HOST_MAC, 0x86dd, &packet)).is(REDIRECT, VNI, Reason::FromHost);
}

#[test]
fn the_host_is_no_bridge_between_networks() {
    let mut node = Instance::configured();
    let outcome = node.run(HOST, &from_host([10, 65, 0, 5], [10, 64, 0, 5]));
    outcome.is(DROP, VNI, Reason::Isolated);
}

#[test]
fn the_host_reaches_endpoints_only() {
    let mut node = Instance::configured();
    node.run(HOST, &from_host([10, 64, 0, 1], [10, 64, 0, 9])).is(DROP, VNI, Reason::NoEndpoint);
    node.run(HOST, &from_host([10, 64, 0, 1], [8, 8, 8, 8])).is(DROP, Vni::NONE, Reason::UnknownNetwork);
    node.run(HOST, &from_host([10, 64, 0, 1], [224, 0, 0, 1])).is(DROP, Vni::NONE, Reason::Multicast);
    let broadcast = frame(Mac([0xff; 6]), HOST_MAC, 0x0806, &[0; 28]);
    node.run(HOST, &broadcast).is(DROP, Vni::NONE, Reason::UnsupportedProtocol);
}
