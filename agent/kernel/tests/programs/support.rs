//! Instances, network namespaces and packets for these tests.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use aya::programs::{TestRun, TestRunOptions};
use mesh_ebpf_types::{
    Address, Block, BlockKey, BlockKind, Config, Encapsulation, Endpoint, EndpointKey, HostRouteKey,
    Interface, Mac, MapEntry, Member, Network, ProgramKind, Reason, Vni,
};
use mesh_kernel::programs::{Datapath, Options, Programs};
use nix::sched::{CloneFlags, unshare};

pub(crate) const VNI: Vni = Vni::new(4096);
pub(crate) const OTHER_VNI: Vni = Vni::new(4097);
pub(crate) const ENCRYPTED_VNI: Vni = Vni::new(4098);
pub(crate) const LOCAL: [u8; 4] = [192, 168, 77, 11];
pub(crate) const REMOTE: [u8; 4] = [192, 168, 77, 12];
pub(crate) const PREFIX6: [u8; 12] = [0xfd, 0x4d, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
pub(crate) const HOST_MAC: Mac = Mac([2, 0x4d, 0, 0, 0, 1]);
pub(crate) const MTU: u32 = 1450;
/// The interface that crafted packets come in by, unless a test makes one: the loopback of its own
/// namespace.
pub(crate) const IFINDEX: u32 = 1;

/// A path on bpffs that no other test has.
pub(crate) fn bpffs_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Path::new("/sys/fs/bpf").join(format!("mt{}-{count}", std::process::id()))
}

/// A loaded datapath with a folder of its own, removed in the end.
pub(crate) struct Instance {
    pub(crate) datapath: Datapath,
    pub(crate) dir: PathBuf,
    /// The interface that crafted packets come in by.
    pub(crate) ifindex: u32,
}

impl Instance {
    /// Loads the programs, in a network namespace of the calling thread's own.
    pub(crate) fn load() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let dir = bpffs_dir();
        let mut datapath = Datapath::new(Options::new(&dir));
        datapath.load().expect("programs load");
        Self { datapath, dir, ifindex: IFINDEX }
    }

    /// As [`Instance::load`], with the maps of a node that has two endpoints (`.5` and `.6`) in a
    /// network of which another node has a block (from `.64`), and one endpoint in each of two
    /// other networks.
    pub(crate) fn configured() -> Self {
        let mut instance = Self::load();
        for entry in entries() {
            instance.put(entry);
        }
        instance
    }

    pub(crate) fn put(&mut self, entry: MapEntry) {
        self.datapath.put(&entry).expect("an entry");
    }

    /// Runs a program on a packet.
    pub(crate) fn run(&mut self, kind: ProgramKind, packet: &[u8]) -> Outcome {
        self.run_super(kind, packet, 0)
    }

    /// Runs a program on a super-packet with segments of `gso_size` bytes.
    ///
    /// Three times: what the program remembers of the first and the second packet must not make any
    /// difference to the next.
    #[track_caller]
    pub(crate) fn run_super(&mut self, kind: ProgramKind, packet: &[u8], gso_size: u32) -> Outcome {
        let first = self.run_once(kind, packet, gso_size);
        let second = self.run_once(kind, packet, gso_size);
        assert_eq!(first, second, "the first and the second packet");
        let third = self.run_once(kind, packet, gso_size);
        assert_eq!(second, third, "the second and the third packet");
        third
    }

    /// Runs `underlay` on a packet, once.
    pub(crate) fn run_underlay(&mut self, packet: &[u8]) -> Outcome {
        self.run_once(ProgramKind::Underlay, packet, 0)
    }

    /// Runs `endpoint` on a packet, once.
    pub(crate) fn run_endpoint(&mut self, packet: &[u8]) -> Outcome {
        self.run_once(ProgramKind::Endpoint, packet, 0)
    }

    /// Runs a program on a packet, whatever comes of it.
    pub(crate) fn run_unseen(&mut self, kind: ProgramKind, packet: &[u8]) {
        self.verdict(kind, packet);
    }

    /// Runs a program on a packet, and returns its verdict.
    pub(crate) fn verdict(&mut self, kind: ProgramKind, packet: &[u8]) -> i32 {
        let mut context = [0_u8; 192];
        context[40..44].copy_from_slice(&self.ifindex.to_ne_bytes());
        let options =
            TestRunOptions { data_in: Some(packet), ctx_in: Some(&context), ..TestRunOptions::default() };
        let program = self.datapath.program(kind).expect("a loaded program");
        program.test_run(options).expect("a test run").return_value.cast_signed()
    }

    fn run_once(&mut self, kind: ProgramKind, packet: &[u8], gso_size: u32) -> Outcome {
        let before = self.datapath.counters().expect("counters");
        let mut out = vec![0; packet.len() + 512];
        let mut context = [0_u8; 192];
        context[40..44].copy_from_slice(&self.ifindex.to_ne_bytes());
        context[164..168].copy_from_slice(&u32::from(gso_size != 0).to_ne_bytes());
        context[176..180].copy_from_slice(&gso_size.to_ne_bytes());
        let program = self.datapath.program(kind).expect("a loaded program");
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .expect("a test run");
        out.truncate(result.data_size_out as usize);
        let after = self.datapath.counters().expect("counters");
        let counted = after
            .into_iter()
            .filter(|(key, counter)| before.get(key).is_none_or(|old| old.packets != counter.packets))
            .map(|(key, _)| key)
            .collect();
        Outcome { verdict: result.return_value.cast_signed(), frame: out, counted }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.datapath.unload().expect("pins are removed");
        assert!(!self.dir.exists(), "nothing is left in {}", self.dir.display());
    }
}

/// What a program did with a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) verdict: i32,
    pub(crate) frame: Vec<u8>,
    pub(crate) counted: Vec<(Vni, Reason)>,
}

pub(crate) const PASS: i32 = -1;
pub(crate) const DROP: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

impl Outcome {
    #[track_caller]
    pub(crate) fn is(&self, verdict: i32, vni: Vni, reason: Reason) {
        assert_eq!((self.verdict, self.counted.as_slice()), (verdict, [(vni, reason)].as_slice()));
    }

    #[track_caller]
    pub(crate) fn dropped(&self, reason: Reason) {
        self.is(DROP, VNI, reason);
    }

    #[track_caller]
    pub(crate) fn passed(&self) {
        assert_eq!((self.verdict, self.counted.as_slice()), (PASS, [].as_slice()));
    }
}

pub(crate) fn v4(last: u8) -> Address {
    Address::from_v4([10, 64, 0, last])
}

pub(crate) fn v6(last: u8) -> Address {
    let mut bytes = [0; 16];
    bytes[..12].copy_from_slice(&PREFIX6);
    bytes[15] = last;
    Address(bytes)
}

pub(crate) fn mac(last: u8) -> Mac {
    Mac([2, 0x42, 10, 64, 0, last])
}

pub(crate) fn config() -> Config {
    Config {
        local: Address::from_v4(LOCAL),
        underlay_ifindex: IFINDEX,
        vxlan_ifindex: IFINDEX,
        host_ifindex: IFINDEX,
        underlay_mtu: 1500,
        host_mac: HOST_MAC,
        vxlan_port: 4789_u16.to_be_bytes(),
        encapsulation: Encapsulation::Direct as u8,
        ..Config::default()
    }
}

pub(crate) fn block(
    vni: Vni,
    address: Address,
    prefix_bits: u8,
    kind: BlockKind,
    tunnel: Address,
) -> MapEntry {
    MapEntry::Block(
        BlockKey { vni, prefix_bits, address },
        Block { tunnel, kind: kind as u32, ..Block::default() },
    )
}

pub(crate) fn entries() -> Vec<MapEntry> {
    let remote = Address::from_v4(REMOTE);
    let endpoint = |vni, address, last| {
        MapEntry::Endpoint(
            EndpointKey { vni, address },
            Endpoint { ifindex: IFINDEX, mac: mac(last), flags: 0 },
        )
    };
    let route = |address, prefix_bits, vni| MapEntry::HostRoute(HostRouteKey { prefix_bits, address }, vni);
    let mut v6_base = v6(0);
    v6_base.0[15] = 0;
    vec![
        MapEntry::Config(config()),
        MapEntry::Network(VNI, Network { flags: mesh_ebpf_types::HOST_DNS, mtu: MTU, prefix6: PREFIX6 }),
        MapEntry::Network(OTHER_VNI, Network { flags: 0, mtu: MTU, prefix6: [0; 12] }),
        MapEntry::Network(
            ENCRYPTED_VNI,
            Network { flags: mesh_ebpf_types::ENCRYPTED, mtu: 1390, prefix6: [0; 12] },
        ),
        MapEntry::Interface(
            IFINDEX,
            Interface { vni: VNI, ipv4: [10, 64, 0, 5], ipv6: v6(5), mac: mac(5), flags: 0 },
        ),
        endpoint(VNI, v4(5), 5),
        endpoint(VNI, v4(6), 6),
        endpoint(VNI, v6(5), 5),
        endpoint(VNI, v6(6), 6),
        endpoint(OTHER_VNI, Address::from_v4([10, 65, 0, 5]), 9),
        endpoint(ENCRYPTED_VNI, Address::from_v4([10, 66, 0, 5]), 9),
        block(VNI, Address::from_v4([10, 64, 0, 0]), 96 + 20, BlockKind::Unassigned, Address::NONE),
        block(VNI, v4(1), 128, BlockKind::Gateway, Address::NONE),
        block(VNI, v4(0), 96 + 26, BlockKind::Local, Address::NONE),
        block(VNI, v4(64), 96 + 26, BlockKind::Remote, remote),
        block(VNI, v6_base, 64, BlockKind::Unassigned, Address::NONE),
        block(VNI, v6(1), 128, BlockKind::Gateway, Address::NONE),
        block(VNI, v6(64), 122, BlockKind::Remote, remote),
        block(ENCRYPTED_VNI, Address::from_v4([10, 66, 0, 64]), 96 + 26, BlockKind::Remote, remote),
        route(Address::from_v4([10, 64, 0, 0]), 96 + 20, VNI),
        route(v6_base, 64, VNI),
        route(Address::from_v4([10, 65, 0, 0]), 96 + 20, OTHER_VNI),
        MapEntry::Member(remote, Member::default()),
        MapEntry::HostAddress(Address::from_v4(LOCAL), 0),
    ]
}

/// An Ethernet frame.
pub(crate) fn frame(destination: Mac, source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&destination.0[..], &source.0, &ethertype.to_be_bytes(), payload].concat()
}

/// The Internet checksum.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// An IPv4 packet without options, DF set.
pub(crate) fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(0).to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An IPv4 packet without options after one more hop.
pub(crate) fn one_hop_further(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[8] -= 1;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// An IPv6 packet.
pub(crate) fn ipv6(
    source: Address,
    destination: Address,
    next: u8,
    hop_limit: u8,
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, hop_limit];
    packet.extend(source.0);
    packet.extend(destination.0);
    packet.extend(payload);
    packet
}

/// A UDP datagram without checksum.
pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(0);
    let mut datagram = Vec::new();
    for word in [source, destination, length, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend(payload);
    datagram
}

/// From 10.64.0.5 to an address of its network, its MAC derived.
pub(crate) fn from_endpoint(destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let [a, b, c, d] = destination;
    frame(
        Mac([2, 0x42, a, b, c, d]),
        mac(5),
        0x0800,
        &ipv4([10, 64, 0, 5], destination, 17, &udp(1, 2, payload)),
    )
}

/// A frame in VXLAN from a node to this one.
pub(crate) fn vxlan(source: [u8; 4], vni: Vni, inner: &[u8]) -> Vec<u8> {
    // The loopback's MAC is zero: any other destination would be another host's.
    vxlan_to(Mac([0; 6]), source, vni, inner)
}

/// The same, to a device with that MAC.
pub(crate) fn vxlan_to(destination: Mac, source: [u8; 4], vni: Vni, inner: &[u8]) -> Vec<u8> {
    let [_, v0, v1, v2] = vni.0;
    let header = [8, 0, 0, 0, v0, v1, v2, 0];
    let datagram = udp(40000, 4789, &[&header[..], inner].concat());
    frame(destination, Mac([2, 0, 0, 0, 0, 9]), 0x0800, &ipv4(source, LOCAL, 17, &datagram))
}
