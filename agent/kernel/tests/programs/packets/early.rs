//! What the XDP program does with packets, compared with what `underlay` does with the same ones.

use std::cell::RefCell;
use std::process::Command;
use std::time::{Duration, Instant};

use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use mesh_ebpf_types::{
    Address, Backend, Config, Counter, EARLY, Mac, MapEntry, MapKey, Published, PublishedKey, Reason, SCHEMA,
    TableEntry, TableKey, Vni, published_vni,
};
use mesh_kernel::programs::{Counters, Programs};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::hosts::succeed;
use crate::support::{
    Instance, LOCAL as HERE, REDIRECT, REMOTE, VNI, checksum, config, frame, ipv4, one_hop_further, udp,
    vxlan_to,
};

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const CLIENT: [u8; 4] = [192, 0, 2, 77];
const OWN_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x11]);
const NODE_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x12]);
const GATEWAY_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PORT: u16 = 8080;
/// The backends' numbers.
const THERE: u32 = 7;
const ELSEWHERE: u32 = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
const ACK_REPLY: u32 = 0x00C0_0000 | THERE;

/// A node whose port 8080 leads to a backend on another node, on a link with that and a gateway.
struct Node {
    instance: Instance,
    early: Xdp,
    ifindex: u32,
}

/// What became of a packet, and what was counted.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    verdict: u32,
    frame: Vec<u8>,
    counted: Vec<(Vni, Reason, Counter)>,
}

fn ip(arguments: &str) {
    succeed(&Command::new("ip").args(arguments.split(' ')).output().expect("ip"));
}

impl Node {
    fn new() -> Self {
        // What is known of flows is each CPU's own.
        let mut cpus = CpuSet::new();
        cpus.set(nix::sched::sched_getcpu().expect("a CPU")).expect("a set");
        sched_setaffinity(Pid::from_raw(0), &cpus).expect("one CPU");
        let mut instance = Instance::configured();
        ip(&format!("link add u0 address {OWN_MAC} type veth peer name u1"));
        for line in ["link set u1 up", "link set u0 up", "addr add 192.168.77.11/24 dev u0"] {
            ip(line);
        }
        ip("route add default via 192.168.77.1");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a router");
        let ifindex = nix::net::if_::if_nametoindex("u0").expect("an index");
        instance.ifindex = ifindex;
        instance.put(MapEntry::Config(Config { underlay_ifindex: ifindex, ..config() }));
        let pin = instance.dir.join(format!("v{SCHEMA}/programs/{EARLY}"));
        let early = Xdp::from_pin(pin, XdpAttachType::Interface).expect("the program");
        let mut node = Self { instance, early, ifindex };
        node.publish();
        neighbour(REMOTE, NODE_MAC);
        neighbour([192, 168, 77, 1], GATEWAY_MAC);
        node
    }

    fn publish(&mut self) {
        let backend = |number: u32, last| {
            let node = Address::from_v4(REMOTE);
            let backend = Backend { vni: VNI, ipv4: [10, 64, 0, last], node, ..Backend::default() };
            TableEntry::Backend(number, backend)
        };
        let published = |protocol| {
            let key = PublishedKey { port: PORT.to_be_bytes(), protocol, ..PublishedKey::default() };
            let target = u16::to_be_bytes(80);
            TableEntry::Published(
                key,
                Published { first: 0, size: 1, vni: VNI, target, ..Published::default() },
            )
        };
        let entries = [backend(THERE, 70), backend(ELSEWHERE, 71), published(TCP), published(UDP)];
        self.choose(THERE);
        self.instance.datapath.put_tables(&entries).expect("written");
    }

    /// Has new flows go to that backend.
    fn choose(&mut self, number: u32) {
        self.instance.datapath.write_backend_tables(0, &[number]).expect("written");
    }

    /// What `underlay` does with a packet.
    fn late(&mut self, packet: &[u8]) -> Ran {
        let before = self.counters();
        let outcome = self.instance.run_underlay(packet);
        let counted = self.since(&before);
        Ran { verdict: outcome.verdict.cast_unsigned(), frame: outcome.frame, counted }
    }

    /// What the XDP program does with it.
    fn early(&mut self, packet: &[u8]) -> Ran {
        let before = self.counters();
        let mut out = vec![0; packet.len() + 512];
        // `struct xdp_md`: the end of the data, the device.
        let mut context = [0_u8; 24];
        context[4..8].copy_from_slice(&u32::try_from(packet.len()).expect("short").to_ne_bytes());
        context[12..16].copy_from_slice(&self.ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = self.early.test_run(options).expect("a test run");
        out.truncate(result.data_size_out as usize);
        Ran { verdict: result.return_value, frame: out, counted: self.since(&before) }
    }

    fn counters(&mut self) -> Counters {
        self.instance.datapath.counters().expect("counters")
    }

    fn since(&mut self, before: &Counters) -> Vec<(Vni, Reason, Counter)> {
        let grown = |((vni, reason), now): ((Vni, Reason), Counter)| {
            let old = before.get(&(vni, reason)).copied().unwrap_or_default();
            let (packets, bytes) = (now.packets - old.packets, now.bytes - old.bytes);
            (packets != 0).then_some((vni, reason, Counter { packets, bytes }))
        };
        self.counters().into_iter().filter_map(grown).collect()
    }

    /// What both do with a packet whose flow is known. It is known for a tenth of a second at
    /// least.
    #[track_caller]
    fn both(&mut self, packet: &[u8]) -> (Ran, Ran) {
        let mut tries = 0;
        loop {
            let (late, early) = (self.late(packet), self.early(packet));
            tries += 1;
            if early.verdict == XDP_TX || tries == 20 {
                return (late, early);
            }
        }
    }

    /// Asserts that a packet is sent on, as `underlay` would do it.
    #[track_caller]
    fn is_sent(&mut self, packet: &[u8], next_hop: Mac) {
        let length = packet.len() as u64;
        let (late, early) = self.both(packet);
        assert_eq!((late.verdict, early.verdict), (REDIRECT.cast_unsigned(), XDP_TX));
        assert_eq!(early.frame[..12], [next_hop.0, OWN_MAC.0].concat(), "the kernel's neighbour");
        assert_eq!(early.frame[12..], late.frame[12..]);
        let expected =
            [late.counted, vec![(Vni::NONE, Reason::SentEarly, Counter { packets: 1, bytes: length })]];
        let mut expected = expected.concat();
        expected.sort();
        assert_eq!(early.counted, expected);
    }

    /// Asserts that a packet is left as it is.
    #[track_caller]
    fn passes(&mut self, packet: &[u8]) {
        let early = self.early(packet);
        assert_eq!((early.verdict, early.counted), (XDP_PASS, Vec::new()));
        assert_eq!(early.frame, packet, "nothing is changed");
    }
}

fn neighbour([a, b, c, d]: [u8; 4], mac: Mac) {
    ip(&format!("neigh replace {a}.{b}.{c}.{d} lladdr {mac} nud permanent dev u0"));
}

/// A packet of a protocol; TCP with these flags.
fn packet(
    protocol: u8,
    source: ([u8; 4], u16),
    destination: ([u8; 4], u16),
    flags: u8,
    data: &[u8],
) -> Vec<u8> {
    if protocol == UDP {
        return ipv4(source.0, destination.0, UDP, &udp(source.1, destination.1, data));
    }
    let mut segment = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 10, 0, 0, 0, 20, 0x50, flags, 1, 0, 0xab, 0xcd, 0, 0]);
    segment.extend(data);
    ipv4(source.0, destination.0, TCP, &segment)
}

/// Changes bytes of an IPv4 header and mends its checksum.
fn with(mut packet: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (offset, byte) in changes {
        packet[*offset] = *byte;
    }
    packet[10..12].fill(0);
    let header = usize::from(packet[0] & 15) * 4;
    let sum = checksum(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn arrived(packet: &[u8]) -> Vec<u8> {
    frame(OWN_MAC, GATEWAY_MAC, 0x0800, packet)
}

/// From the client to the published port.
fn request(protocol: u8, flags: u8) -> Vec<u8> {
    packet(protocol, (CLIENT, 5000), (HERE, PORT), flags, b"some data")
}

/// The backend's reply, as its node sends it.
fn reply(protocol: u8, flags: u8) -> Vec<u8> {
    tunnelled(ACK_REPLY, &packet(protocol, (HERE, PORT), (CLIENT, 5000), flags, b"some data"))
}

fn tunnelled(vni: u32, packet: &[u8]) -> Vec<u8> {
    let inner = frame(Mac([0; 6]), Mac([0; 6]), 0x0800, packet);
    vxlan_to(OWN_MAC, REMOTE, Vni::new(vni), &inner)
}

#[test]
fn a_known_flow_is_sent_on_as_the_tc_program_would() {
    let mut node = Node::new();
    for protocol in [TCP, UDP] {
        node.passes(&arrived(&request(protocol, ACK)));
        node.is_sent(&arrived(&request(protocol, ACK)), NODE_MAC);
        let (_, early) = node.both(&arrived(&request(protocol, ACK)));
        assert_eq!(early.frame[26..34], [HERE, REMOTE].concat(), "outer addresses");
        assert_eq!(checksum(&early.frame[14..34]), 0, "outer header");
        assert_eq!(early.frame[46..49], published_vni(THERE).0[1..]);
        assert_eq!(early.frame[64..], one_hop_further(&request(protocol, ACK)));

        node.passes(&reply(protocol, ACK));
        node.is_sent(&reply(protocol, ACK), GATEWAY_MAC);
        let (_, early) = node.both(&reply(protocol, ACK));
        assert_eq!(early.frame[14..], reply(protocol, ACK)[64..]);
    }
}

#[test]
fn whatever_a_packet_of_a_known_flow_looks_like_it_is_sent_on_as_the_tc_program_would() {
    let node = RefCell::new(Node::new());
    let any =
        (any::<bool>(), any::<[u8; 6]>(), proptest::collection::vec(any::<u8>(), 6..1200), 1024..u16::MAX);
    TestRunner::default()
        .run(&any, |(tcp, header, data, port)| {
            let protocol = if tcp { TCP } else { UDP };
            let [tos, id0, id1, ttl, flags, may_be_fragmented] = header;
            let mut node = node.borrow_mut();
            // What begins and ends connections is another test's.
            let flags = flags & !7;
            // A packet that may not be routed any further is another test's.
            let changes = [(1, tos), (4, id0), (5, id1), (6, (may_be_fragmented & 1) << 6), (8, ttl.max(2))];
            let asked = with(packet(protocol, (CLIENT, port), (HERE, PORT), flags, &data), &changes);
            node.is_sent(&arrived(&asked), NODE_MAC);
            let answer = with(packet(protocol, (HERE, PORT), (CLIENT, port), flags, &data), &changes);
            node.is_sent(&tunnelled(ACK_REPLY, &answer), GATEWAY_MAC);
            Ok(())
        })
        .expect("all alike");
}

#[test]
fn what_is_out_of_the_ordinary_is_left_to_the_tc_program() {
    let mut node = Node::new();
    let (asked, answer) = (request(TCP, ACK), packet(TCP, (HERE, PORT), (CLIENT, 5000), ACK, b"some data"));
    let options = |packet: &[u8]| {
        let longer = [&packet[..20], &[1; 4], &packet[20..]].concat();
        with(longer, &[(0, 0x46), (3, packet[3] + 4)])
    };
    for (what, change) in [
        ("SYN", (33, ACK | 2)),
        ("FIN", (33, ACK | 1)),
        ("RST", (33, ACK | 4)),
        ("more fragments", (6, 0x20)),
        ("a later fragment", (7, 1)),
        ("another version", (0, 0x55)),
        ("another protocol", (9, 132)),
        ("a length that lies", (2, 1)),
        ("too short a length", (3, 20)),
    ] {
        for (packet, wrap) in
            [(&asked, arrived as fn(&[u8]) -> Vec<u8>), (&answer, |packet| tunnelled(ACK_REPLY, packet))]
        {
            node.both(&wrap(packet));
            eprintln!("{what}");
            node.passes(&wrap(&with(packet.clone(), &[change])));
        }
    }
    for (packet, wrap) in
        [(&asked, arrived as fn(&[u8]) -> Vec<u8>), (&answer, |packet| tunnelled(ACK_REPLY, packet))]
    {
        node.is_sent(&wrap(packet), if packet == &asked { NODE_MAC } else { GATEWAY_MAC });
        node.passes(&wrap(&options(packet)));
        let whole = wrap(packet);
        // A VLAN tag; another host's, everybody's and a group's MAC; cut anywhere.
        node.passes(&[&whole[..12], &[0x81, 0, 0, 5], &whole[12..]].concat());
        for mac in [[2, 0, 0, 0, 0, 0x10], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            node.passes(&[&mac[..], &whole[6..]].concat());
        }
        for length in 14..whole.len() {
            node.passes(&whole[..length]);
        }
        node.is_sent(&whole, if packet == &asked { NODE_MAC } else { GATEWAY_MAC });
    }
}

#[test]
fn outer_headers_that_this_mesh_does_not_make_are_left_to_the_tc_program() {
    let mut node = Node::new();
    let whole = reply(TCP, ACK);
    node.is_sent(&whole, GATEWAY_MAC);
    let outer = |changes: &[(usize, u8)]| {
        let changed = with(whole[14..].to_vec(), changes);
        [&whole[..14], &changed].concat()
    };
    for (what, changed) in [
        ("congestion", outer(&[(1, 3)])),
        ("a fragment", outer(&[(6, 0x20)])),
        ("another host's address", outer(&[(19, 99)])),
        ("another node", outer(&[(15, 99)])),
        ("a lying length", outer(&[(3, 0)])),
    ] {
        eprintln!("{what}");
        node.passes(&changed);
    }
    // The destination port, a UDP checksum, flags, and a reserved byte.
    for offset in [37, 40, 42, 49] {
        let mut changed = whole.clone();
        changed[offset] ^= 0xff;
        node.passes(&changed);
    }
    // A packet to a backend, a network's, and another backend's reply.
    let inner = packet(TCP, (HERE, PORT), (CLIENT, 5000), ACK, b"some data");
    for vni in [published_vni(THERE).number(), VNI.number(), ACK_REPLY + 1] {
        node.passes(&tunnelled(vni, &inner));
    }
    node.is_sent(&whole, GATEWAY_MAC);
}

#[test]
fn what_does_not_fit_into_the_tunnel_is_left_to_the_tc_program() {
    let mut node = Node::new();
    let of_length = |data: usize| arrived(&packet(TCP, (CLIENT, 5000), (HERE, PORT), ACK, &vec![7; data]));
    node.is_sent(&of_length(1450 - 40), NODE_MAC);
    node.passes(&of_length(1451 - 40));
}

#[test]
fn a_packet_without_a_route_or_a_known_next_hop_is_left_to_the_tc_program() {
    let mut node = Node::new();
    let (asked, answer) = (arrived(&request(TCP, ACK)), reply(TCP, ACK));
    ip("neigh del 192.168.77.12 dev u0");
    ip("neigh del 192.168.77.1 dev u0");
    for packet in [&asked, &answer] {
        let (late, early) = (node.late(packet), node.early(packet));
        assert_eq!((late.verdict, early.verdict), (REDIRECT.cast_unsigned(), XDP_PASS));
        node.passes(packet);
    }
    neighbour(REMOTE, NODE_MAC);
    neighbour([192, 168, 77, 1], GATEWAY_MAC);
    node.is_sent(&asked, NODE_MAC);
    node.is_sent(&answer, GATEWAY_MAC);
    // What the kernel said holds for a quarter of a second at most.
    ip("route del default");
    let begun = Instant::now();
    while node.both(&answer).1.verdict == XDP_TX {
        assert!(begun.elapsed() < Duration::from_secs(1), "it is still sent");
    }
    node.passes(&answer);
}

#[test]
fn what_a_flow_was_known_for_ends_with_what_it_follows_from() {
    let mut node = Node::new();
    let (asked, answer) = (arrived(&request(TCP, ACK)), reply(TCP, ACK));
    node.is_sent(&asked, NODE_MAC);
    node.is_sent(&answer, GATEWAY_MAC);
    node.instance.datapath.delete(&MapKey::Member(Address::from_v4(REMOTE))).expect("removed");
    node.passes(&asked);
    node.passes(&answer);
    node.late(&answer);
    node.passes(&answer);
    node.late(&asked);
    node.instance.datapath.delete_tables(&[TableKey::Backend(THERE)]).expect("removed");
    node.passes(&asked);
    node.late(&asked);
    node.passes(&asked);
}

#[test]
fn a_connection_that_begins_anew_takes_nothing_of_the_one_before() {
    let mut node = Node::new();
    let asked = arrived(&request(TCP, ACK));
    let (_, early) = node.both(&asked);
    assert_eq!(early.frame[46..49], published_vni(THERE).0[1..]);
    node.choose(ELSEWHERE);
    node.late(&arrived(&request(TCP, 2)));
    node.passes(&asked);
    let (_, early) = node.both(&asked);
    assert_eq!((early.verdict, &early.frame[46..49]), (XDP_TX, &published_vni(ELSEWHERE).0[1..]));
}

#[test]
fn a_known_flow_takes_the_slow_path_again_after_a_second_at_the_latest() {
    let mut node = Node::new();
    let asked = arrived(&request(UDP, 0));
    node.is_sent(&asked, NODE_MAC);
    let begun = Instant::now();
    while node.early(&asked).verdict == XDP_TX {
        assert!(begun.elapsed() < Duration::from_millis(1500), "it is still known");
    }
}

#[test]
fn nothing_is_sent_on_while_packets_are_encapsulated_by_a_device() {
    let mut node = Node::new();
    let (asked, answer) = (arrived(&request(TCP, ACK)), reply(TCP, ACK));
    let device = mesh_ebpf_types::Encapsulation::Device as u8;
    node.instance.put(MapEntry::Config(Config {
        underlay_ifindex: node.ifindex,
        encapsulation: device,
        ..config()
    }));
    for packet in [&asked, &answer] {
        node.late(packet);
        node.late(packet);
        node.passes(packet);
    }
}
