//! `./dev bench lb`: what services cost, inside a network and published.
//!
//! Two hosts. *Inside*: a client container on the first calls backends on the second, directly and
//! through a virtual address. *Published*: a machine outside calls a port of the first host, which
//! has no backend. The peers have hosts of their own, with what flannel builds between containers,
//! so that their packets pass the host's firewall, or a proxy.

mod haproxy;
mod kube_proxy;
mod manager;
mod packets;
mod path;
mod ports;
mod routed_vxlan;
mod scale;
mod site;

use std::{collections::BTreeMap, path::Path as FsPath};

use anyhow::Context;
use serde::Serialize;

use self::{
    path::{Path, Results},
    site::Site,
};
use crate::{
    report::{Table, with_ratio, write_json},
    turns::Turns,
};

/// How to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    turns: Turns,
    /// Backends of the service, all on the second host
    #[arg(long, default_value_t = 3)]
    backends: usize,
    /// Numbers of services for the part `scale`, each with ten backends
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 10_000])]
    services: Vec<usize>,
    /// Only this part
    #[arg(long)]
    part: Option<Part>,
}

impl Default for Options {
    fn default() -> Self {
        Self { turns: Turns::default(), backends: 3, services: vec![10, 1_000, 10_000], part: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Inside,
    Published,
    Packets,
    Scale,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    turns: &'a Turns,
    backends: usize,
    inside: BTreeMap<&'static str, &'a Results>,
    published: BTreeMap<&'static str, &'a Results>,
    packets: Vec<packets::Cost>,
    scale: Vec<scale::Level>,
}

/// Measures, prints tables and writes `lb.json`.
pub fn run(options: &Options, output: &FsPath) -> anyhow::Result<()> {
    let wanted = |part| options.part.is_none_or(|only| only == part);
    let mut inside = if wanted(Part::Inside) { site::inside(options)? } else { Vec::new() };
    measure(&mut inside, options)?;
    if !inside.is_empty() {
        print("Services inside a network", &inside, options);
    }
    let mut published = if wanted(Part::Published) { site::published(options)? } else { Vec::new() };
    measure(&mut published, options)?;
    if !published.is_empty() {
        print("\nPublished ports, through a host without a backend", &published, options);
    }
    let packets = if wanted(Part::Packets) { packets::run()? } else { Vec::new() };
    let scale = if wanted(Part::Scale) { scale::run(options)? } else { Vec::new() };
    let report = Report {
        turns: &options.turns,
        backends: options.backends,
        inside: paths(&inside).map(|path| (path.name, &path.results)).collect(),
        published: paths(&published).map(|path| (path.name, &path.results)).collect(),
        packets,
        scale,
    };
    write_json(output, "lb", &report)
}

fn paths(sites: &[Site]) -> impl Iterator<Item = &Path> {
    sites.iter().flat_map(|site| &site.paths)
}

fn measure(sites: &mut [Site], options: &Options) -> anyhow::Result<()> {
    options.turns.take(sites, |site, seconds| {
        let lab = &site.lab;
        site.paths.iter_mut().try_for_each(|path| path.measure(lab, seconds).with_context(|| path.name))
    })
}

fn print(title: &str, sites: &[Site], options: &Options) {
    println!(
        "{title}: {} backends, medians of {} rounds of {} s, in turn; in parentheses the ratio to the first row\n",
        options.backends, options.turns.rounds, options.turns.seconds
    );
    let mut table = Table::new([
        "",
        "TCP ping-pong us",
        "connects/s",
        "UDP 64 B kpps sent",
        "kpps received",
        "download Gbit/s",
        "offloads off",
    ]);
    let Some(base) = paths(sites).next().map(|path| &path.results) else { return };
    for path in paths(sites) {
        let cell = |pick: fn(&Results) -> &crate::stats::Samples, decimals| {
            with_ratio(pick(&path.results).median(), pick(base).median(), decimals)
        };
        table.row([
            path.name.to_owned(),
            cell(|results| &results.tcp_latency_us, 2),
            cell(|results| &results.connects_per_s, 0),
            cell(|results| &results.udp_sent_kpps, 1),
            cell(|results| &results.udp_received_kpps, 1),
            cell(|results| &results.download_gbit_s, 2),
            cell(|results| &results.download_gbit_s_no_offloads, 2),
        ]);
    }
    print!("{}", table.render());
}
