//! The command `meshctl`: it parses its arguments, makes a few calls on the local agent's socket,
//! and prints the result.
//!
//! The agent and the managers make all decisions (names, limits, conflicts); this crate only reads
//! requests and formats results, for people and for scripts. All errors are
//! [`mesh_proto::Problem`]s, whose kind determines the exit code.

mod apply;
mod cli;
mod client;
mod command;
mod complete;
mod completion;
mod filter;
mod format;
#[cfg(fuzzing)]
pub mod fuzzing;
mod report;
mod table;
mod terminal;
mod view;

use std::ffi::OsString;

use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command, usage};
use crate::format::Format;
use crate::report::Report;

/// Runs the command line `args` (the program's name first), prints its result, and returns the exit
/// code: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 the agent or the cluster is
/// unreachable, 6 only a manager can do it, 7 a removal was not confirmed.
pub fn run(args: &[OsString]) -> u8 {
    if completion::answer(args) {
        return 0;
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error, args),
    };
    let json = cli.format == Some(Format::Json);
    execute(cli).print(json)
}

/// The whole command line, for manual pages and the reference.
pub fn command() -> clap::Command {
    Cli::command()
}

fn execute(cli: Cli) -> Report {
    if let Command::Completion { shell } = cli.command {
        return completion::script(shell).into();
    }
    // One thread is enough for a few calls in turn, and quicker to start.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    match runtime {
        Ok(runtime) => runtime.block_on(command::run(cli)),
        Err(error) => report::failed(format!("meshctl, cannot start: {error}")).into(),
    }
}
