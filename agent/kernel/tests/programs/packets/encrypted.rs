//! Encrypted networks: into the WireGuard engine's device or nowhere, out of it from whom it says
//! or not at all.

use mesh_ebpf_types::{
    Address, Block, BlockKey, BlockKind, Config, EndpointKey, FrameTag, Mac, MapEntry, MapKey, Network,
    ProgramKind, Reason, Vni,
};
use mesh_kernel::programs::Programs;

use crate::support::{
    DROP, ENCRYPTED_VNI, IFINDEX, Instance, PREFIX6, REDIRECT, REMOTE, VNI, checksum, config, frame, ipv4,
    ipv6, mac, udp, v4, v6, vxlan,
};

const ENDPOINT: ProgramKind = ProgramKind::Endpoint;
const WIREGUARD: ProgramKind = ProgramKind::Wireguard;
const MTU: u32 = 1390;
const PEER: u16 = 0x1234;
const OTHER: u16 = 0x4321;
const THIRD: [u8; 4] = [192, 168, 77, 13];

/// The block from `.64` is `PEER`'s, that from `.128` of `OTHER`, that from `.192` of a node
/// without a key.
fn node() -> Instance {
    let mut node = Instance::configured();
    let network = Network { flags: mesh_ebpf_types::ENCRYPTED, mtu: MTU, prefix6: PREFIX6 };
    node.put(MapEntry::Network(VNI, network));
    node.put(MapEntry::Config(Config { wireguard_ifindex: IFINDEX, ..config() }));
    for (first, node_address, peer) in [(64, REMOTE, PEER), (128, THIRD, OTHER), (192, THIRD, 0)] {
        node.put(block(v4(first), 96 + 26, node_address, peer));
    }
    node.put(block(v6(64), 122, REMOTE, PEER));
    node
}

fn block(address: Address, prefix_bits: u8, node: [u8; 4], peer: u16) -> MapEntry {
    let key = BlockKey { vni: VNI, prefix_bits, address };
    let tunnel = Address::from_v4(node);
    MapEntry::Block(key, Block { tunnel, kind: BlockKind::Remote as u32, peer, ..Block::default() })
}

fn to(last: u8, payload: &[u8]) -> Vec<u8> {
    frame(mac(last), mac(5), 0x0800, &ipv4([10, 64, 0, 5], [10, 64, 0, last], 17, &udp(1, 2, payload)))
}

fn tag(vni: Vni, peer: u16) -> Mac {
    FrameTag { vni, peer }.mac()
}

/// From an address of the network to `.5`, as the engine writes it.
fn from(tag: Mac, last: u8) -> Vec<u8> {
    frame(mac(5), tag, 0x0800, &ipv4([10, 64, 0, last], [10, 64, 0, 5], 17, &udp(1, 2, b"hello")))
}

#[test]
fn a_packet_to_another_node_goes_to_the_engine_with_network_and_node_in_its_source_mac() {
    let mut node = node();
    for (last, peer) in [(70, PEER), (130, OTHER)] {
        let packet = to(last, b"hello");
        let outcome = node.run(ENDPOINT, &packet);
        outcome.is(REDIRECT, VNI, Reason::ForwardedRemote);
        let expected = [&packet[..6], &tag(VNI, peer).0, &packet[12..]].concat();
        assert_eq!(outcome.frame, expected, "nothing else is changed, and nothing added");
    }
    let packet = ipv6(v6(5), v6(70), 17, 64, &udp(1, 2, b"hello"));
    let outcome = node.run(ENDPOINT, &frame(Mac([2, 0x46, 0, 0, 0, 70]), mac(5), 0x86dd, &packet));
    outcome.is(REDIRECT, VNI, Reason::ForwardedRemote);
    assert_eq!(outcome.frame[6..12], tag(VNI, PEER).0);
}

#[test]
fn without_a_key_or_a_device_a_packet_is_dropped() {
    let mut node = node();
    node.run(ENDPOINT, &to(200, b"hello")).dropped(Reason::NoKey);
    node.run(ENDPOINT, &to(70, b"hello")).is(REDIRECT, VNI, Reason::ForwardedRemote);
    node.put(MapEntry::Config(config()));
    node.run(ENDPOINT, &to(70, b"hello")).dropped(Reason::NoKey);
    node.put(MapEntry::Config(Config { wireguard_ifindex: IFINDEX, ..config() }));
    node.run(ENDPOINT, &to(70, b"hello")).is(REDIRECT, VNI, Reason::ForwardedRemote);
    node.put(block(v4(64), 96 + 26, REMOTE, 0));
    node.run(ENDPOINT, &to(70, b"hello")).dropped(Reason::NoKey);
}

#[test]
fn a_way_in_the_clear_is_not_taken_any_more_once_the_network_is_encrypted() {
    let mut node = node();
    node.put(MapEntry::Network(VNI, Network { flags: 0, mtu: MTU, prefix6: PREFIX6 }));
    let outcome = node.run(ENDPOINT, &to(70, b"hello"));
    assert_eq!(outcome.frame.len(), to(70, b"hello").len() + 50);
    let network = Network { flags: mesh_ebpf_types::ENCRYPTED, mtu: MTU, prefix6: PREFIX6 };
    node.put(MapEntry::Network(VNI, network));
    assert_eq!(node.run(ENDPOINT, &to(70, b"hello")).frame[6..12], tag(VNI, PEER).0);
}

#[test]
fn packets_between_endpoints_of_this_node_stay_on_it() {
    let mut node = node();
    node.run(ENDPOINT, &to(6, b"hello")).is(REDIRECT, VNI, Reason::ForwardedLocal);
}

#[test]
fn who_sends_too_big_a_packet_is_told_how_big_it_may_be() {
    let mut node = node();
    let fits = vec![0; MTU as usize - 28];
    node.run(ENDPOINT, &to(70, &fits)).is(REDIRECT, VNI, Reason::ForwardedRemote);
    let outcome = node.run(ENDPOINT, &to(70, &[&fits[..], &[0]].concat()));
    outcome.is(REDIRECT, VNI, Reason::TooBigAnswered);
    let answer = &outcome.frame;
    assert_eq!((answer[34], answer[35]), (3, 4), "fragmentation needed");
    assert_eq!(u32::from(u16::from_be_bytes([answer[40], answer[41]])), MTU);
    assert_eq!(checksum(&answer[34..]), 0);
    // Its segments fit, whatever its own length.
    let super_packet = to(70, &vec![0; 2800]);
    node.run_super(ENDPOINT, &super_packet, 1000).is(REDIRECT, VNI, Reason::ForwardedRemote);
}

#[test]
fn what_a_node_sends_is_delivered_with_the_macs_that_containers_know() {
    let mut node = node();
    let packet = from(tag(VNI, PEER), 70);
    let outcome = node.run(WIREGUARD, &packet);
    outcome.is(REDIRECT, VNI, Reason::Received);
    assert_eq!(outcome.frame, [&mac(5).0[..], &mac(70).0, &packet[12..]].concat());
    let v6_packet = ipv6(v6(70), v6(5), 17, 64, &udp(1, 2, b"hello"));
    let outcome = node.run(WIREGUARD, &frame(mac(5), tag(VNI, PEER), 0x86dd, &v6_packet));
    outcome.is(REDIRECT, VNI, Reason::Received);
}

#[test]
fn a_node_sends_from_its_own_addresses_only() {
    let mut node = node();
    node.run(WIREGUARD, &from(tag(VNI, PEER), 130)).dropped(Reason::SpoofedPeer);
    node.run(WIREGUARD, &from(tag(VNI, OTHER), 70)).dropped(Reason::SpoofedPeer);
    node.run(WIREGUARD, &from(tag(VNI, OTHER), 130)).is(REDIRECT, VNI, Reason::Received);
    for (who, last) in
        [("this node's", 6), ("the gateway's", 1), ("nobody's", 63), ("one without a key", 200)]
    {
        let outcome = node.run(WIREGUARD, &from(tag(VNI, PEER), last));
        assert_eq!(outcome.counted, [(VNI, Reason::SpoofedPeer)], "{who}");
    }
    node.run(WIREGUARD, &from(tag(VNI, 0), 200)).dropped(Reason::SpoofedPeer);
    let foreign =
        |source| frame(mac(5), tag(VNI, PEER), 0x0800, &ipv4(source, [10, 64, 0, 5], 17, &udp(1, 2, b"")));
    // A container that routes for others; but not into the network of others here.
    node.run(WIREGUARD, &foreign([203, 0, 113, 9])).is(REDIRECT, VNI, Reason::Received);
    node.run(WIREGUARD, &foreign([10, 65, 0, 5])).dropped(Reason::SpoofedPeer);
    // The most specific block decides: an address that OTHER borrowed.
    node.put(block(v4(71), 128, THIRD, OTHER));
    node.run(WIREGUARD, &from(tag(VNI, PEER), 71)).dropped(Reason::SpoofedPeer);
    node.run(WIREGUARD, &from(tag(VNI, OTHER), 71)).is(REDIRECT, VNI, Reason::Received);
}

#[test]
fn only_encrypted_networks_that_are_here_are_delivered() {
    let mut node = node();
    let unknown = node.run(WIREGUARD, &from(tag(Vni::new(9999), PEER), 70));
    unknown.is(DROP, Vni::NONE, Reason::UnknownNetwork);
    node.put(MapEntry::Network(VNI, Network { flags: 0, mtu: MTU, prefix6: PREFIX6 }));
    let clear = node.run(WIREGUARD, &from(tag(VNI, PEER), 70));
    clear.is(DROP, Vni::NONE, Reason::UnknownNetwork);
}

#[test]
fn an_endpoint_that_is_gone_and_a_frame_that_is_none_are_dropped() {
    let mut node = node();
    node.datapath.delete(&MapKey::Endpoint(EndpointKey { vni: VNI, address: v4(5) })).expect("deleted");
    node.run(WIREGUARD, &from(tag(VNI, PEER), 70)).dropped(Reason::NoEndpoint);
    let mut longer_than_it_is = from(tag(VNI, PEER), 70);
    longer_than_it_is[16] = 0xff;
    node.run(WIREGUARD, &longer_than_it_is).is(DROP, Vni::NONE, Reason::Malformed);
    node.run(WIREGUARD, &from(Mac([4; 6]), 70)).is(DROP, Vni::NONE, Reason::SpoofedMac);
    node.run(WIREGUARD, &frame(mac(5), tag(VNI, PEER), 0x0806, &[0; 28])).is(
        DROP,
        Vni::NONE,
        Reason::UnsupportedProtocol,
    );
}

#[test]
fn in_the_clear_an_encrypted_network_is_dropped_whoever_sends_it() {
    let mut node = node();
    let inner = frame(mac(5), mac(70), 0x0800, &ipv4([10, 64, 0, 70], [10, 64, 0, 5], 17, &udp(1, 2, b"")));
    let clear = node.run(ProgramKind::Underlay, &vxlan(REMOTE, VNI, &inner));
    clear.dropped(Reason::EncryptedInClear);
    let clear = node.run(ProgramKind::Underlay, &vxlan(REMOTE, ENCRYPTED_VNI, &inner));
    clear.is(DROP, ENCRYPTED_VNI, Reason::EncryptedInClear);
}
