//! What comes from other nodes.

use mesh_ebpf_types::{
    Address, Config, Encapsulation, MapEntry, MapKey, PROBE_REPLY_VNI, PROBE_REQUEST_VNI, ProgramKind,
    Reason, Vni,
};
use mesh_kernel::programs::Programs;

use crate::support::{
    DROP, ENCRYPTED_VNI, Instance, LOCAL, PASS, REDIRECT, REMOTE, VNI, config, frame, ipv4, ipv6, mac, udp,
    v6, vxlan,
};

const UNDERLAY: ProgramKind = ProgramKind::Underlay;
const STRANGER: [u8; 4] = [192, 168, 77, 200];

fn inner(payload: &[u8]) -> Vec<u8> {
    frame(mac(5), mac(70), 0x0800, &ipv4([10, 64, 0, 70], [10, 64, 0, 5], 17, &udp(1, 2, payload)))
}

#[test]
fn vxlan_from_a_member_is_delivered_without_its_outer_headers() {
    let mut node = Instance::configured();
    let outcome = node.run(UNDERLAY, &vxlan(REMOTE, VNI, &inner(b"hello")));
    outcome.is(REDIRECT, VNI, Reason::Received);
    assert_eq!(outcome.frame, inner(b"hello"));
}

#[test]
fn ipv6_in_vxlan_is_delivered() {
    let mut node = Instance::configured();
    let packet = ipv6(v6(70), v6(5), 17, 64, &udp(1, 2, b"hello"));
    let to = |destination| frame(mesh_ebpf_types::Mac(destination), mac(70), 0x86dd, &packet);
    for destination in [[2, 0x46, 0, 0, 0, 5], [2, 0x47, 0, 0, 0, 0]] {
        let outcome = node.run(UNDERLAY, &vxlan(REMOTE, VNI, &to(destination)));
        outcome.is(REDIRECT, VNI, Reason::Received);
        assert_eq!(outcome.frame, to(mac(5).0));
    }
}

#[test]
fn the_mac_names_the_receiver_not_the_destination() {
    let mut node = Instance::configured();
    let packet = frame(mac(6), mac(70), 0x0800, &ipv4([10, 64, 0, 70], [8, 8, 8, 8], 17, &udp(1, 2, b"")));
    let outcome = node.run(UNDERLAY, &vxlan(REMOTE, VNI, &packet));
    outcome.is(REDIRECT, VNI, Reason::Received);
}

#[test]
fn what_is_not_vxlan_to_this_node_passes_untouched() {
    let mut node = Instance::configured();
    let ours = vxlan(REMOTE, VNI, &inner(b"hello"));
    let changed = |offset: usize, value: u8| {
        let mut packet = ours.clone();
        packet[offset] = value;
        packet
    };
    let mut elsewhere = vec![
        ("another address", changed(33, 99)),
        ("another port", changed(37, 99)),
        ("TCP", changed(23, 6)),
        ("a first fragment", changed(20, 0x20)),
        ("a later fragment", changed(21, 1)),
        ("IP options", changed(14, 0x46)),
        ("IPv6", changed(12, 0x86)),
        ("another host's MAC", changed(5, 1)),
        ("a length past the frame", changed(16, 0xff)),
        ("UDP and IP that disagree on the length", changed(39, 1)),
        ("a UDP checksum, which the kernel verifies", changed(41, 1)),
        ("flags of an extension", changed(42, 0x88)),
        ("a mark of congestion, which the kernel hands on", changed(15, 3)),
    ];
    elsewhere.extend((34..50).map(|length| ("a truncated header", ours[..length].to_vec())));
    for (what, packet) in elsewhere {
        let outcome = node.run(UNDERLAY, &packet);
        assert_eq!((outcome.verdict, outcome.counted.as_slice()), (PASS, [].as_slice()), "{what}");
        assert_eq!(outcome.frame, packet, "{what}");
    }
}

#[test]
fn only_members_speak() {
    let mut node = Instance::configured();
    node.run(UNDERLAY, &vxlan(STRANGER, VNI, &inner(b""))).is(DROP, Vni::NONE, Reason::NotMember);
    node.run(UNDERLAY, &vxlan(STRANGER, PROBE_REQUEST_VNI, &[0; 16])).is(DROP, Vni::NONE, Reason::NotMember);
}

#[test]
fn a_change_of_any_entry_ends_what_was_remembered() {
    let mut node = Instance::configured();
    let packet = vxlan(REMOTE, VNI, &inner(b"hello"));
    node.run(UNDERLAY, &packet).is(REDIRECT, VNI, Reason::Received);
    node.datapath.delete(&MapKey::Member(Address::from_v4(REMOTE))).expect("deleted");
    node.run(UNDERLAY, &packet).is(DROP, Vni::NONE, Reason::NotMember);
}

#[test]
fn unknown_and_encrypted_networks_are_dropped() {
    let mut node = Instance::configured();
    node.run(UNDERLAY, &vxlan(REMOTE, Vni::new(9999), &inner(b""))).is(
        DROP,
        Vni::NONE,
        Reason::UnknownNetwork,
    );
    let outcome = node.run(UNDERLAY, &vxlan(REMOTE, ENCRYPTED_VNI, &inner(b"")));
    outcome.is(DROP, ENCRYPTED_VNI, Reason::EncryptedInClear);
}

#[test]
fn an_endpoint_that_is_not_here_is_a_drop() {
    let mut node = Instance::configured();
    let to = |last| {
        frame(mac(last), mac(70), 0x0800, &ipv4([10, 64, 0, 70], [10, 64, 0, last], 17, &udp(1, 2, b"")))
    };
    node.run(UNDERLAY, &vxlan(REMOTE, VNI, &to(9))).dropped(Reason::NoEndpoint);
    // Another node's address: never sent on.
    node.run(UNDERLAY, &vxlan(REMOTE, VNI, &to(71))).dropped(Reason::NoEndpoint);
}

#[test]
fn a_malformed_inner_frame_is_never_delivered() {
    let mut node = Instance::configured();
    let sound = inner(b"hello");
    for length in 0..sound.len() {
        let outcome = node.run(UNDERLAY, &vxlan(REMOTE, VNI, &sound[..length]));
        outcome.dropped(Reason::Malformed);
    }
    for ethertype in [0x0806, 0x8100, 0] {
        let other = frame(mac(5), mac(70), ethertype, &[0; 40]);
        node.run(UNDERLAY, &vxlan(REMOTE, VNI, &other)).dropped(Reason::UnsupportedProtocol);
    }
}

#[test]
fn udp_super_packets_go_through_the_vxlan_device() {
    let mut node = Instance::configured();
    let packet = vxlan(REMOTE, VNI, &inner(&[7; 2800]));
    let outcome = node.run_super(UNDERLAY, &packet, 1000);
    outcome.passed();
    assert_eq!(outcome.frame, packet);
}

#[test]
fn in_device_mode_members_packets_are_left_to_the_vxlan_device() {
    let mut node = Instance::configured();
    node.put(MapEntry::Config(Config { encapsulation: Encapsulation::Device as u8, ..config() }));
    node.run(UNDERLAY, &vxlan(REMOTE, VNI, &inner(b""))).passed();
    node.run(UNDERLAY, &vxlan(STRANGER, VNI, &inner(b""))).is(DROP, Vni::NONE, Reason::NotMember);
}

#[test]
fn a_node_that_is_not_configured_passes_everything() {
    let mut node = Instance::load();
    node.run(UNDERLAY, &vxlan(REMOTE, VNI, &inner(b""))).passed();
}

#[test]
fn a_probe_is_sent_back_as_its_answer() {
    let mut node = Instance::configured();
    let probe = vxlan(REMOTE, PROBE_REQUEST_VNI, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    let outcome = node.run(UNDERLAY, &probe);
    outcome.is(REDIRECT, Vni::NONE, Reason::ProbeAnswered);
    let mut answer = probe.clone();
    answer[..6].copy_from_slice(&probe[6..12]);
    answer[6..12].copy_from_slice(&probe[..6]);
    answer[26..34].copy_from_slice(&[LOCAL, REMOTE].concat());
    answer[46..49].copy_from_slice(&[0xff, 0xff, 0xff]);
    assert_eq!(outcome.frame, answer);
}

#[test]
fn a_probe_goes_to_the_device_that_takes_what_nodes_send_and_with_it_through_the_firewall() {
    let mut node = Instance::configured();
    node.put(MapEntry::Config(Config { encapsulation: Encapsulation::Device as u8, ..config() }));
    let probe = vxlan(REMOTE, PROBE_REQUEST_VNI, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    node.run(UNDERLAY, &probe).passed();
    // The device would not take it with the note that others were not answered.
    let mut unanswered = probe.clone();
    unanswered[49] = 1;
    let outcome = node.run_underlay(&unanswered);
    outcome.passed();
    assert_eq!(outcome.frame, probe);
}

#[test]
fn the_answer_to_a_probe_is_recorded_and_goes_no_further() {
    let mut node = Instance::configured();
    assert!(node.datapath.probe_replies().expect("replies").is_empty());
    let outcome = node.run(UNDERLAY, &vxlan(REMOTE, PROBE_REPLY_VNI, &[0; 16]));
    assert_eq!((outcome.verdict, outcome.counted.as_slice()), (DROP, [].as_slice()));
    let replies = node.datapath.probe_replies().expect("replies");
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the time");
    let age =
        std::time::Duration::from(now).checked_sub(replies[&Address::from_v4(REMOTE)]).expect("the past");
    assert!(age < std::time::Duration::from_secs(10), "{age:?}");
    node.datapath.retain_probe_replies(&[].into()).expect("forgotten");
    assert!(node.datapath.probe_replies().expect("replies").is_empty());
}

#[test]
fn the_overlay_program_drops_what_no_tunnel_brought() {
    let mut node = Instance::configured();
    let outcome = node.run(ProgramKind::Overlay, &inner(b""));
    outcome.is(DROP, Vni::NONE, Reason::UnknownNetwork);
}
