//! What endpoints may send to hosts.

use mesh_ebpf_types::{
    Address, CONTROL_ADDRESS, HOST_ALL, HOST_DNS, HOST_PUBLISHED_IPV4, INTERNAL, METADATA, MapEntry, Member,
    Network, ProgramKind, Published, PublishedKey, Reason, TableEntry,
};
use mesh_kernel::programs::Programs;

use crate::support::{
    DROP, HOST_MAC, Instance, LOCAL, MTU, PREFIX6, REDIRECT, REMOTE, VNI, frame, ipv4, ipv6, mac, udp, v6,
};

const GATEWAY: [u8; 4] = [10, 64, 0, 1];
const CONTROL: [u8; 4] = [203, 0, 113, 9];
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 0x10;

impl Instance {
    fn policy(&mut self, flags: u32) {
        self.put(MapEntry::Network(VNI, Network { flags, mtu: MTU, prefix6: PREFIX6 }));
    }

    /// What becomes of an IPv4 packet of the endpoint's.
    #[track_caller]
    fn sends(&mut self, destination: [u8; 4], protocol: u8, payload: &[u8]) -> Reason {
        let packet = ipv4([10, 64, 0, 5], destination, protocol, payload);
        self.outcome(&frame(mac(1), mac(5), 0x0800, &packet))
    }

    #[track_caller]
    fn sends_v6(&mut self, destination: Address, protocol: u8, payload: &[u8]) -> Reason {
        let packet = ipv6(v6(5), destination, protocol, 64, payload);
        self.outcome(&frame(mac(1), mac(5), 0x86dd, &packet))
    }

    #[track_caller]
    fn outcome(&mut self, packet: &[u8]) -> Reason {
        let outcome = self.run(ProgramKind::Endpoint, packet);
        let [(vni, reason)] = outcome.counted[..] else { panic!("{outcome:?}") };
        assert_eq!(vni, VNI);
        match reason {
            // It is answered, or dropped.
            Reason::HostAccess => assert!(matches!(outcome.verdict, REDIRECT | DROP), "{outcome:?}"),
            _ => assert_eq!(outcome.verdict, REDIRECT, "{outcome:?}"),
        }
        reason
    }

    fn host_sends(&mut self, source: [u8; 4], protocol: u8, payload: &[u8]) {
        let packet = ipv4(source, [10, 64, 0, 5], protocol, payload);
        self.run_unseen(ProgramKind::Host, &frame(HOST_MAC, HOST_MAC, 0x0800, &packet));
    }
}

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut segment = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

const fn echo(kind: u8, identifier: u8) -> [u8; 8] {
    [kind, 0, 0, 0, 0, identifier, 0, 1]
}

fn query() -> Vec<u8> {
    udp(40000, 53, b"?")
}

#[test]
fn by_default_endpoints_reach_the_name_server_and_no_other_socket_of_the_host() {
    let mut node = Instance::configured();
    for reached in [query(), tcp(40000, 53, SYN), tcp(40000, 53, ACK)] {
        let protocol = if reached == query() { 17 } else { 6 };
        assert_eq!(node.sends(GATEWAY, protocol, &reached), Reason::ToHost);
        assert_eq!(node.sends_v6(v6(1), protocol, &reached), Reason::ToHost);
        assert_eq!(node.sends(LOCAL, protocol, &reached), Reason::HostAccess, "it is not there");
    }
    assert_eq!(node.sends(GATEWAY, 1, &echo(8, 7)), Reason::ToHost);
    assert_eq!(node.sends_v6(v6(1), 58, &echo(128, 7)), Reason::ToHost);
    for destination in [GATEWAY, LOCAL, [127, 0, 0, 1]] {
        for (protocol, payload) in [
            (17, udp(40000, 7377, b"")),
            (6, tcp(40000, 7377, SYN)),
            (6, tcp(40000, 7377, ACK)),
            (132, vec![0; 16]),
            (47, vec![0; 8]),
        ] {
            let reason = node.sends(destination, protocol, &payload);
            assert_eq!(reason, Reason::HostAccess, "{protocol} to {destination:?}");
        }
    }
    for host in [LOCAL, REMOTE] {
        assert_eq!(node.sends(host, 1, &echo(8, 7)), Reason::ToHost, "no socket answers it");
        assert_eq!(node.sends(host, 1, &[13, 0, 0, 0, 0, 7, 0, 1]), Reason::HostAccess, "another request");
    }
    assert_eq!(node.sends_v6(v6(1), 6, &tcp(40000, 7377, SYN)), Reason::HostAccess);
    assert_eq!(node.sends([8, 8, 8, 8], 17, &query()), Reason::ToHost);
}

#[test]
fn refused_segments_are_answered_with_a_reset_unless_they_are_one() {
    let mut node = Instance::configured();
    let outcome = |node: &mut Instance, flags| {
        let packet = ipv4([10, 64, 0, 5], LOCAL, 6, &tcp(40000, 7377, flags));
        node.run(ProgramKind::Endpoint, &frame(mac(1), mac(5), 0x0800, &packet))
    };
    for flags in [SYN, ACK] {
        let answered = outcome(&mut node, flags);
        answered.is(REDIRECT, VNI, Reason::HostAccess);
        assert_eq!((answered.frame[23], answered.frame[47] & RST), (6, RST), "{flags}");
    }
    outcome(&mut node, RST).dropped(Reason::HostAccess);
}

#[test]
fn without_host_access_not_even_the_name_server_is_reached_and_with_all_everything_is() {
    let mut node = Instance::configured();
    node.policy(0);
    assert_eq!(node.sends(GATEWAY, 17, &query()), Reason::HostAccess);
    assert_eq!(node.sends(GATEWAY, 1, &echo(8, 7)), Reason::HostAccess);
    assert_eq!(node.sends([8, 8, 8, 8], 17, &query()), Reason::ToHost);
    node.policy(INTERNAL | HOST_DNS);
    assert_eq!(node.sends(GATEWAY, 17, &query()), Reason::ToHost);
    assert_eq!(node.sends(GATEWAY, 17, &udp(1, 7377, b"")), Reason::HostAccess);
    node.policy(HOST_ALL);
    for destination in [GATEWAY, LOCAL, REMOTE] {
        assert_eq!(node.sends(destination, 6, &tcp(40000, 7377, SYN)), Reason::ToHost);
    }
}

#[test]
fn metadata_services_are_reached_by_their_own_permission_only() {
    let mut node = Instance::configured();
    let v6_services = [
        Address([0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54]),
        Address([0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 169, 254, 169, 254]),
    ];
    for (flags, reason) in [
        (HOST_DNS, Reason::HostAccess),
        (HOST_ALL, Reason::HostAccess),
        (METADATA, Reason::ToHost),
        (METADATA | HOST_ALL, Reason::ToHost),
    ] {
        node.policy(flags);
        for service in [[169, 254, 169, 254], [169, 254, 170, 2], [100, 100, 100, 200]] {
            assert_eq!(node.sends(service, 6, &tcp(40000, 80, SYN)), reason, "{flags} {service:?}");
        }
        for service in v6_services {
            assert_eq!(node.sends_v6(service, 6, &tcp(40000, 80, SYN)), reason, "{flags} {service:?}");
        }
        let stand_in = node.sends(HOST_PUBLISHED_IPV4, 6, &tcp(40000, 80, SYN));
        assert_eq!(stand_in, Reason::HostAccess, "the host's own way to published ports");
    }
}

#[test]
fn of_other_nodes_endpoints_reach_published_ports_only() {
    let mut node = Instance::configured();
    let control = Member { kind: CONTROL_ADDRESS, ..Member::default() };
    node.put(MapEntry::Member(Address::from_v4(CONTROL), control));
    for address in [REMOTE, CONTROL] {
        assert_eq!(node.sends(address, 6, &tcp(40000, 7377, SYN)), Reason::HostAccess);
        assert_eq!(node.sends(address, 6, &tcp(40000, 8080, SYN)), Reason::HostAccess);
    }
    let key = PublishedKey { address: Address::NONE, port: 8080_u16.to_be_bytes(), protocol: 6, padding: 0 };
    node.datapath.put_tables(&[TableEntry::Published(key, Published::default())]).expect("a port");
    for address in [REMOTE, CONTROL] {
        assert_eq!(node.sends(address, 6, &tcp(40000, 7377, SYN)), Reason::HostAccess);
        assert_eq!(node.sends(address, 6, &tcp(40000, 8080, SYN)), Reason::ToHost);
        assert_eq!(node.sends(address, 6, &tcp(40000, 8080, ACK)), Reason::ToHost);
        assert_eq!(node.sends(address, 17, &udp(40000, 8080, b"")), Reason::HostAccess);
    }
}

#[test]
fn what_answers_a_flow_of_the_hosts_passes_and_what_begins_one_does_not() {
    for source in [GATEWAY, LOCAL] {
        let mut node = Instance::configured();
        let sends = |node: &mut Instance, protocol, payload: &[u8]| node.sends(source, protocol, payload);
        node.policy(0);
        node.host_sends(source, 6, &tcp(50000, 80, ACK));
        assert_eq!(sends(&mut node, 6, &tcp(80, 50000, ACK)), Reason::HostAccess, "nobody began it");
        for (protocol, call, answer) in [
            (6, tcp(50000, 80, SYN), tcp(80, 50000, SYN | ACK)),
            (17, udp(50000, 80, b""), udp(80, 50000, b"")),
            (1, echo(8, 9).to_vec(), echo(0, 9).to_vec()),
        ] {
            assert_eq!(sends(&mut node, protocol, &answer), Reason::HostAccess, "{protocol}");
            node.host_sends(source, protocol, &call);
            assert_eq!(sends(&mut node, protocol, &answer), Reason::ToHost, "{protocol}");
        }
        assert_eq!(sends(&mut node, 6, &tcp(80, 50000, SYN)), Reason::HostAccess, "a call of its own");
        assert_eq!(sends(&mut node, 17, &udp(81, 50000, b"")), Reason::HostAccess, "another port");
        assert_eq!(sends(&mut node, 1, &echo(0, 8)), Reason::HostAccess, "another echo");
    }
}

#[test]
fn a_flow_that_an_endpoint_began_ends_when_access_is_taken() {
    let mut node = Instance::configured();
    node.policy(HOST_ALL);
    let (asked, answer) = (udp(40000, 9000, b""), udp(9000, 40000, b""));
    assert_eq!(node.sends(LOCAL, 17, &asked), Reason::ToHost);
    node.host_sends(LOCAL, 17, &answer);
    assert_eq!(node.sends(LOCAL, 6, &tcp(40000, 9000, SYN)), Reason::ToHost);
    node.policy(HOST_DNS);
    node.host_sends(LOCAL, 17, &answer);
    assert_eq!(node.sends(LOCAL, 17, &asked), Reason::HostAccess, "the host answers, and began nothing");
    assert_eq!(node.sends(LOCAL, 6, &tcp(40000, 9000, ACK)), Reason::HostAccess);
}

#[test]
fn errors_pass_about_flows_of_the_hosts_only() {
    let mut node = Instance::configured();
    let quoted = |port| ipv4(GATEWAY, [10, 64, 0, 5], 17, &udp(port, 80, b""));
    let error = |port| [&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted(port)].concat();
    node.host_sends(GATEWAY, 17, &udp(50000, 80, b""));
    assert_eq!(node.sends(GATEWAY, 1, &error(50000)), Reason::ToHost);
    assert_eq!(node.sends(GATEWAY, 1, &error(50001)), Reason::HostAccess);
}

#[test]
fn an_endpoint_makes_its_host_resolve_a_bounded_number_of_unused_addresses() {
    let mut node = Instance::configured();
    let ip = |line: &str| {
        let status = std::process::Command::new("ip").args(line.split(' ')).status().expect("ip");
        assert!(status.success(), "{line}");
    };
    ip(&format!("link add mesh0 index {} type veth peer name mesh0p", mesh_ebpf_types::HOST_LEG_IFINDEX));
    ip("link add u0 type veth peer name u1");
    for name in ["mesh0", "mesh0p", "u0", "u1"] {
        ip(&format!("link set {name} up"));
    }
    ip("addr add 172.16.0.1/16 dev u0");
    ip("neigh replace 172.16.0.77 lladdr 02:00:00:00:00:77 nud permanent dev u0");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a router");
    let sends = |node: &mut Instance, destination: [u8; 4], protocol: u8, payload: &[u8]| {
        let packet = ipv4([10, 64, 0, 5], destination, protocol, payload);
        let outcome = node.run_endpoint(&frame(mac(1), mac(5), 0x0800, &packet));
        let [(VNI, reason)] = outcome.counted[..] else { panic!("{outcome:?}") };
        reason
    };
    let start = std::time::Instant::now();
    // Flows that begin, and segments of connections that do not exist.
    let floods = [(17, udp(1, 2, b"")), (6, tcp(1, 2, SYN)), (6, tcp(1, 2, ACK))];
    let (mut passed, mut dropped) = (0, 0);
    for (number, (protocol, payload)) in (0..900_u16).zip(floods.iter().cycle()) {
        let [high, low] = number.to_be_bytes();
        match sends(&mut node, [172, 16, 1 + high, low], *protocol, payload) {
            Reason::ToHost => passed += 1,
            reason => assert_eq!(reason, Reason::Unresolved),
        }
        dropped = u32::from(number) + 1 - passed;
        // A neighbour that the host knows is reached all the same.
        assert_eq!(sends(&mut node, [172, 16, 0, 77], *protocol, payload), Reason::ToHost);
    }
    // 256 at once, and 64 more in each second.
    let refilled = u32::try_from(start.elapsed().as_millis() / 15).expect("not that long");
    assert!((256..=257 + refilled).contains(&passed), "{passed} passed in {:?}", start.elapsed());
    assert!(dropped > 0 || refilled >= 600, "{passed} passed in {:?}", start.elapsed());
}
