//! Nanoseconds per packet: the programs of a running pair of hosts, with their own tables, each run
//! on a crafted packet by `BPF_PROG_TEST_RUN` (the kernel's `Documentation/bpf/bpf_prog_run.rst`).
//!
//! The XDP program knows of a flow what `underlay` found out of it on the same processor a moment
//! ago, and leaves all others to that.
//!
//! A program changes its packet, so that every run begins with a fresh one; what a run costs that
//! leaves its packet alone at once is subtracted.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::PathBuf,
};

use anyhow::{Context, ensure};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya_obj::programs::XdpAttachType;
use mesh_harness::{
    Container, Host, Lab, Netns,
    traffic::{Connection, WebServer},
};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use serde::Serialize;
use serde_json::Value;

use super::ports;
use crate::{
    report::{Table, with_ratio},
    stats::Samples,
};

const NETWORK: &str = "bench";
const SERVICE: &str = "web";
/// Source ports of the connections that are open while their packets are measured.
const OPEN: u16 = 40_000;
/// Runs of every case.
const RUNS: u16 = 20_000;
/// What a program returns that has sent the packet on, and one that leaves it alone.
const TC_ACT_REDIRECT: u32 = 7;
const XDP_TX: u32 = 3;
const XDP_PASS: u32 = 2;
/// What the other cases are compared with.
const SENT: &str = "direct, sent";
const RECEIVED: &str = "direct, received";
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Length of every packet that a container or client sends, bytes.
const LENGTH: usize = 64;

/// One program on one of its interfaces.
struct Program {
    netns: Netns,
    loaded: SchedClassifier,
    ifindex: u32,
}

/// One case: what is measured, in nanoseconds net of the way to the program.
#[derive(Debug, Serialize)]
pub(super) struct Cost {
    name: &'static str,
    /// The case that it is compared with.
    compared_with: &'static str,
    median_ns: f64,
}

/// Measures every case and prints a table.
pub(super) fn run() -> anyhow::Result<Vec<Cost>> {
    eprintln!("preparing two hosts");
    let lab = Lab::builder().hosts(2).start()?;
    let manager = lab.host(1);
    manager.meshctl(["network", "create", "-d", "overlay", NETWORK])?.ok()?;
    let publish = format!("{0}:{0}", ports::WEB);
    manager.meshctl(["service", "create", "--name", SERVICE, "--network", NETWORK, "-p", &publish])?.ok()?;
    let client = lab.container(1, "caller", ["--network", NETWORK])?;
    let backend = lab.container(2, "backend", ["--network", NETWORK, "--service", SERVICE])?;
    let _server = WebServer::start(backend.netns(), "backend", ports::WEB)?;
    let service: Value = manager.meshctl(["service", "inspect", SERVICE, "--format", "json"])?.json()?;
    let vip: Ipv4Addr = service["vip"].as_str().context("a VIP")?.parse()?;
    let costs = measure(&lab, &client, &backend, vip)?;
    print(&costs);
    Ok(costs)
}

fn measure(lab: &Lab, client: &Container, backend: &Container, vip: Ipv4Addr) -> anyhow::Result<Vec<Cost>> {
    let (here, there, outside) = (client.ipv4()?, backend.ipv4()?, lab.client());
    let outside_address: Ipv4Addr = lab.client_address().to_string().parse()?;
    let published = SocketAddrV4::new(lab.host(1).address(), ports::WEB);
    // Live flows, so that the packets are some flow's.
    let mut flows = Vec::new();
    for (netns, source, target) in [
        (client.netns(), here, SocketAddrV4::new(there, ports::WEB)),
        (client.netns(), here, SocketAddrV4::new(vip, ports::WEB)),
        (&outside, outside_address, published),
    ] {
        let port = OPEN + u16::try_from(flows.len())?;
        let mut flow =
            Connection::open_from(netns, Some(SocketAddr::new(source.into(), port)), target.into())?;
        flow.ask()?;
        flows.push(flow);
    }

    let sends = Program::of_container(client)?;
    let answers = Program::of_container(backend)?;
    let (first, second) = (Program::of_host(&lab.host(1))?, Program::of_host(&lab.host(2))?);
    let (to_backend, to_vip) = (Link::new(client, there)?, Link::new(client, vip)?);
    let (to_client, to_gateway) = (Link::new(backend, here)?, Link::to_gateway(backend)?);
    let (in_first, in_second) = (Link::on_wire(&lab.host(1))?, Link::on_wire(&lab.host(2))?);

    let endpoint = |address, port| SocketAddrV4::new(address, port);
    let web = |address| endpoint(address, ports::WEB);
    let direct = to_backend.tcp(endpoint(here, OPEN), web(there), ACK);
    let hit = to_vip.tcp(endpoint(here, OPEN + 1), web(vip), ACK);
    let forward = in_first.tcp(endpoint(outside_address, OPEN + 2), published, ACK);
    // What a program made of a packet is what the next host receives.
    let direct_received = in_second.rewrite(sends.output(&direct)?);
    let published_received = in_second.rewrite(first.output(&forward)?);
    let reply = to_gateway.tcp(web(there), endpoint(outside_address, OPEN + 2), ACK);
    let passing = in_first.rewrite(answers.output(&reply)?);
    let direct_reply =
        in_first.rewrite(answers.output(&to_client.tcp(web(there), endpoint(here, OPEN), ACK))?);
    let vip_reply =
        in_first.rewrite(answers.output(&to_client.tcp(web(there), endpoint(here, OPEN + 1), ACK))?);
    let mut other = forward.clone();
    other[12..14].copy_from_slice(&[0x88, 0xcc]);

    let idle = first.median(|_| other.clone(), None)?;
    let mut costs = Vec::new();
    let mut add = |name, compared_with, program: &Program, frame: &dyn Fn(u16) -> Vec<u8>| {
        let median_ns = (program.median(frame, Some(TC_ACT_REDIRECT)).context(name)? - idle).max(0.0);
        costs.push(Cost { name, compared_with, median_ns });
        anyhow::Ok(())
    };
    add(SENT, SENT, &sends, &|_| direct.clone())?;
    add("VIP, sent, known flow", SENT, &sends, &|_| hit.clone())?;
    add("VIP, sent, new flow", SENT, &sends, &|run| to_vip.tcp(endpoint(here, 10_000 + run), web(vip), SYN))?;
    add("published, forwarded", SENT, &first, &|_| forward.clone())?;
    add("published, answered", SENT, &answers, &|_| reply.clone())?;
    add(RECEIVED, RECEIVED, &second, &|_| direct_received.clone())?;
    add("published, received", RECEIVED, &second, &|_| published_received.clone())?;
    add("published, reply passing", RECEIVED, &first, &|_| passing.clone())?;
    add("direct, reply received", RECEIVED, &first, &|_| direct_reply.clone())?;
    add("VIP, reply received", RECEIVED, &first, &|_| vip_reply.clone())?;
    let driver = Driver::of_host(&lab.host(1), &first)?;
    let idle = driver.median(&other, XDP_PASS)?;
    for (name, compared_with, frame) in [
        ("published, forwarded by XDP", SENT, &forward),
        ("published, reply passing by XDP", RECEIVED, &passing),
    ] {
        let median_ns = (driver.median(frame, XDP_TX).context(name)? - idle).max(0.0);
        costs.push(Cost { name, compared_with, median_ns });
    }
    Ok(costs)
}

impl Program {
    /// What a container's packets meet first.
    fn of_container(container: &Container) -> anyhow::Result<Self> {
        let links: Value = container.exec(["ip", "-j", "link", "show", "dev", "eth0"])?.json()?;
        let ifindex = links[0]["link_index"].as_u64().context("the other end of eth0")?;
        Self::open(container.host(), "endpoint", u32::try_from(ifindex)?)
    }

    /// What packets from the wire meet first.
    fn of_host(host: &Host) -> anyhow::Result<Self> {
        let links: Value = host.run(["ip", "-j", "link", "show", "dev", "eth0"])?.json()?;
        let ifindex = links[0]["ifindex"].as_u64().context("the index of eth0")?;
        Self::open(host, "underlay", u32::try_from(ifindex)?)
    }

    fn open(host: &Host, name: &str, ifindex: u32) -> anyhow::Result<Self> {
        Ok(Self {
            netns: host.netns().clone(),
            loaded: SchedClassifier::from_pin(pin(host, name)?)?,
            ifindex,
        })
    }

    /// What the program makes of a frame.
    fn output(&self, frame: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut out = vec![0; frame.len() + 512];
        let context = self.context();
        let result = self.netns.enter(|| {
            self.loaded.test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
        })??;
        ensure!(result.return_value == TC_ACT_REDIRECT, "a packet was not sent on: {}", result.return_value);
        out.truncate(usize::try_from(result.data_size_out)?);
        Ok(out)
    }

    /// Median time of a run, in nanoseconds.
    fn median(&self, frame: impl Fn(u16) -> Vec<u8>, verdict: Option<u32>) -> anyhow::Result<f64> {
        let context = self.context();
        let frames: Vec<Vec<u8>> = (0..RUNS).map(frame).collect();
        self.netns.enter(|| {
            let mut samples = Samples::default();
            for frame in &frames {
                let result = self.loaded.test_run(TestRunOptions {
                    data_in: Some(frame),
                    ctx_in: Some(&context),
                    ..TestRunOptions::default()
                })?;
                if let Some(verdict) = verdict {
                    ensure!(result.return_value == verdict, "the program returned {}", result.return_value);
                }
                samples.push(result.duration.as_secs_f64() * 1e9);
            }
            samples.median().context("runs")
        })?
    }

    /// `struct __sk_buff` with the interface that the packet came in by.
    fn context(&self) -> [u8; 192] {
        const IFINDEX: usize = 40;
        let mut context = [0; 192];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&self.ifindex.to_ne_bytes());
        context
    }
}

/// The XDP program of a host, and the program that finds out what it knows.
struct Driver<'a> {
    early: Xdp,
    underlay: &'a Program,
}

impl<'a> Driver<'a> {
    fn of_host(host: &Host, underlay: &'a Program) -> anyhow::Result<Self> {
        let early = Xdp::from_pin(pin(host, "early")?, XdpAttachType::Interface)?;
        Ok(Self { early, underlay })
    }

    /// Median time of a run with that verdict, in nanoseconds.
    fn median(&self, frame: &[u8], verdict: u32) -> anyhow::Result<f64> {
        self.underlay.netns.enter(|| {
            // Threads that this one makes stay on its processor.
            let mut processor = CpuSet::new();
            processor.set(sched_getcpu()?)?;
            sched_setaffinity(Pid::from_raw(0), &processor)?;
            let (mut samples, mut others) = (Samples::default(), 0);
            for _ in 0..RUNS {
                let mut result = self.run(frame)?;
                while result.return_value != verdict {
                    others += 1;
                    ensure!(others < RUNS, "the program returned {}", result.return_value);
                    self.underlay.output(frame)?;
                    result = self.run(frame)?;
                }
                samples.push(result.duration.as_secs_f64() * 1e9);
            }
            samples.median().context("runs")
        })?
    }

    fn run(&self, frame: &[u8]) -> anyhow::Result<TestRunResult> {
        // `struct xdp_md`: the end of the data, and the interface that it came in by.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&u32::try_from(frame.len())?.to_ne_bytes());
        context[12..16].copy_from_slice(&self.underlay.ifindex.to_ne_bytes());
        Ok(self.early.test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        })?)
    }
}

/// Where a host has pinned a program.
fn pin(host: &Host, name: &str) -> anyhow::Result<PathBuf> {
    let versions = fs::read_dir(host.bpffs_dir()).context("list pins")?.flatten();
    let pin = versions.map(|entry| entry.path().join("programs").join(name)).find(|path| path.exists());
    pin.with_context(|| format!("no program {name} on {}", host.name()))
}

/// Ethernet addresses of packets on one way.
#[derive(Clone, Copy)]
struct Link {
    destination: [u8; 6],
    source: [u8; 6],
}

impl Link {
    /// From a container to an address of its network.
    fn new(container: &Container, address: Ipv4Addr) -> anyhow::Result<Self> {
        // Whether it answers does not matter: the question makes the neighbour known.
        container.ping(address)?;
        let text = address.to_string();
        let neighbours: Value = container.exec(["ip", "-j", "neigh", "show", "to", &text])?.json()?;
        Ok(Self { destination: mac(&neighbours[0]["lladdr"])?, source: own_mac(container.netns())? })
    }

    /// From a container to the outside.
    fn to_gateway(container: &Container) -> anyhow::Result<Self> {
        let routes: Value = container.exec(["ip", "-j", "route", "show", "default"])?.json()?;
        let gateway = routes[0]["gateway"].as_str().context("a default route")?;
        Self::new(container, gateway.parse()?)
    }

    /// From the wire to a host.
    fn on_wire(host: &Host) -> anyhow::Result<Self> {
        Ok(Self { destination: own_mac(host.netns())?, source: [0x52, 0x54, 0, 0x77, 0, 1] })
    }

    /// A frame with a TCP segment without options.
    fn tcp(self, source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Vec<u8> {
        let mut frame = Vec::with_capacity(LENGTH);
        frame.extend(self.destination);
        frame.extend(self.source);
        frame.extend([0x08, 0x00]);
        let total = u16::try_from(LENGTH - 14).unwrap_or(u16::MAX).to_be_bytes();
        let mut ip = [0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        ip[12..16].copy_from_slice(&source.ip().octets());
        ip[16..20].copy_from_slice(&destination.ip().octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum);
        frame.extend(ip);
        frame.extend(source.port().to_be_bytes());
        frame.extend(destination.port().to_be_bytes());
        // Sequence numbers, header length, flags, window; the checksum is only ever changed by
        // differences.
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0x12, 0x34, 0, 0]);
        frame.resize(LENGTH, 0);
        frame
    }

    /// The frame as this link's.
    fn rewrite(self, mut frame: Vec<u8>) -> Vec<u8> {
        frame[..6].copy_from_slice(&self.destination);
        frame[6..12].copy_from_slice(&self.source);
        frame
    }
}

/// Checksum of an IPv4 header whose own field is zero (RFC 1071).
fn checksum(header: &[u8]) -> [u8; 2] {
    let mut sum: u32 =
        header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

fn own_mac(netns: &Netns) -> anyhow::Result<[u8; 6]> {
    let links: Value = netns.run(["ip", "-j", "link", "show", "dev", "eth0"])?.json()?;
    mac(&links[0]["address"])
}

fn mac(text: &Value) -> anyhow::Result<[u8; 6]> {
    let text = text.as_str().context("a MAC address")?;
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().ok().with_context(|| format!("`{text}` is no MAC address"))
}

fn print(costs: &[Cost]) {
    println!(
        "\nNanoseconds per packet of {LENGTH} bytes, medians of {RUNS} runs, net of an untouched packet's\n"
    );
    let mut table = Table::new(["", "ns", "compared with"]);
    for cost in costs {
        let base = costs.iter().find(|other| other.name == cost.compared_with).map(|other| other.median_ns);
        table.row([
            cost.name.to_owned(),
            with_ratio(Some(cost.median_ns), base, 0),
            cost.compared_with.to_owned(),
        ]);
    }
    print!("{}", table.render());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crafted_packets_header_sums_to_nothing() {
        let link = Link { destination: [2; 6], source: [4; 6] };
        let source = SocketAddrV4::new(Ipv4Addr::new(10, 64, 0, 2), 40_000);
        let frame = link.tcp(source, SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 80), ACK);
        assert_eq!(frame.len(), LENGTH);
        assert_eq!(checksum(&frame[14..34]), [0, 0]);
        assert_eq!((frame[14 + 9], frame[14 + 20 + 13]), (6, ACK));
    }
}
