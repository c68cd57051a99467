//! What containers send.

use mesh_ebpf_types::{
    ALLOW_FORWARDING, Address, BlockKind, Config, Encapsulation, EndpointKey, HOST_DNS, INTERNAL, Interface,
    Mac, MapEntry, MapKey, Network, ProgramKind, Reason,
};
use mesh_kernel::programs::Programs;

use crate::support::{
    DROP, HOST_MAC, IFINDEX, Instance, LOCAL, MTU, PREFIX6, REDIRECT, REMOTE, VNI, block, checksum, config,
    frame, from_endpoint, ipv4, ipv6, mac, udp, v4, v6,
};

const ENDPOINT: ProgramKind = ProgramKind::Endpoint;
const BROADCAST: Mac = Mac([0xff; 6]);

fn interface(flags: u16) -> MapEntry {
    MapEntry::Interface(
        IFINDEX,
        Interface { vni: VNI, ipv4: [10, 64, 0, 5], ipv6: v6(5), mac: mac(5), flags },
    )
}

#[test]
fn a_packet_to_a_local_endpoint_goes_straight_to_it_with_its_mac() {
    let mut node = Instance::configured();
    // A MAC of the endpoint's own choice: the sender knows only the derived one.
    node.put(MapEntry::Endpoint(
        mesh_ebpf_types::EndpointKey { vni: VNI, address: v4(6) },
        mesh_ebpf_types::Endpoint { ifindex: IFINDEX, mac: Mac([2, 1, 2, 3, 4, 5]), flags: 0 },
    ));
    let packet = from_endpoint([10, 64, 0, 6], b"hello");
    let outcome = node.run(ENDPOINT, &packet);
    outcome.is(REDIRECT, VNI, Reason::ForwardedLocal);
    assert_eq!(outcome.frame[..6], [2, 1, 2, 3, 4, 5]);
    assert_eq!(outcome.frame[6..], packet[6..]);
}

#[test]
fn a_packet_to_another_node_leaves_in_vxlan() {
    let mut node = Instance::configured();
    let packet = from_endpoint([10, 64, 0, 70], b"hello");
    let outcome = node.run(ENDPOINT, &packet);
    outcome.is(REDIRECT, VNI, Reason::ForwardedRemote);
    assert_eq!(outcome.frame[50..], packet);
    let outer = &outcome.frame[..50];
    assert_eq!(outer[12..14], [8, 0]);
    let length = u16::try_from(packet.len()).expect("short");
    assert_eq!(outer[14..18], [[0x45, 0].as_slice(), &(length + 36).to_be_bytes()].concat());
    assert_eq!(outer[20..24], [0x40, 0, 64, 17], "DF, TTL, UDP");
    assert_eq!(checksum(&outer[14..34]), 0);
    assert_eq!(outer[26..34], [LOCAL, REMOTE].concat());
    let source_port = u16::from_be_bytes([outer[34], outer[35]]);
    assert!((32768..61000).contains(&source_port), "{source_port}");
    assert_eq!(outer[36..42], [&4789_u16.to_be_bytes()[..], &(length + 16).to_be_bytes(), &[0, 0]].concat());
    assert_eq!(outer[42..50], [8, 0, 0, 0, 0, 0x10, 0, 0]);
}

#[test]
fn a_change_of_any_entry_ends_what_was_remembered() {
    let mut node = Instance::configured();
    let (remote, local) = (from_endpoint([10, 64, 0, 70], b"hello"), from_endpoint([10, 64, 0, 6], b"hello"));
    node.run(ENDPOINT, &remote).is(REDIRECT, VNI, Reason::ForwardedRemote);
    node.run(ENDPOINT, &local).is(REDIRECT, VNI, Reason::ForwardedLocal);
    node.put(block(VNI, v4(64), 96 + 26, BlockKind::Unassigned, Address::NONE));
    node.run(ENDPOINT, &remote).dropped(Reason::NoEndpoint);
    node.datapath.delete(&MapKey::Endpoint(EndpointKey { vni: VNI, address: v4(6) })).expect("deleted");
    node.run(ENDPOINT, &local).dropped(Reason::NoEndpoint);
}

#[test]
fn flows_leave_by_different_ports_and_each_by_its_own() {
    let mut node = Instance::configured();
    let mut ports = std::collections::BTreeSet::new();
    for flow in 0..64 {
        let packet = ipv4([10, 64, 0, 5], [10, 64, 0, 70], 17, &udp(1000 + flow, 2, b"hello"));
        let outcome = node.run(ENDPOINT, &frame(mac(70), mac(5), 0x0800, &packet));
        ports.insert([outcome.frame[34], outcome.frame[35]]);
    }
    assert!(ports.len() > 60, "{}", ports.len());
}

#[test]
fn an_ipv6_packet_to_another_node_leaves_in_vxlan_over_ipv4() {
    let mut node = Instance::configured();
    let packet = frame(
        Mac([2, 0x46, 0, 0, 0, 70]),
        mac(5),
        0x86dd,
        &ipv6(v6(5), v6(70), 17, 64, &udp(1, 2, b"hello")),
    );
    let outcome = node.run(ENDPOINT, &packet);
    outcome.is(REDIRECT, VNI, Reason::ForwardedRemote);
    assert_eq!(outcome.frame[12..14], [8, 0]);
    assert_eq!(outcome.frame[50..], packet);
}

#[test]
fn the_outer_header_carries_ecn_but_not_dscp() {
    let mut node = Instance::configured();
    for (inner, outer) in [(0b1011_1000, 0), (0b10, 0b10), (0b01, 0b01), (0b11, 0b10)] {
        let mut packet = from_endpoint([10, 64, 0, 70], b"hello");
        packet[15] = inner;
        assert_eq!(node.run(ENDPOINT, &packet).frame[15], outer);
    }
}

#[test]
fn in_device_mode_the_vxlan_device_gets_the_frame_as_it_is() {
    let mut node = Instance::configured();
    node.put(MapEntry::Config(Config { encapsulation: Encapsulation::Device as u8, ..config() }));
    let packet = from_endpoint([10, 64, 0, 70], b"hello");
    let outcome = node.run(ENDPOINT, &packet);
    outcome.is(REDIRECT, VNI, Reason::ForwardedRemote);
    assert_eq!(outcome.frame, packet);
}

#[test]
fn the_next_hop_is_in_the_mac_so_a_container_can_route_for_others() {
    let mut node = Instance::configured();
    let outside = ipv4([10, 64, 0, 5], [8, 8, 8, 8], 17, &udp(1, 2, b""));
    let local = node.run(ENDPOINT, &frame(mac(6), mac(5), 0x0800, &outside));
    local.is(REDIRECT, VNI, Reason::ForwardedLocal);
    let remote = node.run(ENDPOINT, &frame(mac(70), mac(5), 0x0800, &outside));
    remote.is(REDIRECT, VNI, Reason::ForwardedRemote);
    assert_eq!(remote.frame[30..34], REMOTE);
}

#[test]
fn a_mac_that_names_nobody_leaves_the_choice_to_the_destination() {
    let mut node = Instance::configured();
    let packet = ipv4([10, 64, 0, 5], [10, 64, 0, 70], 17, &udp(1, 2, b""));
    for destination in [Mac([2, 0x47, 0, 0, 0, 0]), Mac([2, 9, 9, 9, 9, 9]), mac(1)] {
        let outcome = node.run(ENDPOINT, &frame(destination, mac(5), 0x0800, &packet));
        outcome.is(REDIRECT, VNI, Reason::ForwardedRemote);
    }
}

#[test]
fn the_gateway_and_the_outside_are_reached_through_the_host_leg() {
    let mut node = Instance::configured();
    for (destination, port) in [([10, 64, 0, 1], 53), ([8, 8, 8, 8], 2)] {
        let packet = ipv4([10, 64, 0, 5], destination, 17, &udp(1, port, b""));
        let outcome = node.run(ENDPOINT, &frame(mac(1), mac(5), 0x0800, &packet));
        outcome.is(REDIRECT, VNI, Reason::ToHost);
        assert_eq!(outcome.frame[..6], HOST_MAC.0);
    }
    let packet = ipv6(v6(5), Address([0x20; 16]), 17, 64, &udp(1, 2, b""));
    let outcome = node.run(ENDPOINT, &frame(Mac([2, 0x46, 0, 0, 0, 1]), mac(5), 0x86dd, &packet));
    outcome.is(REDIRECT, VNI, Reason::ToHost);
}

#[test]
fn an_internal_network_reaches_its_gateway_and_nothing_outside() {
    let mut node = Instance::configured();
    node.put(MapEntry::Network(VNI, Network { flags: INTERNAL | HOST_DNS, mtu: MTU, prefix6: PREFIX6 }));
    let to =
        |destination| frame(mac(1), mac(5), 0x0800, &ipv4([10, 64, 0, 5], destination, 17, &udp(1, 53, b"")));
    node.run(ENDPOINT, &to([10, 64, 0, 1])).is(REDIRECT, VNI, Reason::ToHost);
    let told = node.run(ENDPOINT, &to([8, 8, 8, 8]));
    told.is(REDIRECT, VNI, Reason::Internal);
    // "Network unreachable", to whom it was from.
    assert_eq!((&told.frame[26..34], &told.frame[34..36]), (&[8, 8, 8, 8, 10, 64, 0, 5][..], &[3, 0][..]));
    assert_eq!([&told.frame[..6], &told.frame[6..12]], [&mac(5).0[..], &mac(1).0]);
    assert_eq!((checksum(&told.frame[14..34]), checksum(&told.frame[34..])), (0, 0));
    let packet = ipv6(v6(5), Address([0x20; 16]), 17, 64, &udp(1, 2, b""));
    let told = node.run(ENDPOINT, &frame(Mac([2, 0x46, 0, 0, 0, 1]), mac(5), 0x86dd, &packet));
    told.is(REDIRECT, VNI, Reason::Internal);
    assert_eq!(told.frame[54..56], [1, 0]);
    // Only what begins something is answered.
    let segment = |flags| [0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 0, 0, 0, 0, 0];
    let tcp = |flags| frame(mac(1), mac(5), 0x0800, &ipv4([10, 64, 0, 5], [8, 8, 8, 8], 6, &segment(flags)));
    node.run(ENDPOINT, &tcp(2)).is(REDIRECT, VNI, Reason::Internal);
    node.run(ENDPOINT, &tcp(0x10)).dropped(Reason::Internal);
    // A published port of the host is outside, too.
    node.run(ENDPOINT, &to(LOCAL)).is(REDIRECT, VNI, Reason::Internal);
}

#[test]
fn another_network_is_out_of_reach() {
    let mut node = Instance::configured();
    let packet = ipv4([10, 64, 0, 5], [10, 65, 0, 5], 17, &udp(1, 2, b""));
    for destination in [mac(1), Mac([2, 0x42, 10, 65, 0, 5]), Mac([2, 9, 9, 9, 9, 9])] {
        node.run(ENDPOINT, &frame(destination, mac(5), 0x0800, &packet)).dropped(Reason::Isolated);
    }
}

#[test]
fn an_address_that_nobody_has_is_a_drop() {
    let mut node = Instance::configured();
    node.run(ENDPOINT, &from_endpoint([10, 64, 0, 9], b"")).dropped(Reason::NoEndpoint);
    node.run(ENDPOINT, &from_endpoint([10, 64, 3, 9], b"")).dropped(Reason::NoEndpoint);
    let link_local = Address([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    let packet = ipv6(v6(5), link_local, 17, 64, &udp(1, 2, b""));
    node.run(ENDPOINT, &frame(Mac([2, 9, 9, 9, 9, 9]), mac(5), 0x86dd, &packet)).dropped(Reason::NoEndpoint);
}

#[test]
fn a_foreign_source_is_spoofing() {
    let mut node = Instance::configured();
    let packet = ipv4([10, 64, 0, 9], [10, 64, 0, 6], 17, &udp(1, 2, b""));
    node.run(ENDPOINT, &frame(mac(6), mac(5), 0x0800, &packet)).dropped(Reason::SpoofedIp);
    node.run(ENDPOINT, &frame(mac(6), mac(9), 0x0800, &packet)).dropped(Reason::SpoofedMac);
    let packet = ipv6(v6(9), v6(6), 17, 64, &udp(1, 2, b""));
    node.run(ENDPOINT, &frame(Mac([2, 0x46, 0, 0, 0, 6]), mac(5), 0x86dd, &packet))
        .dropped(Reason::SpoofedIp);
}

#[test]
fn no_address_is_not_an_address_that_one_may_send_from() {
    let mut node = Instance::configured();
    let nobody = Interface { vni: VNI, ipv4: [0; 4], ipv6: Address::NONE, mac: mac(5), flags: 0 };
    node.put(MapEntry::Interface(IFINDEX, nobody));
    let packet = ipv6(Address::NONE, Address([0x20; 16]), 17, 64, &udp(1, 2, b""));
    node.run(ENDPOINT, &frame(Mac([2, 0x46, 0, 0, 0, 1]), mac(5), 0x86dd, &packet))
        .dropped(Reason::SpoofedIp);
    let packet = ipv4([0; 4], [8, 8, 8, 8], 17, &udp(1, 2, b""));
    node.run(ENDPOINT, &frame(mac(1), mac(5), 0x0800, &packet)).dropped(Reason::SpoofedIp);
}

/// Masqueraded, it would reach the other node from this one's address.
#[test]
fn nobody_speaks_vxlan_through_the_host() {
    let mut node = Instance::configured();
    // Not even where every other socket of hosts is reached.
    let flags = mesh_ebpf_types::HOST_ALL;
    node.put(MapEntry::Network(VNI, Network { flags, mtu: MTU, prefix6: PREFIX6 }));
    let vxlan = udp(1, 4789, &[8, 0, 0, 0, 0, 0x10, 1, 0]);
    for destination in [REMOTE, LOCAL, [10, 64, 0, 1], [8, 8, 8, 8]] {
        let mut packet = ipv4([10, 64, 0, 5], destination, 17, &vxlan);
        let to = |packet: &[u8]| frame(mac(1), mac(5), 0x0800, packet);
        node.run(ENDPOINT, &to(&packet)).dropped(Reason::Isolated);
        // The first fragment has the port. A later one has none, whatever its bytes say.
        packet[6] = 0x20;
        node.run(ENDPOINT, &to(&packet)).dropped(Reason::Isolated);
        packet[7] = 2;
        node.run(ENDPOINT, &to(&packet)).is(REDIRECT, VNI, Reason::ToHost);
        let options = [&[0x46][..], &packet[1..6], &[0, 0], &packet[8..20], &[1; 4], &vxlan].concat();
        node.run(ENDPOINT, &to(&options)).dropped(Reason::Isolated);
        let tcp = ipv4([10, 64, 0, 5], destination, 6, &vxlan);
        node.run(ENDPOINT, &to(&tcp)).is(REDIRECT, VNI, Reason::ToHost);
    }
    let to = |next, payload: &[u8]| {
        let packet = ipv6(v6(5), Address([0x20; 16]), next, 64, payload);
        frame(Mac([2, 0x46, 0, 0, 0, 1]), mac(5), 0x86dd, &packet)
    };
    node.run(ENDPOINT, &to(17, &vxlan)).dropped(Reason::Isolated);
    let options = [&[17, 0, 1, 4, 0, 0, 0, 0], &vxlan[..]].concat();
    node.run(ENDPOINT, &to(60, &options)).dropped(Reason::Isolated);
}

#[test]
fn who_may_forward_may_send_from_other_addresses_but_not_macs() {
    let mut node = Instance::configured();
    node.put(interface(ALLOW_FORWARDING));
    let packet = ipv4([8, 8, 8, 8], [10, 64, 0, 6], 17, &udp(1, 2, b""));
    node.run(ENDPOINT, &frame(mac(6), mac(5), 0x0800, &packet)).is(REDIRECT, VNI, Reason::ForwardedLocal);
    node.run(ENDPOINT, &frame(mac(6), mac(9), 0x0800, &packet)).dropped(Reason::SpoofedMac);
}

#[test]
fn an_encrypted_network_never_leaves_in_the_clear() {
    let mut node = Instance::configured();
    node.put(MapEntry::Network(
        VNI,
        Network { flags: mesh_ebpf_types::ENCRYPTED, mtu: MTU, prefix6: PREFIX6 },
    ));
    node.run(ENDPOINT, &from_endpoint([10, 64, 0, 70], b"")).dropped(Reason::NoKey);
    node.run(ENDPOINT, &from_endpoint([10, 64, 0, 6], b"")).is(REDIRECT, VNI, Reason::ForwardedLocal);
}

#[test]
fn broadcast_and_multicast_are_dropped() {
    let mut node = Instance::configured();
    let packet = |destination| ipv4([10, 64, 0, 5], destination, 17, &udp(1, 2, b""));
    node.run(ENDPOINT, &frame(BROADCAST, mac(5), 0x0800, &packet([255; 4]))).dropped(Reason::Multicast);
    node.run(ENDPOINT, &frame(BROADCAST, mac(5), 0x0800, &packet([10, 64, 0, 6]))).dropped(Reason::Multicast);
    node.run(ENDPOINT, &frame(mac(6), mac(5), 0x0800, &packet([224, 0, 0, 251]))).dropped(Reason::Multicast);
    let all_routers = Address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    let solicitation = ipv6(v6(5), all_routers, 58, 255, &[133, 0, 0, 0, 0, 0, 0, 0]);
    let outcome = node.run(ENDPOINT, &frame(Mac([0x33, 0x33, 0, 0, 0, 2]), mac(5), 0x86dd, &solicitation));
    outcome.dropped(Reason::Multicast);
    let report = ipv6(v6(5), all_routers, 58, 1, &[143, 0, 0, 0, 0, 0, 0, 0]);
    node.run(ENDPOINT, &frame(Mac([0x33, 0x33, 0, 0, 0, 2]), mac(5), 0x86dd, &report))
        .dropped(Reason::Multicast);
}

fn arp(target: [u8; 4], sender: [u8; 4]) -> Vec<u8> {
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    request.extend(mac(5).0);
    request.extend(sender);
    request.extend([0; 6]);
    request.extend(target);
    frame(BROADCAST, mac(5), 0x0806, &request)
}

#[test]
fn arp_is_answered_for_every_address_of_the_subnet_with_the_derived_mac() {
    let mut node = Instance::configured();
    for target in [[10, 64, 0, 1], [10, 64, 0, 6], [10, 64, 0, 70], [10, 64, 7, 7]] {
        for sender in [[10, 64, 0, 5], [0; 4]] {
            let outcome = node.run(ENDPOINT, &arp(target, sender));
            outcome.is(REDIRECT, VNI, Reason::NeighbourAnswered);
            let [a, b, c, d] = target;
            let mut answer = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0x42, a, b, c, d, a, b, c, d];
            answer.extend(mac(5).0);
            answer.extend(sender);
            assert_eq!(outcome.frame, frame(mac(5), Mac([2, 0x42, a, b, c, d]), 0x0806, &answer));
        }
    }
}

#[test]
fn arp_for_ones_own_address_or_one_outside_stays_unanswered() {
    let mut node = Instance::configured();
    node.run(ENDPOINT, &arp([10, 64, 0, 5], [0; 4])).dropped(Reason::Multicast);
    node.run(ENDPOINT, &arp([10, 65, 0, 5], [10, 64, 0, 5])).dropped(Reason::NoEndpoint);
    let mut reply = arp([10, 64, 0, 6], [10, 64, 0, 5]);
    reply[21] = 2;
    node.run(ENDPOINT, &reply).dropped(Reason::Multicast);
    node.run(ENDPOINT, &arp([10, 64, 0, 6], [0; 4])[..40]).dropped(Reason::Malformed);
}

fn solicitation(target: Address, sender: Address, options: &[u8]) -> Vec<u8> {
    let mut icmp = vec![135, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend(target.0);
    icmp.extend(options);
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&target.0[13..]);
    frame(Mac([0x33, 0x33, 0xff, 0, 0, 6]), mac(5), 0x86dd, &ipv6(sender, Address(group), 58, 255, &icmp))
}

/// The ICMP checksum of an IPv6 packet, pseudo-header included: zero when it is right.
fn icmp6_checksum(frame: &[u8]) -> u16 {
    let payload = &frame[54..];
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    checksum(&[&frame[22..54], &length, &[0, 0, 0, 58], payload].concat())
}

#[test]
fn solicitations_are_answered_for_every_address_of_the_subnet() {
    let mut node = Instance::configured();
    for options in
        [&[1, 1, 2, 0x42, 10, 64, 0, 5][..], &[], &[14, 1, 1, 2, 3, 4, 5, 6, 1, 1, 2, 0x42, 10, 64, 0, 5]]
    {
        let outcome = node.run(ENDPOINT, &solicitation(v6(70), v6(5), options));
        outcome.is(REDIRECT, VNI, Reason::NeighbourAnswered);
        let answer = &outcome.frame;
        assert_eq!(answer.len(), 86);
        assert_eq!(answer[..14], [&mac(5).0[..], &[2, 0x46, 0, 0, 0, 70, 0x86, 0xdd]].concat());
        assert_eq!(answer[22..54], [v6(70).0, v6(5).0].concat());
        assert_eq!(answer[54..56], [136, 0]);
        assert_eq!(answer[58], 0x60, "solicited, override");
        assert_eq!(answer[62..78], v6(70).0);
        assert_eq!(answer[78..], [2, 1, 2, 0x46, 0, 0, 0, 70]);
        assert_eq!(icmp6_checksum(answer), 0);
    }
    let gateway = node.run(ENDPOINT, &solicitation(v6(1), v6(5), &[]));
    assert_eq!(gateway.frame[58], 0xe0, "router, solicited, override");
    let mut far = v6(7);
    far.0[8] = 1;
    assert_eq!(node.run(ENDPOINT, &solicitation(far, v6(5), &[])).frame[80..], [2, 0x47, 0, 0, 0, 0]);
}

#[test]
fn the_search_for_a_duplicate_is_answered_only_where_there_is_one() {
    let mut node = Instance::configured();
    let outcome = node.run(ENDPOINT, &solicitation(v6(6), Address::NONE, &[]));
    outcome.is(REDIRECT, VNI, Reason::NeighbourAnswered);
    assert_eq!(outcome.frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(outcome.frame[58], 0x20, "override");
    assert_eq!(icmp6_checksum(&outcome.frame), 0);
    node.run(ENDPOINT, &solicitation(v6(5), Address::NONE, &[])).dropped(Reason::Multicast);
}

#[test]
fn neighbour_discovery_from_containers_goes_nowhere() {
    let mut node = Instance::configured();
    let advertisement =
        [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &v6(1).0, &[2, 1, 2, 0x42, 10, 64, 0, 5]].concat();
    let to = |next, payload: &[u8]| {
        frame(Mac([2, 0x46, 0, 0, 0, 6]), mac(5), 0x86dd, &ipv6(v6(5), v6(6), next, 255, payload))
    };
    node.run(ENDPOINT, &to(58, &advertisement)).dropped(Reason::Multicast);
    // Hidden behind extension headers: destination options, then a routing header.
    let hidden = [&[43, 0, 1, 4, 0, 0, 0, 0][..], &[58, 0, 0, 0, 0, 0, 0, 0], &advertisement].concat();
    node.run(ENDPOINT, &to(60, &hidden)).dropped(Reason::UnsupportedProtocol);
    // More headers than are followed.
    let endless = [[60, 0, 1, 4, 0, 0, 0, 0]; 9].concat();
    node.run(ENDPOINT, &to(60, &endless)).dropped(Reason::Malformed);
    // Anything else with that hop limit is a packet like others.
    node.run(ENDPOINT, &to(17, &udp(1, 2, b""))).is(REDIRECT, VNI, Reason::ForwardedLocal);
    node.run(ENDPOINT, &to(59, &[])).is(REDIRECT, VNI, Reason::ForwardedLocal);
}

#[test]
fn options_and_fragments_are_forwarded() {
    let mut node = Instance::configured();
    let mut options = from_endpoint([10, 64, 0, 6], &[0; 8]);
    options[14] = 0x47;
    node.run(ENDPOINT, &options).is(REDIRECT, VNI, Reason::ForwardedLocal);
    let mut last_fragment =
        frame(mac(70), mac(5), 0x0800, &ipv4([10, 64, 0, 5], [10, 64, 0, 70], 17, b"end"));
    last_fragment[20..22].copy_from_slice(&[0x00, 0xb9]);
    node.run(ENDPOINT, &last_fragment).is(REDIRECT, VNI, Reason::ForwardedRemote);
}

#[test]
fn headers_that_lie_are_malformed() {
    let mut node = Instance::configured();
    let sound = from_endpoint([10, 64, 0, 6], b"hello");
    for (offset, value) in [(14, 0x44), (14, 0x65), (14, 0x4f), (16, 0xff), (17, 19)] {
        let mut packet = sound.clone();
        packet[offset] = value;
        node.run(ENDPOINT, &packet).dropped(Reason::Malformed);
    }
    // The kernel makes no test packet with less than a whole IP header; ARP is read by the same
    // code.
    for length in 34..sound.len() {
        node.run(ENDPOINT, &sound[..length]).dropped(Reason::Malformed);
    }
    for length in 15..42 {
        node.run(ENDPOINT, &arp([10, 64, 0, 6], [0; 4])[..length]).dropped(Reason::Malformed);
    }
    let sound =
        frame(Mac([2, 0x46, 0, 0, 0, 6]), mac(5), 0x86dd, &ipv6(v6(5), v6(6), 17, 64, &udp(1, 2, b"")));
    for (offset, value) in [(14, 0x40), (18, 1)] {
        let mut packet = sound.clone();
        packet[offset] = value;
        node.run(ENDPOINT, &packet).dropped(Reason::Malformed);
    }
    for length in 54..sound.len() {
        node.run(ENDPOINT, &sound[..length]).dropped(Reason::Malformed);
    }
}

#[test]
fn other_protocols_and_vlan_tags_are_dropped() {
    let mut node = Instance::configured();
    node.run(ENDPOINT, &frame(mac(6), mac(5), 0x88cc, &[0; 40])).dropped(Reason::UnsupportedProtocol);
    let tagged = [&[0, 5, 8, 0][..], &ipv4([10, 64, 0, 5], [10, 64, 0, 6], 17, &udp(1, 2, b""))].concat();
    node.run(ENDPOINT, &frame(mac(6), mac(5), 0x8100, &tagged)).dropped(Reason::UnsupportedProtocol);
}

#[test]
fn a_packet_too_big_for_the_tunnel_tells_its_sender_how_big_it_may_be() {
    let mut node = Instance::configured();
    let fits = from_endpoint([10, 64, 0, 70], &[7; 1450 - 28]);
    node.run(ENDPOINT, &fits).is(REDIRECT, VNI, Reason::ForwardedRemote);
    let packet = from_endpoint([10, 64, 0, 70], &[7; 1451 - 28]);
    let outcome = node.run(ENDPOINT, &packet);
    outcome.is(REDIRECT, VNI, Reason::TooBigAnswered);
    let answer = &outcome.frame;
    assert_eq!(answer.len(), 14 + 28 + 96);
    assert_eq!(answer[..14], frame(mac(5), mac(70), 0x0800, &[]));
    assert_eq!(checksum(&answer[14..34]), 0);
    assert_eq!(answer[26..34], [[10, 64, 0, 70], [10, 64, 0, 5]].concat());
    assert_eq!(answer[34..36], [3, 4]);
    assert_eq!(answer[40..42], 1450_u16.to_be_bytes());
    assert_eq!(checksum(&answer[34..]), 0);
    assert_eq!(answer[42..], packet[14..110]);
}

#[test]
fn an_ipv6_packet_too_big_for_the_tunnel_is_answered_likewise() {
    let mut node = Instance::configured();
    let mac70 = Mac([2, 0x46, 0, 0, 0, 70]);
    let packet = frame(mac70, mac(5), 0x86dd, &ipv6(v6(5), v6(70), 17, 64, &udp(1, 2, &[7; 1451 - 48])));
    let outcome = node.run(ENDPOINT, &packet);
    outcome.is(REDIRECT, VNI, Reason::TooBigAnswered);
    let answer = &outcome.frame;
    assert_eq!(answer[..14], frame(mac(5), mac70, 0x86dd, &[]));
    assert_eq!(answer[14..22], [0x60, 0, 0, 0, 0, 104, 58, 64]);
    assert_eq!(answer[22..54], [v6(70).0, v6(5).0].concat());
    assert_eq!(answer[54..56], [2, 0]);
    assert_eq!(answer[58..62], 1450_u32.to_be_bytes());
    assert_eq!(icmp6_checksum(answer), 0);
    assert_eq!(answer[62..], packet[14..110]);
}

#[test]
fn without_df_a_packet_too_big_is_left_to_the_vxlan_device_to_fragment() {
    let mut node = Instance::configured();
    let mut packet = from_endpoint([10, 64, 0, 70], &[7; 1451 - 28]);
    packet[20] = 0;
    let outcome = node.run(ENDPOINT, &packet);
    outcome.is(REDIRECT, VNI, Reason::ForwardedRemote);
    assert_eq!(outcome.frame, packet);
}

#[test]
fn the_size_of_a_super_packet_is_that_of_its_segments() {
    let mut node = Instance::configured();
    let packet = from_endpoint([10, 64, 0, 70], &[7; 2900]);
    node.run_super(ENDPOINT, &packet, 1450 - 28).is(REDIRECT, VNI, Reason::ForwardedRemote);
    node.run_super(ENDPOINT, &packet, 1451 - 28).is(REDIRECT, VNI, Reason::TooBigAnswered);
    // SCTP's segments have sizes of their own: the kernel says 65535, GSO_BY_FRAGS.
    node.run_super(ENDPOINT, &packet, 0xffff).is(REDIRECT, VNI, Reason::ForwardedRemote);
}

#[test]
fn a_device_or_a_network_that_nobody_told_of_forwards_nothing() {
    let mut node = Instance::load();
    node.put(MapEntry::Config(config()));
    let packet = from_endpoint([10, 64, 0, 6], b"");
    node.run(ENDPOINT, &packet).is(DROP, mesh_ebpf_types::Vni::NONE, Reason::UnknownNetwork);
    node.put(interface(0));
    node.run(ENDPOINT, &packet).dropped(Reason::UnknownNetwork);
}
