//! Measures the engine in user space. Connects two namespaces by a veth pair, and compares the
//! kernel's VXLAN without encryption, this engine, and wireguard-go with the kernel's VXLAN on top.
//!
//! `cargo run --release -p mesh-wireguard --example throughput [ROUNDS]`, as root; needs iperf3,
//! sockperf, wireguard-go and wg.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot continue has failed")]

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, time::Duration};

use mesh_harness::{Netns, OwnedNetns, Process, ip_batch, ip_batch_in, poll_until};
use mesh_wireguard::{
    EngineConfig, FrameTag, OwnKey, PeerConfig, PrivateKey, TunnelSources, Userspace, WireguardEngine,
    inner_mtu,
};

const TAG: FrameTag = FrameTag { vni: 4096, peer: 1 };
const SECONDS: &str = "2";
const SOON: Duration = Duration::from_secs(5);

/// The measured paths, with the second host's address on each.
const WAYS: [(&str, &str); 3] =
    [("clear VXLAN", "10.7.0.2"), ("engine", "10.8.0.2"), ("wireguard-go", "10.6.0.2")];

#[derive(Debug, Default)]
struct Figures {
    one: Vec<f64>,
    four: Vec<f64>,
    cpu: Vec<f64>,
    round_trip: Vec<f64>,
    small: Vec<f64>,
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(3, |text| text.parse().unwrap());
    let name = |side| format!("mwb{}{side}", std::process::id());
    let (a, b) = (OwnedNetns::create(name("a")).unwrap(), OwnedNetns::create(name("b")).unwrap());
    ip_batch(&[format!("link add name u0 netns {} type veth peer name u0 netns {}", a.name(), b.name())])
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let keys = [PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap()];
    let mut engines = Vec::new();
    let mut foreign = Vec::new();
    for (netns, side) in [(&a, 1), (&b, 2)] {
        let batch = [format!("addr add 192.0.2.{side}/24 dev u0"), "link set u0 up".to_owned()];
        ip_batch_in(netns, &batch).unwrap();
        vxlan(netns, "clear0", 42, "192.0.2", "10.7.0", side, "u0", 1450);
        engines.push(engine(netns, &keys, side));
        foreign.push(wireguard_go(netns, &keys, side, folder.path()));
    }
    let null = Path::new("/dev/null");
    let _servers = (
        b.cmd(["iperf3", "-s"]).spawn(null).unwrap(),
        b.cmd(["sockperf", "sr", "--tcp", "-i", "0.0.0.0", "-p", "5902"]).spawn(null).unwrap(),
    );
    std::thread::sleep(Duration::from_secs(1));
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    for round in 0..rounds {
        for (way, address) in WAYS {
            let figures = figures.entry(way).or_default();
            let before = busy();
            let (gbit, bytes) = iperf(&a, address, &["-P", "1"]);
            figures.cpu.push((busy() - before) / (bytes / 1e9));
            figures.one.push(gbit);
            figures.four.push(iperf(&a, address, &["-P", "4"]).0);
            figures.round_trip.push(sockperf(&a, address));
            figures.small.push(small(&a, address));
            eprintln!("round {round}, {way}: {figures:?}");
        }
    }
    let clear = &figures["clear VXLAN"];
    println!(
        "way            TCP 1 Gbit/s (of clear)   TCP 4 Gbit/s (of clear)   ping-pong us (of clear)   UDP 64 kpps   CPU s/GB"
    );
    for (way, _) in WAYS {
        let own = &figures[way];
        let cell = |of: fn(&Figures) -> &Vec<f64>| {
            format!("{:8.2} ({:.2})", median(of(own)), median(of(own)) / median(of(clear)))
        };
        println!(
            "{way:14} {:>24} {:>25} {:>25} {:>13.0} {:>10.2}",
            cell(|f| &f.one),
            cell(|f| &f.four),
            cell(|f| &f.round_trip),
            median(&own.small),
            median(&own.cpu)
        );
    }
    for mut engine in engines {
        println!("{:?}", engine.status().unwrap().drops);
    }
}

#[expect(clippy::too_many_arguments, reason = "they are the device's parameters")]
fn vxlan(netns: &Netns, name: &str, id: u32, under: &str, inner: &str, side: u8, device: &str, mtu: u16) {
    let other = 3 - side;
    ip_batch_in(
        netns,
        &[
            format!("link add {name} type vxlan id {id} local {under}.{side} remote {under}.{other} dstport {} dev {device}", 4000 + id),
            format!("link set {name} mtu {mtu} up"),
            format!("addr add {inner}.{side}/24 dev {name}"),
        ],
    )
    .unwrap();
}

fn sources(side: u8) -> TunnelSources {
    TunnelSources { even: Ipv4Addr::new(10, 9, 2, side), odd: Ipv4Addr::new(10, 9, 1, side) }
}

fn config(keys: &[PrivateKey; 2], side: u8) -> EngineConfig {
    let other = 3 - side;
    let (own, theirs) = (&keys[usize::from(side - 1)], &keys[usize::from(other - 1)]);
    let peer = PeerConfig {
        endpoint: Some(([192, 0, 2, other], 51820).into()),
        tunnel_address: Ipv4Addr::new(10, 9, 0, other),
        sources: sources(other),
        keys: BTreeMap::from([(1, theirs.public())]),
    };
    EngineConfig {
        device: "meshwg0".to_owned(),
        device_index: None,
        listen_port: 51820,
        vxlan_port: 4789,
        inner_mtu: inner_mtu(1500, false),
        tunnel_address: Ipv4Addr::new(10, 9, 0, side),
        sources: sources(side),
        keys: vec![OwnKey { generation: 1, private: own.clone(), active: true }],
        peers: BTreeMap::from([(TAG.peer, peer)]),
    }
}

fn engine(netns: &Netns, keys: &[PrivateKey; 2], side: u8) -> Userspace {
    let mut engine = Userspace::new();
    netns.enter(|| engine.apply(&config(keys, side))).unwrap().unwrap();
    let mac = TAG.mac().map(|byte| format!("{byte:02x}")).join(":");
    ip_batch_in(
        netns,
        &[
            format!("link set meshwg0 address {mac}"),
            format!("addr add 10.8.0.{side}/24 dev meshwg0"),
            format!("neigh add 10.8.0.{} lladdr {mac} dev meshwg0", 3 - side),
        ],
    )
    .unwrap();
    engine
}

fn wireguard_go(netns: &Netns, keys: &[PrivateKey; 2], side: u8, folder: &Path) -> Process {
    let (other, device) = (3 - side, format!("wb{side}{}", std::process::id()));
    let log = folder.join(format!("log{side}"));
    let process =
        netns.cmd(["wireguard-go", "-f", &device]).env("WG_PROCESS_FOREGROUND", "1").spawn(&log).unwrap();
    let config = config(keys, side);
    let key = folder.join(format!("key{side}"));
    let private = serde_json::to_string(&config.keys[0].private).unwrap();
    std::fs::write(&key, private.trim_matches('"')).unwrap();
    let line = format!(
        "wg set {device} listen-port 51821 private-key {} peer {} allowed-ips 10.5.0.{other}/32 endpoint 192.0.2.{other}:51821",
        key.display(),
        config.peers[&TAG.peer].keys[&1]
    );
    poll_until(SOON, || netns.run(line.split(' ')).unwrap().success().then_some(())).unwrap();
    let batch = [format!("addr add 10.5.0.{side}/24 dev {device}"), format!("link set {device} mtu 1440 up")];
    ip_batch_in(netns, &batch).unwrap();
    vxlan(netns, "go0", 43, "10.5.0", "10.6.0", side, &device, 1390);
    process
}

/// Returns Gbit/s and the number of bytes received.
fn iperf(netns: &Netns, address: &str, more: &[&str]) -> (f64, f64) {
    let line = ["iperf3", "-c", address, "-t", SECONDS, "-J"];
    let report: serde_json::Value = netns.run(line.iter().chain(more).copied()).unwrap().json().unwrap();
    let received = &report["end"]["sum_received"];
    (received["bits_per_second"].as_f64().unwrap() / 1e9, received["bytes"].as_f64().unwrap())
}

/// Returns thousands of 64-byte datagrams received per second.
fn small(netns: &Netns, address: &str) -> f64 {
    let line = ["iperf3", "-c", address, "-t", SECONDS, "-J", "-u", "-b", "0", "-l", "64"];
    let report: serde_json::Value = netns.run(line).unwrap().json().unwrap();
    let sum = &report["end"]["sum"];
    let value = |name: &str| sum[name].as_f64().unwrap();
    (value("packets") - value("lost_packets")) / value("seconds") / 1e3
}

/// Returns the average ping-pong latency (half of a round trip) in microseconds.
fn sockperf(netns: &Netns, address: &str) -> f64 {
    let output = netns.run(["sockperf", "pp", "--tcp", "-i", address, "-p", "5902", "-t", SECONDS]).unwrap();
    let average = output.stdout.split("avg-latency=").nth(1).unwrap();
    average.split(' ').next().unwrap().parse().unwrap()
}

/// Returns the CPU seconds used on this machine since it started.
fn busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let ticks: Vec<f64> =
        stat.lines().next().unwrap().split_whitespace().skip(1).take(8).map(|f| f.parse().unwrap()).collect();
    (ticks.iter().sum::<f64>() - ticks[3] - ticks[4]) / 100.0
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
