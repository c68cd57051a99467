//! The commands: their calls, and their results in the requested format.

mod apply;
mod cluster;
mod cni;
mod confirm;
mod endpoint;
mod metrics;
mod network;
mod node;
mod results;
mod service;
mod status;

use crate::cli::{Cli, Command};
use crate::client::Client;
use crate::report::Report;

/// Runs a command against the agent.
pub(crate) async fn run(cli: Cli) -> Report {
    let client = Client::new(cli.socket.clone());
    let format = cli.format;
    match cli.command {
        Command::Cluster { command } => cluster::run(&client, command, format).await,
        Command::Node { command } => node::run(&client, command, format).await,
        Command::Network { command } => network::run(&client, command, format).await,
        Command::Endpoint { command } => endpoint::run(&client, command, format).await,
        Command::Service { command } => service::run(&client, command, format).await,
        Command::Cni { command } => cni::run(&cli.socket, command, format).into(),
        Command::Apply(apply) => apply::run(&client, apply, format).await,
        Command::Status => status::run(&client, format).await.into(),
        Command::Metrics => metrics::run(&client).await.into(),
        Command::Completion { shell } => crate::completion::script(shell).into(),
    }
}
