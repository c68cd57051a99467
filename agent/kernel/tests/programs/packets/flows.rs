//! Flows that are known, on the fast path: [`Instance::run`] compares it with the slow one.

use mesh_ebpf_types::{
    Address, Backend, EndpointKey, LOCAL, Mac, MapEntry, MapKey, Member, ProgramKind, Published,
    PublishedKey, Reason, Service, TableEntry, TableKey, Vni, published_vni,
};
use mesh_kernel::programs::Programs;

use crate::support::{
    DROP, Instance, LOCAL as HERE, REDIRECT, REMOTE, VNI, checksum, frame, ipv4, mac, one_hop_further, v4,
    vxlan,
};

const ENDPOINT: ProgramKind = ProgramKind::Endpoint;
const UNDERLAY: ProgramKind = ProgramKind::Underlay;
const CLIENT: [u8; 4] = [192, 0, 2, 77];
const VIP: [u8; 4] = [10, 64, 0, 40];
const BACKEND: [u8; 4] = [10, 64, 0, 70];
const OWN: [u8; 4] = [10, 64, 0, 5];
const SYN: u8 = 2;
const ACK: u8 = 0x10;
/// The backends' numbers: on the other node, the endpoint here that sends, and its neighbour here.
const THERE: u32 = 7;
const SENDER: u32 = 5;
const NEIGHBOUR: u32 = 6;

/// A node with a VIP and published ports. 8080 leads to the other node, 8081 to the sending
/// endpoint.
fn node() -> Instance {
    let mut node = Instance::configured();
    let backend = |number: u32, last, at, flags| {
        let backend = Backend {
            vni: VNI,
            ipv4: [10, 64, 0, last],
            node: Address::from_v4(at),
            flags,
            ..Backend::default()
        };
        TableEntry::Backend(number, backend)
    };
    let key = |address| EndpointKey { vni: VNI, address };
    let mut entries = vec![
        backend(THERE, 70, REMOTE, 0),
        backend(SENDER, 5, HERE, LOCAL),
        backend(NEIGHBOUR, 6, HERE, LOCAL),
        TableEntry::BackendAddress(key(v4(70))),
        TableEntry::BackendAddress(key(v4(5))),
        TableEntry::BackendAddress(key(v4(6))),
        vip(0),
    ];
    for (port, first) in [(8080, 0), (8081, 16)] {
        let key = PublishedKey { port: u16::to_be_bytes(port), protocol: 6, ..PublishedKey::default() };
        let target = u16::to_be_bytes(80);
        let value = Published { first, size: 1, vni: VNI, target, ..Published::default() };
        entries.push(TableEntry::Published(key, value));
    }
    for (first, number) in [(0, THERE), (16, SENDER), (32, NEIGHBOUR)] {
        node.datapath.write_backend_tables(first, &[number]).expect("written");
    }
    node.datapath.put_tables(&entries).expect("written");
    node
}

fn vip(first: u32) -> TableEntry {
    TableEntry::Service(EndpointKey { vni: VNI, address: v4(40) }, Service { first, size: 1, flags: 0 })
}

/// A TCP segment with the right checksums.
fn segment(source: ([u8; 4], u16), destination: ([u8; 4], u16), flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(source.1.to_be_bytes());
    segment.extend(destination.1.to_be_bytes());
    segment.extend([0, 0, 0, 10, 0, 0, 0, 20, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    segment.extend(b"some data");
    let length = u8::try_from(segment.len()).expect("short");
    let sum = checksum(&[&source.0[..], &destination.0, &[0, 6, 0, length], &segment].concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4(source.0, destination.0, 6, &segment)
}

fn from_endpoint(packet: &[u8]) -> Vec<u8> {
    frame(Mac([2, 0x42, packet[16], packet[17], packet[18], packet[19]]), mac(5), 0x0800, packet)
}

fn from_outside(packet: &[u8]) -> Vec<u8> {
    frame(Mac([0; 6]), Mac([2, 0, 0, 0, 0, 3]), 0x0800, packet)
}

/// Asserts that a packet is between those two, and that its checksums are right.
#[track_caller]
fn is_between(packet: &[u8], source: ([u8; 4], u16), destination: ([u8; 4], u16)) {
    assert_eq!(packet[12..20], [source.0, destination.0].concat());
    assert_eq!(packet[20..24], [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat());
    assert_eq!(checksum(&packet[..20]), 0, "IPv4 header");
    let length = u8::try_from(packet.len() - 20).expect("short");
    assert_eq!(checksum(&[&packet[12..20], &[0, 6, 0, length], &packet[20..]].concat()), 0, "TCP");
}

#[test]
fn a_vip_and_its_replies_are_translated_on_the_fast_path_too() {
    let mut node = node();
    let (own, backend) = ((OWN, 4000), (BACKEND, 80));
    for flags in [SYN, ACK] {
        let outcome = node.run(ENDPOINT, &from_endpoint(&segment(own, (VIP, 80), flags)));
        outcome.is(REDIRECT, VNI, Reason::ForwardedRemote);
        assert_eq!(outcome.frame[26..34], [HERE, REMOTE].concat(), "outer addresses");
        assert_eq!(checksum(&outcome.frame[14..34]), 0, "outer header");
        assert_eq!(outcome.frame[50..64], [&mac(70).0[..], &mac(5).0, &[8, 0]].concat());
        is_between(&outcome.frame[64..], own, backend);

        let reply = frame(mac(5), mac(70), 0x0800, &segment(backend, own, flags | ACK));
        let outcome = node.run(UNDERLAY, &vxlan(REMOTE, VNI, &reply));
        outcome.is(REDIRECT, VNI, Reason::Received);
        assert_eq!(outcome.frame[..14], reply[..14]);
        is_between(&outcome.frame[14..], (VIP, 80), own);
    }
}

#[test]
fn a_vip_of_a_neighbour_is_delivered_on_the_fast_path_too() {
    let mut node = node();
    node.datapath.put_tables(&[vip(32)]).expect("written");
    let outcome = node.run(ENDPOINT, &from_endpoint(&segment((OWN, 4000), (VIP, 80), ACK)));
    outcome.is(REDIRECT, VNI, Reason::ForwardedLocal);
    assert_eq!(outcome.frame[..14], [&mac(6).0[..], &mac(5).0, &[8, 0]].concat());
    is_between(&outcome.frame[14..], (OWN, 4000), ([10, 64, 0, 6], 80));
}

#[test]
fn a_published_port_is_reached_through_another_node_on_the_fast_path_too() {
    let mut node = node();
    let (client, published) = ((CLIENT, 5000), (HERE, 8080));
    for flags in [SYN, ACK] {
        let packet = segment(client, published, flags);
        let outcome = node.run(UNDERLAY, &from_outside(&packet));
        outcome.is(REDIRECT, VNI, Reason::Published);
        assert_eq!(outcome.frame[26..34], [HERE, REMOTE].concat(), "outer addresses");
        assert_eq!(checksum(&outcome.frame[14..34]), 0, "outer header");
        assert_eq!(outcome.frame[46..49], published_vni(THERE).0[1..]);
        assert_eq!(outcome.frame[64..], one_hop_further(&packet));

        let reply = segment(published, client, flags | ACK);
        let arrived = vxlan(REMOTE, Vni::new(0x00C0_0000 | THERE), &from_outside(&reply));
        let outcome = node.run(UNDERLAY, &arrived);
        outcome.is(REDIRECT, Vni::NONE, Reason::PublishedReply);
        assert_eq!(outcome.frame[14..], reply);
    }
}

#[test]
fn a_published_ports_backend_is_reached_and_answers_on_the_fast_path_too() {
    let mut node = node();
    let (client, published, own) = ((CLIENT, 5000), (REMOTE, 8081), (OWN, 80));
    for flags in [SYN, ACK] {
        let arrived = vxlan(REMOTE, published_vni(SENDER), &from_outside(&segment(client, published, flags)));
        let outcome = node.run(UNDERLAY, &arrived);
        outcome.is(REDIRECT, VNI, Reason::Received);
        assert_eq!(outcome.frame[..6], mac(5).0);
        is_between(&outcome.frame[14..], client, own);

        let outcome = node.run(ENDPOINT, &from_endpoint(&segment(own, client, flags | ACK)));
        outcome.is(REDIRECT, VNI, Reason::PublishedReply);
        assert_eq!(outcome.frame[26..34], [HERE, REMOTE].concat(), "outer addresses");
        assert_eq!(outcome.frame[46..49], Vni::new(0x00C0_0000 | SENDER).0[1..]);
        is_between(&outcome.frame[64..], published, client);
    }
}

#[test]
fn a_published_port_of_this_node_answers_on_the_fast_path_too() {
    let mut node = node();
    let (client, published, own) = ((CLIENT, 5000), (HERE, 8081), (OWN, 80));
    for flags in [SYN, ACK] {
        let outcome = node.run(UNDERLAY, &from_outside(&segment(client, published, flags)));
        outcome.is(REDIRECT, VNI, Reason::Published);
        is_between(&outcome.frame[14..], client, own);
        let outcome = node.run(ENDPOINT, &from_endpoint(&segment(own, client, flags | ACK)));
        outcome.is(REDIRECT, VNI, Reason::PublishedReply);
        is_between(&outcome.frame[14..], published, client);
    }
}

#[test]
fn a_known_flow_of_a_backend_that_goes_is_reset() {
    let mut node = node();
    let packet = from_endpoint(&segment((OWN, 4000), (VIP, 80), ACK));
    node.run(ENDPOINT, &packet).is(REDIRECT, VNI, Reason::ForwardedRemote);
    node.datapath.delete_tables(&[TableKey::Backend(THERE)]).expect("removed");
    node.run(ENDPOINT, &packet).is(REDIRECT, VNI, Reason::RefusalAnswered);
}

#[test]
fn a_connection_that_begins_anew_takes_nothing_of_the_one_before() {
    let mut node = node();
    let packet = |flags| from_endpoint(&segment((OWN, 4000), (VIP, 80), flags));
    node.run(ENDPOINT, &packet(ACK)).is(REDIRECT, VNI, Reason::ForwardedRemote);
    // The flow stays where it is though the table changes, and is known again.
    node.datapath.put_tables(&[vip(32)]).expect("written");
    node.run(ENDPOINT, &packet(ACK)).is(REDIRECT, VNI, Reason::ForwardedRemote);
    node.run(ENDPOINT, &packet(SYN)).is(REDIRECT, VNI, Reason::ForwardedLocal);
    node.run(ENDPOINT, &packet(ACK)).is(REDIRECT, VNI, Reason::ForwardedLocal);
}

#[test]
fn replies_to_a_direct_connection_between_the_ports_of_a_known_one_are_left_alone() {
    let mut node = node();
    let (own, backend) = ((OWN, 4000), (BACKEND, 80));
    let reply = frame(mac(5), mac(70), 0x0800, &segment(backend, own, ACK));
    node.run(ENDPOINT, &from_endpoint(&segment(own, (VIP, 80), ACK)));
    let outcome = node.run(UNDERLAY, &vxlan(REMOTE, VNI, &reply));
    is_between(&outcome.frame[14..], (VIP, 80), own);
    node.run(ENDPOINT, &from_endpoint(&segment(own, backend, SYN)));
    let outcome = node.run(UNDERLAY, &vxlan(REMOTE, VNI, &reply));
    is_between(&outcome.frame[14..], backend, own);
}

#[test]
fn what_a_direct_connection_left_known_is_translated_once_its_backend_begins_a_vips_between_its_ports() {
    let mut node = node();
    let (own, backend) = ((OWN, 4000), (BACKEND, 80));
    let reply = |flags| vxlan(REMOTE, VNI, &frame(mac(5), mac(70), 0x0800, &segment(backend, own, flags)));
    let outcome = node.run(UNDERLAY, &reply(ACK));
    is_between(&outcome.frame[14..], backend, own);
    node.run(ENDPOINT, &from_endpoint(&segment(own, (VIP, 80), SYN)));
    for (flags, from) in [(ACK, backend), (SYN | ACK, (VIP, 80)), (ACK, (VIP, 80))] {
        let outcome = node.run(UNDERLAY, &reply(flags));
        is_between(&outcome.frame[14..], from, own);
    }
}

#[test]
fn a_node_that_leaves_is_no_longer_believed_about_known_flows() {
    let mut node = node();
    let packet = segment((CLIENT, 5000), (REMOTE, 8081), ACK);
    let arrived = vxlan(REMOTE, published_vni(SENDER), &from_outside(&packet));
    node.run(UNDERLAY, &arrived).is(REDIRECT, VNI, Reason::Received);
    node.datapath.delete(&MapKey::Member(Address::from_v4(REMOTE))).expect("removed");
    node.run(UNDERLAY, &arrived).is(DROP, Vni::NONE, Reason::NotMember);
    node.put(MapEntry::Member(Address::from_v4(REMOTE), Member::default()));
    node.run(UNDERLAY, &arrived).is(REDIRECT, VNI, Reason::Received);
}

/// A fragment of a segment to a published port. The kernel of the test's namespace forwards to no
/// stand-in.
#[test]
fn a_first_fragment_after_a_later_one_is_dropped_where_the_kernel_puts_none_in_order() {
    let mut node = node();
    let fragment = |number: u8, offset: u8, more: bool| {
        let mut packet = segment((CLIENT, 5000), (HERE, 8080), ACK);
        packet[4..8].copy_from_slice(&[0, number, if more { 0x20 } else { 0 }, offset]);
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        from_outside(&packet)
    };
    node.run(UNDERLAY, &fragment(1, 5, false)).passed();
    node.run(UNDERLAY, &fragment(1, 0, true)).is(DROP, Vni::NONE, Reason::FragmentWithoutFirst);
    for (offset, more) in [(0, true), (5, false)] {
        node.run(UNDERLAY, &fragment(2, offset, more)).is(REDIRECT, VNI, Reason::Published);
    }
}
