//! `./dev bench fuzz`: random and mutated packets through every program of a running host, by
//! `BPF_PROG_TEST_RUN` (the kernel's `Documentation/bpf/bpf_prog_run.rst`).
//!
//! The maps are those of a live host, so packets meet real endpoints, services and peers. Three
//! things must hold: every run returns a verdict, no packet is delivered outside its network, and
//! the host carries traffic afterwards.

mod packet;
mod target;

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use mesh_harness::{Container, Lab};
use serde::Serialize;

use self::packet::{Mutator, Site};
use self::target::Target;
use crate::report::{Table, write_json};

/// Packets that one program gets before the next has its turn.
const TURN: u64 = 100_000;

/// How to fuzz.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Number of packets in all
    #[arg(long, default_value_t = 100_000_000)]
    packets: u64,
    /// Seed of the mutations; the same seed gives the same packets
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What became of the packets that one program got.
#[derive(Debug, Serialize)]
struct Outcome {
    program: String,
    interface: String,
    packets: u64,
    passed: u64,
    dropped: u64,
    redirected: u64,
}

/// Fuzzes every program and prints a table.
pub fn run(options: &Options, output: &Path) -> anyhow::Result<()> {
    eprintln!("preparing two hosts");
    let lab = Lab::builder().hosts(2).start()?;
    let manager = lab.host(1);
    for (network, option) in [("red", "--ipv6"), ("blue", "--ipv6"), ("secret", "--encrypted")] {
        manager.meshctl(["network", "create", "-d", "overlay", option, network])?.ok()?;
    }
    let publish = ["-p", "8080:80", "-p", "8080:80/udp"];
    let create = ["service", "create", "--name", "shop", "--network", "red"];
    manager.meshctl([&create[..], &publish].concat())?.ok()?;
    let containers = containers(&lab)?;
    let site = Site::new(&lab, &containers)?;
    let targets = target::all(&lab, &containers, &site)?;
    let mut outcomes: Vec<Outcome> = targets.iter().map(Outcome::of).collect();
    let mut mutator = Mutator::new(options.seed);
    let (begun, mut left) = (Instant::now(), options.packets);
    while left > 0 {
        for (target, outcome) in targets.iter().zip(&mut outcomes) {
            let turn = left.min(TURN);
            target.fuzz(turn, &mut mutator, &site, outcome)?;
            left -= turn;
        }
    }
    let [red, _, red_there, ..] = &containers[..] else { unreachable!("five containers were attached") };
    red.ping(red_there.ipv4()?)?.all_answered()?;
    ensure!(manager.meshd().is_some(), "meshd of the fuzzed host has ended");
    print(&outcomes, begun.elapsed().as_secs_f64());
    write_json(output, "fuzz", &outcomes)
}

fn containers(lab: &Lab) -> anyhow::Result<Vec<Container>> {
    let attach = |host, name: &str, network: &str| {
        let service: &[&str] = if network == "red" && host == 2 { &["--service", "shop"] } else { &[] };
        lab.container(host, name, [&["--network", network], service].concat())
    };
    Ok(vec![
        attach(1, "red", "red")?,
        attach(1, "blue", "blue")?,
        attach(2, "redthere", "red")?,
        attach(1, "secret", "secret")?,
        attach(2, "secretthere", "secret")?,
    ])
}

impl Outcome {
    fn of(target: &Target) -> Self {
        Self {
            program: target.program.clone(),
            interface: target.interface.clone(),
            packets: 0,
            passed: 0,
            dropped: 0,
            redirected: 0,
        }
    }
}

fn print(outcomes: &[Outcome], seconds: f64) {
    let total: u64 = outcomes.iter().map(|outcome| outcome.packets).sum();
    println!("\n{total} random and mutated packets in {seconds:.0} s; none left its network\n");
    let mut table = Table::new(["program", "at", "packets", "passed", "dropped", "redirected"]);
    for outcome in outcomes {
        let numbers = [outcome.packets, outcome.passed, outcome.dropped, outcome.redirected];
        let [packets, passed, dropped, redirected] = numbers.map(|number| number.to_string());
        table.row([outcome.program.clone(), outcome.interface.clone(), packets, passed, dropped, redirected]);
    }
    print!("{}", table.render());
}
