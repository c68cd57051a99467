//! Writes the generated parts of the documents, and manual pages.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Generate documents from the code
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Update the generated parts of the pages in docs/
    Write,
    /// Write the manual pages of meshctl and meshd to a directory
    Man {
        /// The directory; it is created if it does not exist
        directory: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Write => mesh_docs::generated::write(),
        Command::Man { directory } => mesh_docs::man::write(&directory),
    }
}
