//! `./dev bench encrypted`: what encryption between hosts costs, with every engine in user space.
//!
//! Every variant has two hosts of its own, joined by a cable, and a container on each of them (the
//! first: the hosts themselves); they are measured in turn.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use mesh_harness::{Lab, LabBuilder, Process};
use serde::Serialize;

use crate::{
    instruments::Ends,
    report::{Table, plain, with_ratio, write_json},
    stats::Samples,
    turns::Turns,
    wireguard_peer::{self, Program},
};

const UNDERLAY_MTU: u32 = 1500;
const CLEAR: &str = "Mesh, clear";

/// How to measure.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    #[command(flatten)]
    turns: Turns,
}

struct Variant {
    name: &'static str,
    ends: Ends,
    results: Results,
    // Before the lab: processes end before their namespaces go.
    _processes: Vec<Process>,
    lab: Lab,
}

/// Medians are what counts; all samples are kept.
#[derive(Debug, Default, Serialize)]
struct Results {
    tcp_1_gbit_s: Samples,
    tcp_4_gbit_s: Samples,
    tcp_latency_us: Samples,
    udp_sent_kpps: Samples,
    udp_received_kpps: Samples,
    /// Of the whole machine, while one stream ran.
    cpu_s_per_gb: Samples,
    /// Of the programs that encrypt, while nothing was sent: in percent of one CPU.
    idle_cpu_percent: Samples,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    turns: &'a Turns,
    variants: BTreeMap<&'static str, &'a Results>,
}

/// Measures, prints a table and writes `encrypted.json`.
pub fn run(options: &Options, output: &Path) -> anyhow::Result<()> {
    let mut variants = prepare(options)?;
    options
        .turns
        .take(&mut variants, |variant, seconds| variant.measure(seconds).with_context(|| variant.name))?;
    print(&variants, options);
    let results = variants.iter().map(|variant| (variant.name, &variant.results)).collect();
    let report = Report { turns: &options.turns, variants: results };
    write_json(output, "encrypted", &report)
}

fn prepare(options: &Options) -> anyhow::Result<Vec<Variant>> {
    type Make = fn(LabBuilder) -> anyhow::Result<(Lab, Ends, Vec<Process>)>;
    let makers: [(&'static str, Make); 5] = [
        ("underlay", underlay),
        (CLEAR, |lab| mesh(lab, &[])),
        ("Mesh, encrypted", |lab| mesh(lab, &["--encrypted"])),
        ("wireguard-go", |lab| wireguard(lab, Program::WireguardGo)),
        ("boringtun-cli", |lab| wireguard(lab, Program::Boringtun)),
    ];
    let mut variants = Vec::new();
    for (name, make) in makers.into_iter().filter(|(name, _)| options.turns.wants(name)) {
        eprintln!("preparing {name}");
        let builder = Lab::builder().underlay_mtu(UNDERLAY_MTU).cabled();
        let (lab, ends, processes) = make(builder).with_context(|| name)?;
        variants.push(Variant { name, ends, results: Results::default(), _processes: processes, lab });
    }
    Ok(variants)
}

fn underlay(lab: LabBuilder) -> anyhow::Result<(Lab, Ends, Vec<Process>)> {
    let lab = lab.without_meshd().start()?;
    let (client, server) = (lab.host(1), lab.host(2));
    let ends = Ends {
        client: client.netns().clone(),
        server: server.netns().clone(),
        server_address: server.address(),
    };
    Ok((lab, ends, Vec::new()))
}

fn mesh(lab: LabBuilder, options: &[&str]) -> anyhow::Result<(Lab, Ends, Vec<Process>)> {
    let lab = lab.start()?;
    let create = [&["network", "create", "-d", "overlay"], options, &["bench"]].concat();
    lab.host(1).meshctl(create)?.ok()?;
    let client = lab.container(1, "m1", ["--network", "bench"])?;
    let server = lab.container(2, "m2", ["--network", "bench"])?;
    let ends = Ends {
        client: client.netns().clone(),
        server: server.netns().clone(),
        server_address: server.ipv4()?,
    };
    Ok((lab, ends, Vec::new()))
}

fn wireguard(lab: LabBuilder, program: Program) -> anyhow::Result<(Lab, Ends, Vec<Process>)> {
    let lab = lab.without_meshd().start()?;
    let (ends, processes) = wireguard_peer::join(&lab, program)?;
    Ok((lab, ends, processes.into()))
}

impl Variant {
    fn measure(&mut self, seconds: u32) -> anyhow::Result<()> {
        let log = self.lab.path().join("bench.log");
        let (ends, results) = (&self.ends, &mut self.results);
        let one = ends.tcp_streams(1, seconds, &log)?;
        results.tcp_1_gbit_s.push(one.gbit_s);
        results.cpu_s_per_gb.push(one.cpu_s_per_gb);
        results.tcp_4_gbit_s.push(ends.tcp_streams(4, seconds, &log)?.gbit_s);
        results.tcp_latency_us.push(ends.tcp_latency(seconds, &log)?);
        let rate = ends.udp_rate(seconds, &log)?;
        results.udp_sent_kpps.push(rate.sent);
        results.udp_received_kpps.push(rate.received);
        results.idle_cpu_percent.push(idle_cpu(&self.lab, seconds)?);
        Ok(())
    }
}

/// What the programs that encrypt use of one CPU, in percent, while nothing is sent.
fn idle_cpu(lab: &Lab, seconds: u32) -> anyhow::Result<f64> {
    const ENGINES: [&str; 3] = ["mesh-wireguard-", "wireguard-go", "boringtun-cli"];
    let engines = || -> anyhow::Result<f64> {
        let processes = lab.hosts().flat_map(|host| host.netns().processes()).filter(|process| {
            process.name().is_some_and(|name| ENGINES.iter().any(|engine| name.starts_with(engine)))
        });
        processes.map(|process| process.cpu_seconds().context("the engine has ended")).sum()
    };
    let before = engines()?;
    std::thread::sleep(std::time::Duration::from_secs(seconds.into()));
    Ok((engines()? - before) / f64::from(seconds) * 100.0)
}

fn print(variants: &[Variant], options: &Options) {
    println!(
        "Encrypted: medians of {} rounds of {} s, in turn; in parentheses the ratio to {CLEAR}\n",
        options.turns.rounds, options.turns.seconds
    );
    let mut table = Table::new([
        "",
        "TCP 1 Gbit/s",
        "TCP 4 Gbit/s",
        "TCP ping-pong us",
        "UDP 64 B kpps sent",
        "kpps received",
        "CPU s/GB",
        "idle CPU %",
    ]);
    let base = variants.iter().find(|variant| variant.name == CLEAR).map(|variant| &variant.results);
    for variant in variants {
        let cell = |pick: fn(&Results) -> &Samples, decimals| {
            let base = base.and_then(|base| pick(base).median());
            with_ratio(pick(&variant.results).median(), base, decimals)
        };
        table.row([
            variant.name.to_owned(),
            cell(|results| &results.tcp_1_gbit_s, 2),
            cell(|results| &results.tcp_4_gbit_s, 2),
            cell(|results| &results.tcp_latency_us, 2),
            cell(|results| &results.udp_sent_kpps, 1),
            cell(|results| &results.udp_received_kpps, 1),
            cell(|results| &results.cpu_s_per_gb, 2),
            plain(variant.results.idle_cpu_percent.median(), 1),
        ]);
    }
    print!("{}", table.render());
}
