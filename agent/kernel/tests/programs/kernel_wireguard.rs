//! Packets to and from the kernel's WireGuard: between two hosts whose devices hand each other
//! packets as they are, as WireGuard would after it has decrypted them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use mesh_ebpf_types::{
    Address, Block, BlockKey, BlockKind, Config, ENCRYPTED, FROM_EVEN_KEY, FROM_ODD_KEY, MapEntry, MapKey,
    Network, ProgramKind, Reason, Vni, WIREGUARD_KERNEL_IFINDEX, tunnel_address, tunnel_source,
};
use mesh_kernel::programs::{Attachment, Programs};

use crate::hosts::{Hosts, Setup, enter, succeed};
use crate::support::{PREFIX6, VNI, frame, ipv4, ipv6, mac, udp, v4, v6};
use crate::traffic::carry_everything;

/// A device of IP packets on each of two hosts, and what carries packets from one to the other.
/// Lines that it reads are packets for the second host, in hexadecimal, or ask for the sources of
/// the large packets that the first host has sent since it was last asked.
const DEVICES: &str = r"
import ctypes, fcntl, os, select, struct, sys
def device(netns):
    with open('/run/netns/' + netns) as file:
        assert ctypes.CDLL(None).setns(file.fileno(), 0x40000000) == 0
    fd = os.open('/dev/net/tun', os.O_RDWR)
    fcntl.ioctl(fd, 0x400454da, struct.pack('I', int(sys.argv[3])))
    fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', b'meshwg0', 0x1001))
    return fd
a, b = device(sys.argv[1]), device(sys.argv[2])
other, seen = {a: b, b: a}, []
def source(packet):
    words = struct.unpack('!10H', packet[:20])
    total = sum(words) % 0xffff
    return packet[12:16].hex() if total == 0 else 'checksum'
print('made', flush=True)
while True:
    for fd in select.select([a, b, 0], [], [])[0]:
        if fd:
            packet = os.read(fd, 65536)
            if fd == a and len(packet) > 1000: seen.append(source(packet))
            try: os.write(other[fd], packet)
            except OSError: pass  # It is not up yet.
            continue
        line = sys.stdin.readline()
        if not line: sys.exit()
        if line == 'sources\n':
            print(*seen, flush=True)
            seen.clear()
            continue
        os.write(b, bytes.fromhex(line))
        print('sent', flush=True)
";

struct Devices {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Devices {
    fn make(hosts: &Hosts) -> Self {
        let [one, two] = hosts.hosts.each_ref().map(|host| host.netns.clone());
        let mut child = Command::new("python3")
            .args(["-u", "-c", DEVICES, &one, &two, &WIREGUARD_KERNEL_IFINDEX.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("devices");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut devices = Self { child, input, output };
        devices.expect("made");
        devices
    }

    fn expect(&mut self, said: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), said);
    }

    /// Where the first host's large packets came from since this was last asked.
    fn sources(&mut self) -> Vec<[u8; 4]> {
        writeln!(self.input, "sources").expect("written");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        let source =
            |text| u32::from_str_radix(text, 16).expect("a header with a valid checksum").to_be_bytes();
        line.split_whitespace().map(source).collect()
    }

    /// Lets a packet out of the second host's device.
    fn send(&mut self, packet: &[u8]) {
        for byte in packet {
            write!(self.input, "{byte:02x}").expect("written");
        }
        writeln!(self.input).expect("written");
        self.expect("sent");
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two hosts, of which one is the other's peer 1 and 2, with an encrypted network.
fn hosts() -> (Hosts, Devices) {
    let mut hosts = Hosts::new(Setup::default());
    let devices = Devices::make(&hosts);
    let others = hosts.hosts.each_ref().map(|host| (host.address, host.last));
    for (number, (host, (address, last))) in (1..).zip(hosts.hosts.iter_mut().zip(others.into_iter().rev())) {
        succeed(&enter(&host.netns, &["ip", "link", "set", "meshwg0", "mtu", "1500", "up"]));
        let remote = |first, prefix_bits| {
            let key = BlockKey { vni: VNI, prefix_bits, address: first };
            let (tunnel, kind) = (Address::from_v4(address), BlockKind::Remote as u32);
            MapEntry::Block(key, Block { tunnel, kind, peer: 3 - number, ..Block::default() })
        };
        let network = Network { flags: ENCRYPTED, mtu: 1450, prefix6: PREFIX6 };
        let entries =
            [MapEntry::Network(VNI, network), remote(v4(last & 0xc0), 96 + 26), remote(v6(last & 0xc0), 122)];
        host.inside(|datapath| {
            let observed = datapath.observe().expect("observed");
            let Some(MapEntry::Config(config)) = observed.entries.get(&MapKey::Config) else { panic!() };
            let (wireguard_ifindex, wireguard_peer) = (WIREGUARD_KERNEL_IFINDEX, number);
            let flags = FROM_ODD_KEY;
            let config = Config { wireguard_ifindex, wireguard_peer, flags, ..*config };
            datapath.put(&MapEntry::Config(config)).expect("configured");
            for entry in entries {
                datapath.put(&entry).expect("an entry");
            }
            let attachment = Attachment { ifindex: WIREGUARD_KERNEL_IFINDEX, kind: ProgramKind::Wireguard };
            datapath.attach(attachment).expect("attached");
        });
    }
    (hosts, devices)
}

#[test]
fn the_kernels_wireguard_is_given_everything_and_gives_everything_back() {
    let (mut hosts, _devices) = hosts();
    carry_everything(&mut hosts, 20);
    let devices = succeed(&enter(&hosts.hosts[0].netns, &["cat", "/proc/net/dev"]));
    let underlay = devices.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("a line");
    let sent: u64 = underlay.split_whitespace().nth(8).expect("a column").parse().expect("a number");
    assert!(sent < 100_000, "{sent} bytes on the underlay");
}

#[test]
fn without_the_device_nothing_leaves() {
    let (mut hosts, devices) = hosts();
    hosts.run(&["ping", "-c", "1", "-W", "2", "10.64.0.70"]);
    drop(devices);
    let ping = enter(&hosts.hosts[0].container, &["ping", "-c", "2", "-i", "0.05", "-W", "1", "10.64.0.70"]);
    assert!(!ping.status.success());
    assert_eq!(hosts.hosts[1].counter(VNI, Reason::EncryptedInClear), 0);
}

#[test]
fn packets_come_from_the_address_of_the_key_in_use_and_from_both_while_it_is_replaced() {
    let (mut hosts, mut devices) = hosts();
    let [even, odd] = [false, true].map(|odd| tunnel_source(1, odd));
    hosts.run(&["ping", "-c", "1", "-W", "5", "10.64.0.70"]);
    for (flags, expected) in [
        (FROM_ODD_KEY, vec![odd]),
        (FROM_EVEN_KEY, vec![even]),
        (FROM_ODD_KEY | FROM_EVEN_KEY, vec![odd, even]),
    ] {
        hosts.hosts[0].inside(|datapath| {
            let observed = datapath.observe().expect("observed");
            let Some(MapEntry::Config(config)) = observed.entries.get(&MapKey::Config) else { panic!() };
            datapath.put(&MapEntry::Config(Config { flags, ..*config })).expect("configured");
        });
        devices.sources();
        hosts.run(&["ping", "-c", "4", "-i", "0.02", "-s", "1000", "-W", "5", "10.64.0.70"]);
        assert_eq!(devices.sources(), expected.repeat(4));
    }
}

/// A packet in VXLAN from one tunnel address to another.
fn tunnelled(from: [u8; 4], to: [u8; 4], port: u16, vni: Vni, inner: &[u8]) -> Vec<u8> {
    let [_, v0, v1, v2] = vni.0;
    ipv4(from, to, 17, &udp(50000, port, &[&[8, 0, 0, 0, v0, v1, v2, 0], inner].concat()))
}

#[test]
fn of_what_a_peer_sends_only_packets_of_encrypted_networks_from_its_own_addresses_are_taken() {
    let (mut hosts, mut devices) = hosts();
    let inner = |from, to| frame(mac(70), mac(5), 0x0800, &ipv4(from, to, 17, &udp(1, 2, b"hello")));
    let (ours, theirs) = (tunnel_address(2), tunnel_source(1, true));
    let good = inner([10, 64, 0, 5], [10, 64, 0, 70]);
    let good = |from, to, port, vni| tunnelled(from, to, port, vni, &good);
    let mut expect = |packet: &[u8], vni, reason| {
        let before = hosts.hosts[1].counter(vni, reason);
        devices.send(packet);
        let deadline = Instant::now() + Duration::from_secs(5);
        while hosts.hosts[1].counter(vni, reason) == before {
            assert!(Instant::now() < deadline, "{reason:?}: {packet:02x?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // By either of its keys.
    for odd in [true, false] {
        let [theirs, third] = [1, 3].map(|peer| tunnel_source(peer, odd));
        expect(&good(theirs, ours, 4789, VNI), VNI, Reason::Received);
        expect(&good(third, ours, 4789, VNI), VNI, Reason::SpoofedPeer);
        let foreign = tunnelled(theirs, ours, 4789, VNI, &inner([10, 64, 0, 130], [10, 64, 0, 70]));
        expect(&foreign, VNI, Reason::SpoofedPeer);
        let local = tunnelled(theirs, ours, 4789, VNI, &inner([10, 64, 0, 70], [10, 64, 0, 70]));
        expect(&local, VNI, Reason::SpoofedPeer);
    }
    expect(&good(theirs, ours, 4789, Vni::new(4999)), Vni::NONE, Reason::UnknownNetwork);
    // Where it is sent to is not where it sends from.
    let nobodys = [[100, 64, 0, 0], [100, 65, 0, 0], [100, 66, 0, 1], [192, 168, 77, 11], tunnel_address(1)];
    for source in nobodys {
        expect(&good(source, ours, 4789, VNI), Vni::NONE, Reason::SpoofedPeer);
    }
    // Nothing of the host is reached: neither its own addresses, nor other ports, nor by fragments
    // or options.
    let mut fragment = good(theirs, ours, 4789, VNI);
    fragment[6] = 0x20;
    let mut checked = good(theirs, ours, 4789, VNI);
    checked[26] = 1;
    let ping = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    let others = [
        good(theirs, tunnel_address(3), 4789, VNI),
        good(theirs, tunnel_source(2, true), 4789, VNI),
        good(theirs, [192, 168, 77, 12], 4789, VNI),
        good(theirs, ours, 4790, VNI),
        fragment,
        checked,
        ipv4(theirs, [192, 168, 77, 12], 1, &[&ping[..], &[0; 40]].concat()),
        ipv6(v6(5), v6(70), 17, 64, &udp(1, 4789, b"hello hello hello hello")),
        tunnelled(theirs, ours, 4789, VNI, &frame(mac(70), mac(5), 0x0806, &[0; 28])),
    ];
    for packet in &others {
        expect(packet, Vni::NONE, Reason::UnsupportedProtocol);
    }
    expect(&ipv4(theirs, ours, 17, &[0; 8]), Vni::NONE, Reason::Malformed);
}
