//! `mesh-bench`: what `./dev bench` runs.

use clap::Parser;
use mesh_bench::cli::Cli;

fn main() -> anyhow::Result<()> {
    Cli::parse().run()
}
