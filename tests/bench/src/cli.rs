//! The `mesh-bench` command.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{attach, encrypted, fuzz, lb, overlay};

/// Measurements with peers side by side: prints tables, writes JSON.
#[derive(Debug, Parser)]
#[command(name = "mesh-bench", bin_name = "./dev bench", version)]
pub struct Cli {
    /// Directory for the JSON files
    #[arg(long, default_value = "target/bench", global = true)]
    output: PathBuf,
    /// All of them unless named
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Latency, packet rate and throughput: bare underlay, bridge + VXLAN device, Mesh in both
    /// encapsulations
    Overlay(overlay::Options),
    /// Time to attach and detach a container, against the CNI bridge plugin; memory of meshd
    Attach(attach::Options),
    /// Services inside a network and published: Mesh, nftables as kube-proxy uses it, HAProxy
    Lb(lb::Options),
    /// Encryption between hosts: Mesh's engine in user space, wireguard-go, boringtun's own program
    Encrypted(encrypted::Options),
    /// Random and mutated packets through every eBPF program; no peers, and only if named
    Fuzz(fuzz::Options),
}

impl Cli {
    /// Runs what was asked for.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Some(Command::Overlay(options)) => overlay::run(&options, &self.output),
            Some(Command::Attach(options)) => attach::run(&options, &self.output),
            Some(Command::Lb(options)) => lb::run(&options, &self.output),
            Some(Command::Encrypted(options)) => encrypted::run(&options, &self.output),
            Some(Command::Fuzz(options)) => fuzz::run(&options, &self.output),
            None => {
                overlay::run(&overlay::Options::default(), &self.output)?;
                println!();
                attach::run(&attach::Options::default(), &self.output)?;
                println!();
                lb::run(&lb::Options::default(), &self.output)?;
                println!();
                encrypted::run(&encrypted::Options::default(), &self.output)
            }
        }
    }
}
