//! `./dev bench attach`: how long a container waits for its network, and what an idle meshd
//! occupies.
//!
//! Every attachment is one process run to its end, as a runtime would run it: `meshctl endpoint
//! attach`, and the CNI plugin `bridge` with `host-local`, once with masquerade (as Mesh's networks
//! have it) and once without.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use mesh_harness::{Container, Host, Lab};
use serde::Serialize;

use crate::{
    cni::CniBridge,
    report::{Table, plain, write_json},
    stats::Samples,
};

const NETWORK: &str = "bench";
/// What a resting process may take and give back all the same.
const STEADY_MB: f64 = 0.2;

/// How to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Number of containers
    #[arg(long, default_value_t = 200)]
    count: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { count: 200 }
    }
}

#[derive(Debug, Default, Serialize)]
struct Results {
    mesh: Times,
    cni_bridge_masquerade: Times,
    cni_bridge: Times,
    memory: Memory,
}

/// All samples in milliseconds.
#[derive(Debug, Default, Serialize)]
struct Times {
    attach_ms: Samples,
    detach_ms: Samples,
}

/// Resident memory of meshd in MB (10^6 bytes).
#[derive(Debug, Default, Serialize)]
struct Memory {
    idle_manager: f64,
    idle_worker: f64,
    manager_with_all_endpoints: f64,
}

/// Measures, prints tables and writes `attach.json`.
pub fn run(options: &Options, output: &Path) -> anyhow::Result<()> {
    eprintln!("preparing two hosts and {} namespaces", options.count);
    let lab = Lab::builder().hosts(2).start()?;
    let (manager, worker) = (lab.host(1), lab.host(2));
    let mut results = Results::default();
    results.memory.idle_manager = resident(&manager)?;
    results.memory.idle_worker = resident(&worker)?;

    manager.meshctl(["network", "create", "-d", "overlay", NETWORK])?.ok()?;
    // The other host is in the network too: an attach is done when it could be reached from there.
    lab.container(2, "peer", ["--network", NETWORK])?;
    let with_masquerade = CniBridge::new(&manager, "cnimasq", "10.98.0.0/16", true)?;
    let without = CniBridge::new(&manager, "cniplain", "10.99.0.0/16", false)?;
    let containers = (0..options.count)
        .map(|number| lab.namespace(1, &format!("c{number}")))
        .collect::<Result<Vec<_>, _>>()
        .context("make namespaces")?;

    eprintln!("attaching");
    for container in &containers {
        results.mesh.attach_ms.push(time(|| attach(&manager, container))?);
        results
            .cni_bridge_masquerade
            .attach_ms
            .push(time(|| with_masquerade.call("ADD", container, "cni0"))?);
        results.cni_bridge.attach_ms.push(time(|| without.call("ADD", container, "cni1"))?);
    }
    results.memory.manager_with_all_endpoints = resident(&manager)?;
    eprintln!("detaching");
    for container in &containers {
        results.mesh.detach_ms.push(time(|| container.detach()?.ok().map(drop))?);
        results
            .cni_bridge_masquerade
            .detach_ms
            .push(time(|| with_masquerade.call("DEL", container, "cni0"))?);
        results.cni_bridge.detach_ms.push(time(|| without.call("DEL", container, "cni1"))?);
    }
    print(&results, options);
    write_json(output, "attach", &results)
}

fn attach(host: &Host, container: &Container) -> mesh_harness::Result<()> {
    let netns = container.netns().path();
    let netns = netns.to_string_lossy();
    host.meshctl(["endpoint", "attach", "--network", NETWORK, "--netns", &netns, "--name", container.name()])?
        .ok()
        .map(drop)
}

/// Milliseconds that `action` takes.
fn time(action: impl FnOnce() -> mesh_harness::Result<()>) -> mesh_harness::Result<f64> {
    let begin = Instant::now();
    action()?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// Resident memory of the host's meshd, in MB, once it has stayed the same for three seconds: a
/// host that has just started loads its programs, for which meshd needs more for a moment.
pub(crate) fn resident(host: &Host) -> anyhow::Result<f64> {
    let meshd = host.meshd().with_context(|| format!("no meshd on {}", host.name()))?;
    let read = || -> anyhow::Result<f64> {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", meshd.pid)).context("read meshd's status")?;
        resident_of(&status).context("no VmRSS in meshd's status")
    };
    let (mut last, mut since) = (read()?, Instant::now());
    let deadline = Instant::now() + Duration::from_secs(20);
    while since.elapsed() < Duration::from_secs(3) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        let now = read()?;
        if (now - last).abs() > STEADY_MB {
            (last, since) = (now, Instant::now());
        }
    }
    read()
}

/// `VmRSS` of /proc/PID/status in MB.
fn resident_of(status: &str) -> Option<f64> {
    let kibibytes: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(kibibytes * 1024.0 / 1e6)
}

fn print(results: &Results, options: &Options) {
    println!(
        "Attach and detach: {} containers on one host of two, one process each, in turn; milliseconds\n",
        options.count
    );
    let mut table = Table::new(["", "attach p50", "attach p99", "detach p50", "detach p99"]);
    let rows = [
        ("Mesh", &results.mesh),
        ("CNI bridge, masquerade", &results.cni_bridge_masquerade),
        ("CNI bridge", &results.cni_bridge),
    ];
    for (name, times) in rows {
        let cell = |samples: &Samples, percent| plain(samples.percentile(percent), 1);
        table.row([
            name.to_owned(),
            cell(&times.attach_ms, 50),
            cell(&times.attach_ms, 99),
            cell(&times.detach_ms, 50),
            cell(&times.detach_ms, 99),
        ]);
    }
    print!("{}", table.render());

    println!("\nResident memory of meshd, MB\n");
    let memory = &results.memory;
    let mut table = Table::new(["", "MB"]);
    let with_all = format!("manager, {} endpoints", options.count);
    for (name, value) in [
        ("manager, idle", memory.idle_manager),
        ("worker, idle", memory.idle_worker),
        (with_all.as_str(), memory.manager_with_all_endpoints),
    ] {
        table.row([name.to_owned(), plain(Some(value), 1)]);
    }
    print!("{}", table.render());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_decimal_megabytes() {
        assert_eq!(resident_of("VmPeak:\t 1 kB\nVmRSS:\t   10000 kB\n"), Some(10.24));
        assert_eq!(resident_of("VmPeak:\t 1 kB\n"), None);
    }
}
