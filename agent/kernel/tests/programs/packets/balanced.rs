//! What containers send to VIPs.

use mesh_ebpf_types::{
    Address, Backend, EndpointKey, LOCAL, ProgramKind, Reason, Service, TableEntry, TableKey, Vni,
};
use mesh_kernel::programs::{Datapath, MapSizes, Options, Programs};

use crate::support::{
    DROP, HOST_MAC, Instance, REDIRECT, REMOTE, VNI, checksum, entries, frame, ipv4, ipv6, mac, udp, v4, v6,
    vxlan,
};

const ENDPOINT: ProgramKind = ProgramKind::Endpoint;
const VIP: [u8; 4] = [10, 64, 0, 40];
const SYN: u8 = 2;
const ACK: u8 = 0x10;
const RST: u8 = 4;

/// A node whose VIP has a backend on another node (7), whose other VIP has none, and a local
/// backend (6).
fn node() -> Instance {
    with_services(Instance::configured())
}

fn with_services(mut node: Instance) -> Instance {
    let backend = |last, node, flags| Backend {
        vni: VNI,
        ipv4: [10, 64, 0, last],
        ipv6: v6(last),
        node: Address::from_v4(node),
        flags,
        peer: 0,
    };
    let key = |address| EndpointKey { vni: VNI, address };
    let entries = [
        TableEntry::Backend(7, backend(70, REMOTE, 0)),
        TableEntry::Backend(6, backend(6, crate::support::LOCAL, LOCAL)),
        TableEntry::BackendAddress(key(v4(70))),
        TableEntry::BackendAddress(key(v4(6))),
        service(v4(40), 1),
        service(v6(40), 1),
        service(v4(41), 0),
        service(v6(41), 0),
    ];
    node.datapath.write_backend_tables(0, &[7]).expect("written");
    node.datapath.put_tables(&entries).expect("written");
    node
}

fn service(vip: Address, size: u32) -> TableEntry {
    TableEntry::Service(EndpointKey { vni: VNI, address: vip }, Service { first: 0, size, flags: 0 })
}

/// A TCP segment with the right checksum from 10.64.0.5.
fn tcp(destination: [u8; 4], port: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(port.to_be_bytes());
    segment.extend([0, 80, 0, 0, 0, 10, 0, 0, 0, 20, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    segment.extend(payload);
    let length = u8::try_from(segment.len()).expect("short");
    let sum = checksum(&[&[10, 64, 0, 5][..], &destination, &[0, 6, 0, length], &segment].concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let [a, b, c, d] = destination;
    frame(
        mesh_ebpf_types::Mac([2, 0x42, a, b, c, d]),
        mac(5),
        0x0800,
        &ipv4([10, 64, 0, 5], destination, 6, &segment),
    )
}

/// Asserts that both checksums of an IPv4 TCP frame are right.
#[track_caller]
fn sums_up(frame: &[u8]) {
    assert_eq!(checksum(&frame[14..34]), 0, "IPv4 header");
    let length = u16::from_be_bytes([frame[16], frame[17]]) - 20;
    let [l0, l1] = length.to_be_bytes();
    let segment = &frame[34..34 + usize::from(length)];
    assert_eq!(checksum(&[&frame[26..34], &[0, 6, l0, l1], segment].concat()), 0, "TCP");
}

fn to_vip_udp(vip: [u8; 4], port: u16) -> Vec<u8> {
    let [a, b, c, d] = vip;
    let packet = ipv4([10, 64, 0, 5], vip, 17, &udp(port, 53, b"question"));
    frame(mesh_ebpf_types::Mac([2, 0x42, a, b, c, d]), mac(5), 0x0800, &packet)
}

#[test]
fn a_vip_is_replaced_by_the_backend_and_the_reply_by_the_vip() {
    let mut node = node();
    let outcome = node.run(ENDPOINT, &tcp(VIP, 4000, SYN, b""));
    outcome.is(REDIRECT, VNI, Reason::ForwardedRemote);
    let sent = &outcome.frame[50..];
    assert_eq!(sent[..6], mac(70).0);
    assert_eq!(sent[26..34], [[10, 64, 0, 5], [10, 64, 0, 70]].concat());
    assert_eq!(sent[34..38], [0x0f, 0xa0, 0, 80]);
    sums_up(sent);

    let mut reply =
        frame(mac(5), mac(70), 0x0800, &ipv4([10, 64, 0, 70], [10, 64, 0, 5], 17, &udp(53, 4001, b"answer")));
    // Not asked for by a VIP: as it is.
    let outcome = node.run(ProgramKind::Underlay, &vxlan(REMOTE, VNI, &reply));
    outcome.is(REDIRECT, VNI, Reason::Received);
    assert_eq!(outcome.frame, reply);
    node.run(ENDPOINT, &to_vip_udp(VIP, 4001)).is(REDIRECT, VNI, Reason::ForwardedRemote);
    let outcome = node.run(ProgramKind::Underlay, &vxlan(REMOTE, VNI, &reply));
    outcome.is(REDIRECT, VNI, Reason::Received);
    reply[26..30].copy_from_slice(&VIP);
    assert_eq!(outcome.frame[26..], reply[26..]);
    assert_eq!(checksum(&outcome.frame[14..34]), 0);
}

#[test]
fn who_asks_a_service_without_backends_is_told() {
    let mut node = node();
    let outcome = node.run(ENDPOINT, &tcp([10, 64, 0, 41], 4000, SYN, b""));
    outcome.is(REDIRECT, VNI, Reason::RefusalAnswered);
    let answer = &outcome.frame;
    assert_eq!(answer[..12], [mac(5).0, [2, 0x42, 10, 64, 0, 41]].concat());
    assert_eq!(answer[26..38], [10, 64, 0, 41, 10, 64, 0, 5, 0, 80, 0x0f, 0xa0]);
    assert_eq!((&answer[42..46], answer[47]), (&[0, 0, 0, 11][..], RST | ACK));
    sums_up(answer);
    assert_eq!(answer.len(), 54);

    let packet = to_vip_udp([10, 64, 0, 41], 4000);
    let outcome = node.run(ENDPOINT, &packet);
    outcome.is(REDIRECT, VNI, Reason::RefusalAnswered);
    let answer = &outcome.frame;
    assert_eq!((&answer[26..34], &answer[34..36]), (&[10, 64, 0, 41, 10, 64, 0, 5][..], &[3, 3][..]));
    assert_eq!(answer[42..70], packet[14..42]);
    assert_eq!((checksum(&answer[14..34]), checksum(&answer[34..70])), (0, 0));

    let packet = ipv6(v6(5), v6(41), 17, 64, &udp(1, 2, b"question"));
    let packet = frame(mesh_ebpf_types::Mac([2, 0x46, 0, 0, 0, 41]), mac(5), 0x86dd, &packet);
    let outcome = node.run(ENDPOINT, &packet);
    outcome.is(REDIRECT, VNI, Reason::RefusalAnswered);
    let answer = &outcome.frame;
    assert_eq!((&answer[22..54], &answer[54..56]), (&[v6(41).0, v6(5).0].concat()[..], &[1, 4][..]));
    let sum = checksum(&[&answer[22..54], &[0, 0, 0, 56, 0, 0, 0, 58], &answer[54..]].concat());
    assert_eq!((sum, answer.len()), (0, 14 + 40 + 56));

    // A reset is never answered.
    node.run(ENDPOINT, &tcp([10, 64, 0, 41], 4000, RST, b"")).is(DROP, VNI, Reason::NoBackend);
}

#[test]
fn flows_of_a_backend_that_goes_move_by_datagram_and_are_reset_otherwise() {
    let mut node = node();
    let is_to = |outcome: crate::support::Outcome, last| {
        let destination =
            if outcome.frame.len() >= 100 { &outcome.frame[80..84] } else { &outcome.frame[30..34] };
        assert_eq!(destination, [10, 64, 0, last]);
    };
    let (segment, datagram) = (tcp(VIP, 4000, ACK, b"data"), to_vip_udp(VIP, 4001));
    node.run(ENDPOINT, &segment);
    node.run(ENDPOINT, &datagram);
    // Another table: what has a backend keeps it, what is new gets the other.
    node.datapath.write_backend_tables(16, &[6]).expect("written");
    let other = Service { first: 16, size: 1, flags: 0 };
    let entry = TableEntry::Service(EndpointKey { vni: VNI, address: v4(40) }, other);
    node.datapath.put_tables(&[entry]).expect("written");
    is_to(node.run(ENDPOINT, &segment), 70);
    is_to(node.run(ENDPOINT, &datagram), 70);
    is_to(node.run(ENDPOINT, &to_vip_udp(VIP, 4002)), 6);
    is_to(node.run(ENDPOINT, &tcp(VIP, 4000, SYN, b"")), 6);
    let segment = tcp(VIP, 4003, ACK, b"data");
    node.datapath.put_tables(&[service(v4(40), 1)]).expect("written");
    node.run(ENDPOINT, &segment);
    node.datapath.put_tables(&[entry]).expect("written");

    node.datapath.delete_tables(&[TableKey::Backend(7)]).expect("removed");
    is_to(node.run(ENDPOINT, &datagram), 6);
    let outcome = node.run(ENDPOINT, &segment);
    outcome.is(REDIRECT, VNI, Reason::RefusalAnswered);
    assert_eq!((&outcome.frame[38..42], outcome.frame[47]), (&[0, 0, 0, 20][..], RST));
    sums_up(&outcome.frame);
}

#[test]
fn a_flood_of_new_flows_pushes_no_answered_one_out() {
    let mut node = Instance::load();
    node.datapath.unload().expect("unloaded");
    let sizes = MapSizes { connections: 2048, ..MapSizes::default() };
    node.datapath = Datapath::new(Options { sizes, ..Options::new(&node.dir) });
    node.datapath.load().expect("loaded with small maps");
    for entry in entries() {
        node.put(entry);
    }
    let mut node = with_services(node);
    let datagram = to_vip_udp(VIP, 4001);
    let answer =
        frame(mac(5), mac(70), 0x0800, &ipv4([10, 64, 0, 70], [10, 64, 0, 5], 17, &udp(53, 4001, b"answer")));
    node.run(ENDPOINT, &datagram);
    node.run(ProgramKind::Underlay, &vxlan(REMOTE, VNI, &answer));
    node.run(ENDPOINT, &datagram);
    assert_eq!(node.datapath.connections().expect("counted")[&VNI], 2, "both directions");
    // Ten times what fits.
    for port in 10_000..30_480 {
        node.run_unseen(ENDPOINT, &tcp(VIP, port, SYN, b""));
    }
    assert_eq!(node.datapath.connections().expect("counted")[&VNI], 2);
    node.datapath.put_tables(&[service(v4(40), 0)]).expect("written");
    node.run(ENDPOINT, &datagram).is(REDIRECT, VNI, Reason::ForwardedRemote);
}

#[test]
fn later_fragments_follow_the_first() {
    let mut node = node();
    let fragment = |offset: u16, more: bool, payload: &[u8]| {
        let mut packet = ipv4([10, 64, 0, 5], VIP, 17, payload);
        packet[4..6].copy_from_slice(&[0x77, 0x01]);
        packet[6..8].copy_from_slice(&(offset | if more { 0x2000 } else { 0 }).to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        frame(mesh_ebpf_types::Mac([2, 0x42, 10, 64, 0, 40]), mac(5), 0x0800, &packet)
    };
    let last = fragment(2, false, b"end");
    let first = fragment(0, true, &udp(1, 2, b"01234567"));
    // Out of order: all go to the kernel, and come back in order.
    for fragment in [&last, &first, &last] {
        let outcome = node.run(ENDPOINT, fragment);
        outcome.is(REDIRECT, VNI, Reason::ToHost);
        assert_eq!(outcome.frame[..6], HOST_MAC.0);
    }
    node.run(ProgramKind::Host, &last).is(DROP, VNI, Reason::FragmentWithoutFirst);
    let again = node.run(ProgramKind::Host, &first);
    assert_eq!((again.verdict, &again.frame, again.counted.len()), (REDIRECT, &first, 0));
    node.run(ENDPOINT, &first).is(REDIRECT, VNI, Reason::ForwardedRemote);
    assert_eq!(node.run(ProgramKind::Host, &last).frame, last);
    let outcome = node.run(ENDPOINT, &last);
    outcome.is(REDIRECT, VNI, Reason::ForwardedRemote);
    assert_eq!(outcome.frame[80..84], [10, 64, 0, 70]);
    assert_eq!(checksum(&outcome.frame[64..84]), 0);
}

#[test]
fn strangers_take_no_part_in_the_routing_mesh() {
    let mut node = node();
    let inner = frame(mac(0), mac(0), 0x0800, &ipv4([192, 0, 2, 1], REMOTE, 17, &udp(1, 2, b"")));
    for vni in [mesh_ebpf_types::published_vni(6), Vni::new(0x00C0_0006)] {
        let stranger = vxlan([192, 168, 77, 200], vni, &inner);
        node.run(ProgramKind::Underlay, &stranger).is(DROP, Vni::NONE, Reason::NotMember);
    }
    // A member's reply from an address that is not this host's is none.
    let forged = vxlan(REMOTE, Vni::new(0x00C0_0006), &inner);
    node.run(ProgramKind::Underlay, &forged).is(DROP, Vni::NONE, Reason::NotOurAddress);
    // A backend that is not here, a port that is not published.
    for number in [7, 9] {
        let packet = vxlan(REMOTE, mesh_ebpf_types::published_vni(number), &inner);
        node.run(ProgramKind::Underlay, &packet).is(DROP, Vni::NONE, Reason::NoBackend);
    }
    let packet = vxlan(REMOTE, mesh_ebpf_types::published_vni(6), &inner);
    node.run(ProgramKind::Underlay, &packet).is(DROP, VNI, Reason::NoBackend);
}
