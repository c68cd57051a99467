//! Hop limits of packets between clients outside and the backends of published ports.

use mesh_ebpf_types::{
    Address, Backend, LOCAL, Mac, MapEntry, ProgramKind, Published, PublishedKey, Reason, TableEntry, Vni,
    host_published, published_vni,
};
use mesh_kernel::programs::Programs;

use crate::support::{
    DROP, HOST_MAC, Instance, LOCAL as HERE, Outcome, REDIRECT, REMOTE, VNI, checksum, frame, ipv4, ipv6,
    mac, one_hop_further, udp, v6, vxlan,
};

const UNDERLAY: ProgramKind = ProgramKind::Underlay;
const ENDPOINT: ProgramKind = ProgramKind::Endpoint;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const CLIENT: [u8; 4] = [192, 0, 2, 77];
const CLIENT6: Address = Address([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77]);
const HERE6: Address = Address([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11]);
/// The backends' numbers: on the other node, and the endpoint that sends.
const THERE: u32 = 7;
const SENDER: u32 = 5;
/// The published ports that lead to them.
const TO_THERE: u16 = 8080;
const TO_SENDER: u16 = 8081;

fn node() -> Instance {
    let mut node = Instance::configured();
    let mut entries = Vec::new();
    for (first, number, port, last, at, flags) in
        [(0, THERE, TO_THERE, 70, REMOTE, 0), (16, SENDER, TO_SENDER, 5, HERE, LOCAL)]
    {
        let address = [10, 64, 0, last];
        let backend =
            Backend { vni: VNI, ipv4: address, ipv6: v6(last), node: Address::from_v4(at), flags, peer: 0 };
        entries.push(TableEntry::Backend(number, backend));
        for address in [Address::from_v4(address), v6(last)] {
            entries.push(TableEntry::BackendAddress(mesh_ebpf_types::EndpointKey { vni: VNI, address }));
        }
        let key = PublishedKey { port: port.to_be_bytes(), protocol: UDP, ..PublishedKey::default() };
        let target = u16::to_be_bytes(80);
        let value = Published { first, size: 1, vni: VNI, target, ..Published::default() };
        entries.push(TableEntry::Published(key, value));
        node.datapath.write_backend_tables(first, &[number]).expect("written");
    }
    node.datapath.put_tables(&entries).expect("written");
    node.put(MapEntry::HostAddress(HERE6, 0));
    node
}

fn arrived(packet: &[u8]) -> Vec<u8> {
    frame(Mac([0; 6]), Mac([2, 0, 0, 0, 0, 3]), 0x0800, packet)
}

fn arrived6(packet: &[u8]) -> Vec<u8> {
    frame(Mac([0; 6]), Mac([2, 0, 0, 0, 0, 3]), 0x86dd, packet)
}

/// A datagram that has so many hops left.
fn datagram(source: ([u8; 4], u16), destination: ([u8; 4], u16), hops: u8) -> Vec<u8> {
    let mut packet = ipv4(source.0, destination.0, UDP, &udp(source.1, destination.1, b"some data"));
    packet[8] = hops;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn datagram6(source: (Address, u16), destination: (Address, u16), hops: u8) -> Vec<u8> {
    let mut datagram = udp(source.1, destination.1, b"some data");
    datagram[6] = 1;
    ipv6(source.0, destination.0, UDP, hops, &datagram)
}

fn from_endpoint(destination: [u8; 4], packet: &[u8]) -> Vec<u8> {
    let [a, b, c, d] = destination;
    frame(Mac([2, 0x42, a, b, c, d]), mac(5), 0x0800, packet)
}

/// The hop limit of an IPv4 packet whose header is right.
#[track_caller]
fn ttl(packet: &[u8]) -> u8 {
    assert_eq!(checksum(&packet[..20]), 0, "IPv4 header");
    packet[8]
}

#[test]
fn a_packet_to_a_published_port_loses_one_hop_wherever_its_backend_is() {
    let mut node = node();
    for hops in [2, 64, 255] {
        let packet = datagram((CLIENT, 5000), (HERE, TO_THERE), hops);
        let outcome = node.run(UNDERLAY, &arrived(&packet));
        outcome.is(REDIRECT, VNI, Reason::Published);
        assert_eq!(outcome.frame[64..], one_hop_further(&packet));

        let outcome = node.run(UNDERLAY, &arrived(&datagram((CLIENT, 5000), (HERE, TO_SENDER), hops)));
        outcome.is(REDIRECT, VNI, Reason::Published);
        assert_eq!(ttl(&outcome.frame[14..]), hops - 1);

        let packet = arrived6(&datagram6((CLIENT6, 5000), (HERE6, TO_THERE), hops));
        let outcome = node.run(UNDERLAY, &packet);
        outcome.is(REDIRECT, VNI, Reason::Published);
        assert_eq!(outcome.frame[64 + 7], hops - 1);
    }
}

#[test]
fn the_backends_node_takes_no_second_hop_and_its_replies_lose_one() {
    let mut node = node();
    for hops in [2, 64, 255] {
        let packet = datagram((CLIENT, 5000), (REMOTE, TO_SENDER), hops);
        let outcome = node.run(UNDERLAY, &vxlan(REMOTE, published_vni(SENDER), &arrived(&packet)));
        outcome.is(REDIRECT, VNI, Reason::Received);
        assert_eq!(ttl(&outcome.frame[14..]), hops);

        let reply = datagram(([10, 64, 0, 5], 80), (CLIENT, 5000), hops);
        let outcome = node.run(ENDPOINT, &from_endpoint(CLIENT, &reply));
        outcome.is(REDIRECT, VNI, Reason::PublishedReply);
        assert_eq!(ttl(&outcome.frame[64..]), hops - 1);

        // It leaves as it came by the node that the client spoke to.
        let reply = datagram((HERE, TO_THERE), (CLIENT, 5000), hops);
        let outcome = node.run(UNDERLAY, &vxlan(REMOTE, Vni::new(0x00C0_0000 | THERE), &arrived(&reply)));
        outcome.is(REDIRECT, Vni::NONE, Reason::PublishedReply);
        assert_eq!(outcome.frame[14..], reply);
    }
}

/// Asserts that the sender gets "time exceeded", and nobody the packet.
#[track_caller]
fn is_returned(outcome: &Outcome, packet: &[u8]) {
    outcome.is(REDIRECT, VNI, Reason::HopLimit);
    let answer = &outcome.frame[14..];
    assert_eq!(answer[12..20], [&packet[16..20], &packet[12..16]].concat(), "addresses");
    assert_eq!((answer[9], &answer[20..22]), (ICMP, &[11, 0][..]));
    assert_eq!(answer[28..], packet[..28], "the packet as it was sent");
    assert_eq!((checksum(&answer[..20]), checksum(&answer[20..])), (0, 0));
}

#[test]
fn a_packet_without_hops_left_reaches_nobody_and_its_sender_is_told() {
    let mut node = node();
    for port in [TO_THERE, TO_SENDER] {
        for hops in [1, 0] {
            let packet = datagram((CLIENT, 5000), (HERE, port), hops);
            is_returned(&node.run(UNDERLAY, &arrived(&packet)), &packet);
        }
        // The flow being known, too.
        let known = arrived(&datagram((CLIENT, 5000), (HERE, port), 2));
        node.run(UNDERLAY, &known).is(REDIRECT, VNI, Reason::Published);
        let packet = datagram((CLIENT, 5000), (HERE, port), 1);
        is_returned(&node.run(UNDERLAY, &arrived(&packet)), &packet);
    }
    let packet = datagram6((CLIENT6, 5000), (HERE6, TO_THERE), 1);
    let outcome = node.run(UNDERLAY, &arrived6(&packet));
    outcome.is(REDIRECT, VNI, Reason::HopLimit);
    assert_eq!((outcome.frame[20], &outcome.frame[54..56]), (58, &[3, 0][..]));
    assert_eq!(outcome.frame[62..110], packet[..48]);
}

#[test]
fn a_reply_without_hops_left_returns_to_the_backend() {
    let mut node = node();
    let asked = arrived(&datagram((CLIENT, 5000), (HERE, TO_SENDER), 64));
    node.run(UNDERLAY, &asked).is(REDIRECT, VNI, Reason::Published);
    let reply = |hops| datagram(([10, 64, 0, 5], 80), (CLIENT, 5000), hops);
    for hops in [64, 1] {
        let outcome = node.run(ENDPOINT, &from_endpoint(CLIENT, &reply(hops)));
        if hops == 1 {
            is_returned(&outcome, &reply(1));
        } else {
            outcome.is(REDIRECT, VNI, Reason::PublishedReply);
            assert_eq!(ttl(&outcome.frame[14..]), hops - 1);
        }
    }
}

#[test]
fn an_error_about_a_hop_limit_is_never_answered_with_another() {
    let mut node = node();
    let known = arrived(&datagram((CLIENT, 5000), (HERE, TO_THERE), 64));
    node.run(UNDERLAY, &known).is(REDIRECT, VNI, Reason::Published);
    let mut error = vec![11, 0, 0, 0, 0, 0, 0, 0];
    error.extend(&datagram((HERE, TO_THERE), (CLIENT, 5000), 1)[..28]);
    let sum = checksum(&error);
    error[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = ipv4(CLIENT, HERE, ICMP, &error);
    let passed = node.run(UNDERLAY, &arrived(&packet));
    passed.is(REDIRECT, VNI, Reason::Published);
    assert_eq!(ttl(&passed.frame[64..]), 63);
    packet[8] = 1;
    node.run(UNDERLAY, &arrived(&packet)).is(DROP, VNI, Reason::HopLimit);
}

#[test]
fn what_the_host_itself_sends_to_a_published_port_loses_no_hop() {
    let mut node = node();
    let stand_in = host_published(2, true).to_v4().expect("IPv4");
    for port in [TO_THERE, TO_SENDER] {
        let packet = datagram((HERE, 5000), (stand_in, port), 1);
        let outcome = node.run(ProgramKind::Host, &frame(HOST_MAC, Mac([0; 6]), 0x0800, &packet));
        outcome.is(REDIRECT, VNI, Reason::Published);
        let start = if port == TO_THERE { 64 } else { 14 };
        assert_eq!(ttl(&outcome.frame[start..]), 1);
    }
}

#[test]
fn packets_without_hops_left_are_answered_at_a_limited_rate() {
    let mut node = node();
    let packet = arrived(&datagram((CLIENT, 5000), (HERE, TO_THERE), 1));
    let is_answered = |node: &mut Instance| node.verdict(UNDERLAY, &packet) == REDIRECT;
    assert!(is_answered(&mut node));
    // Each CPU answers 50 at once, and one more after each millisecond.
    assert!((0..100_000).any(|_| !is_answered(&mut node)));
    // Others may run on this CPU meanwhile, but not for ever.
    assert!((0..100_000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(2));
        is_answered(&mut node)
    }));
}
