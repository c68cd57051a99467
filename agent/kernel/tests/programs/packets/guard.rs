//! Tunnels' packets that pretend to come from a node, at interfaces where no node is.

use std::process::Command;

use mesh_ebpf_types::{Address, Config, Mac, MapEntry, Member, ProgramKind, Reason, Vni};

use crate::support::{DROP, Instance, LOCAL, PASS, REMOTE, config, frame, ipv4, udp};

const BRIDGE_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x17]);
const STRANGER: [u8; 4] = [192, 0, 2, 77];
const BRIDGE: [u8; 4] = [172, 17, 0, 1];

fn ip(line: &str) {
    let status = Command::new("ip").args(line.split(' ')).status().expect("ip");
    assert!(status.success(), "{line}");
}

/// A node that routes, with a bridge of another runtime's, at which packets arrive.
fn node() -> Instance {
    let mut node = Instance::configured();
    for line in [
        "link add u0 type veth peer name u1",
        &format!("link add d0 address {BRIDGE_MAC} type veth peer name d1"),
        "link set u1 up",
        "link set u0 up",
        "link set d1 up",
        "link set d0 up",
        "addr add 192.168.77.11/24 dev u0",
        "addr add 172.17.0.1/16 dev d0",
        "route add default via 192.168.77.1",
    ] {
        ip(line);
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a router");
    node.ifindex = nix::net::if_::if_nametoindex("d0").expect("an index");
    node.put(MapEntry::Config(Config { wireguard_port: 51820_u16.to_be_bytes(), ..config() }));
    node.put(MapEntry::Member(Address::from_v4([198, 51, 100, 13]), Member::default()));
    node
}

fn arrived(source: [u8; 4], destination: [u8; 4], port: u16) -> Vec<u8> {
    let datagram = udp(40000, port, &[8, 0, 0, 0, 0, 0x10, 0, 0]);
    frame(BRIDGE_MAC, Mac([2, 0, 0, 0, 0, 9]), 0x0800, &ipv4(source, destination, 17, &datagram))
}

#[test]
fn a_tunnels_packet_is_taken_from_no_node_where_none_is() {
    let mut node = node();
    for kind in [ProgramKind::Guard, ProgramKind::Published] {
        for source in [REMOTE, [198, 51, 100, 13]] {
            for (destination, port) in [(LOCAL, 4789), (BRIDGE, 4789), (LOCAL, 51820)] {
                let packet = arrived(source, destination, port);
                node.run(kind, &packet).is(DROP, Vni::NONE, Reason::ForeignTunnel);
                // To a group's MAC, with options before the ports, or in fragments.
                let mut group = packet.clone();
                group[..6].fill(0xff);
                node.run(kind, &group).is(DROP, Vni::NONE, Reason::ForeignTunnel);
                let mut options = packet.clone();
                options[14] = 0x46;
                options.splice(34..34, [1, 1, 1, 0]);
                options[17] += 4;
                node.run(kind, &options).is(DROP, Vni::NONE, Reason::ForeignTunnel);
                let mut first = packet.clone();
                first[20] = 0x20;
                node.run(kind, &first).is(DROP, Vni::NONE, Reason::ForeignTunnel);
            }
        }
        // Others' packets are the stack's: from no node, to another port, no UDP.
        node.run(kind, &arrived(STRANGER, LOCAL, 4789)).passed();
        node.run(kind, &arrived(REMOTE, LOCAL, 4790)).passed();
        let mut segment = arrived(REMOTE, LOCAL, 4789);
        segment[23] = 6;
        assert_eq!(node.run(kind, &segment).verdict, PASS);
    }
}

#[test]
fn a_tunnels_packet_is_taken_where_a_route_leads_to_its_node() {
    let mut node = node();
    let packet = arrived(REMOTE, LOCAL, 4789);
    let other = arrived([198, 51, 100, 13], LOCAL, 4789);
    for kind in [ProgramKind::Guard, ProgramKind::Published] {
        node.run(kind, &packet).is(DROP, Vni::NONE, Reason::ForeignTunnel);
        ip("route add 192.168.77.12 via 172.17.0.9 dev d0");
        node.run(kind, &packet).passed();
        node.run(kind, &other).is(DROP, Vni::NONE, Reason::ForeignTunnel);
        ip("route del 192.168.77.12 via 172.17.0.9 dev d0");
    }
}
