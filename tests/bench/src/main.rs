//! `mesh-bench`: what `./dev bench` runs.

use std::process::ExitCode;

use clap::Parser;
use mesh_bench::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
