//! `./dev bench overlay`: what an overlay costs.
//!
//! Every variant has two hosts of its own, joined by a cable and otherwise idle, so that no
//! variant's programs or devices are in another's way; they are measured in turn.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use mesh_harness::{Encapsulation, Lab, LabBuilder};
use serde::Serialize;

use crate::{
    bridge_vxlan,
    instruments::Ends,
    report::{Table, with_ratio, write_json},
    stats::Samples,
    turns::Turns,
};

const UNDERLAY_MTU: u32 = 1500;

/// How to measure.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    #[command(flatten)]
    turns: Turns,
    /// Join the hosts by a bridge instead of a cable
    #[arg(long)]
    bridge: bool,
}

/// One way from a client to a server on another host.
struct Variant {
    name: &'static str,
    lab: Lab,
    ends: Ends,
    results: Results,
}

/// Medians are what counts; all samples are kept.
#[derive(Debug, Default, Serialize)]
struct Results {
    tcp_latency_us: Samples,
    udp_sent_kpps: Samples,
    udp_received_kpps: Samples,
    tcp_gbit_s_no_offloads: Samples,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    turns: &'a Turns,
    hosts_joined_by: &'static str,
    variants: BTreeMap<&'static str, &'a Results>,
}

/// Measures, prints a table and writes `overlay.json`.
pub fn run(options: &Options, output: &Path) -> anyhow::Result<()> {
    let mut variants = prepare(options)?;
    options
        .turns
        .take(&mut variants, |variant, seconds| variant.measure(seconds).with_context(|| variant.name))?;
    print(&variants, options);
    let joined_by = if options.bridge { "bridge" } else { "cable" };
    let results = variants.iter().map(|variant| (variant.name, &variant.results)).collect();
    let report = Report { turns: &options.turns, hosts_joined_by: joined_by, variants: results };
    write_json(output, "overlay", &report)
}

fn prepare(options: &Options) -> anyhow::Result<Vec<Variant>> {
    type Make = fn(LabBuilder) -> anyhow::Result<(Lab, Ends)>;
    let makers: [(&'static str, Make); 4] = [
        ("underlay", underlay),
        ("bridge + VXLAN", bridge_and_vxlan),
        ("Mesh direct", |lab| mesh(lab, Encapsulation::Direct)),
        ("Mesh device", |lab| mesh(lab, Encapsulation::Device)),
    ];
    let mut variants = Vec::new();
    for (name, make) in makers.into_iter().filter(|(name, _)| options.turns.wants(name)) {
        eprintln!("preparing {name}");
        let builder = Lab::builder().hosts(2).underlay_mtu(UNDERLAY_MTU);
        let builder = if options.bridge { builder } else { builder.cabled() };
        let (lab, ends) = make(builder).with_context(|| name)?;
        variants.push(Variant { name, lab, ends, results: Results::default() });
    }
    Ok(variants)
}

fn underlay(lab: LabBuilder) -> anyhow::Result<(Lab, Ends)> {
    let lab = lab.without_meshd().start()?;
    let (client, server) = (lab.host(1), lab.host(2));
    let ends = Ends {
        client: client.netns().clone(),
        server: server.netns().clone(),
        server_address: server.address(),
    };
    Ok((lab, ends))
}

fn bridge_and_vxlan(lab: LabBuilder) -> anyhow::Result<(Lab, Ends)> {
    let lab = lab.without_meshd().start()?;
    let ends = bridge_vxlan::join(&lab, UNDERLAY_MTU)?;
    Ok((lab, ends))
}

fn mesh(lab: LabBuilder, encapsulation: Encapsulation) -> anyhow::Result<(Lab, Ends)> {
    let lab = lab.encapsulation(encapsulation).start()?;
    lab.host(1).meshctl(["network", "create", "-d", "overlay", "bench"])?.ok()?;
    let client = lab.container(1, "m1", ["--network", "bench"])?;
    let server = lab.container(2, "m2", ["--network", "bench"])?;
    let ends = Ends {
        client: client.netns().clone(),
        server: server.netns().clone(),
        server_address: server.ipv4()?,
    };
    Ok((lab, ends))
}

impl Variant {
    fn measure(&mut self, seconds: u32) -> anyhow::Result<()> {
        let log = self.lab.path().join("bench.log");
        self.results.tcp_latency_us.push(self.ends.tcp_latency(seconds, &log)?);
        let rate = self.ends.udp_rate(seconds, &log)?;
        self.results.udp_sent_kpps.push(rate.sent);
        self.results.udp_received_kpps.push(rate.received);
        self.lab.set_underlay_offloads(false)?;
        let throughput = self.ends.tcp_throughput(seconds, &log);
        self.lab.set_underlay_offloads(true)?;
        self.results.tcp_gbit_s_no_offloads.push(throughput?);
        Ok(())
    }
}

fn print(variants: &[Variant], options: &Options) {
    println!(
        "Overlay: medians of {} rounds of {} s, in turn; in parentheses the ratio to the first row\n",
        options.turns.rounds, options.turns.seconds
    );
    let mut table = Table::new([
        "",
        "TCP ping-pong us",
        "UDP 64 B kpps sent",
        "kpps received",
        "TCP Gbit/s, offloads off",
    ]);
    let Some(base) = variants.first().map(|variant| &variant.results) else { return };
    for variant in variants {
        let results = &variant.results;
        let cell = |pick: fn(&Results) -> &Samples, decimals| {
            with_ratio(pick(results).median(), pick(base).median(), decimals)
        };
        table.row([
            variant.name.to_owned(),
            cell(|results| &results.tcp_latency_us, 2),
            cell(|results| &results.udp_sent_kpps, 1),
            cell(|results| &results.udp_received_kpps, 1),
            cell(|results| &results.tcp_gbit_s_no_offloads, 2),
        ]);
    }
    print!("{}", table.render());
}
