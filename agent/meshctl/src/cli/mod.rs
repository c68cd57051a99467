//! The command line. Names, flags and defaults are those of Docker where Docker has them.

pub(crate) mod apply;
pub(crate) mod cluster;
pub(crate) mod cni;
mod docker;
pub(crate) mod endpoint;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod service;
pub(crate) mod usage;
pub(crate) mod value;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::client::DEFAULT_SOCKET;
use crate::format::Format;

/// Connect the containers of many hosts by private networks
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, after_help = EXAMPLE, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Socket of the local agent
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        env = "MESH_SOCKET",
        value_name = "PATH",
        default_value = DEFAULT_SOCKET
    )]
    pub(crate) socket: PathBuf,

    /// Output format; json applies to errors too [default: json for inspect, table otherwise]
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        value_enum,
        value_name = "table|json",
        hide_possible_values = true
    )]
    pub(crate) format: Option<Format>,
}

/// Heading of the options that every command takes.
const GLOBAL: &str = "Options of every command";

const EXAMPLE: &str = "\
Example:
  meshctl cluster init
  meshctl network create app
  meshctl service create --name web --network app -p 8080:80
  meshctl endpoint attach --network app --netns web --service web";

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, join and leave the cluster
    #[command(after_help = "Example:\n  meshctl cluster init --advertise-addr eth0")]
    Cluster {
        /// The command.
        #[command(subcommand)]
        command: cluster::Command,
    },
    /// Manage the cluster's nodes
    #[command(after_help = "Example:\n  meshctl node ls")]
    Node {
        /// The command.
        #[command(subcommand)]
        command: node::Command,
    },
    /// Manage networks
    #[command(after_help = "Example:\n  meshctl network create app")]
    Network {
        /// The command.
        #[command(subcommand)]
        command: network::Command,
    },
    /// Attach containers to networks
    #[command(after_help = "Example:\n  meshctl endpoint attach --network app --netns web")]
    Endpoint {
        /// The command.
        #[command(subcommand)]
        command: endpoint::Command,
    },
    /// Manage services: a name, virtual addresses and published ports for a set of endpoints
    #[command(after_help = "Example:\n  meshctl service create --name web --network app -p 8080:80")]
    Service {
        /// The command.
        #[command(subcommand)]
        command: service::Command,
    },
    /// Let container runtimes attach containers by CNI
    #[command(after_help = "Example:\n  meshctl cni install --network app")]
    Cni {
        /// The command.
        #[command(subcommand)]
        command: cni::Command,
    },
    /// Create and update the networks and services that a file declares
    Apply(apply::Apply),
    /// Show the state of this host's agent and data path
    #[command(after_help = "Example:\n  meshctl status --format json")]
    Status,
    /// Print this host's metrics in the OpenMetrics text format
    #[command(after_help = "Example:\n  meshctl metrics")]
    Metrics,
    /// Print a completion script for a shell; names are completed from the local agent
    #[command(after_help = "Example:\n  meshctl completion bash > /etc/bash_completion.d/meshctl")]
    Completion {
        /// The shell
        shell: Shell,
    },
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, ValueEnum};

    use super::*;

    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        let path = format!("{path} {}", command.get_name());
        if command.get_subcommands().next().is_none() {
            found.push((path, command.clone()));
        } else {
            command.get_subcommands().for_each(|sub| leaves(sub, &path, found));
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_ends_with_an_example_that_can_be_typed() {
        let mut found = Vec::new();
        leaves(&Cli::command(), "", &mut found);
        assert!(found.len() > 15, "{found:?}");
        for (path, mut command) in found {
            let help = command.render_long_help().to_string();
            let (_, example) =
                help.rsplit_once("Example:\n").unwrap_or_else(|| panic!("{path} has no example"));
            for line in example.lines().filter(|line| line.starts_with("  meshctl ")) {
                let line = line.split(" > ").next().unwrap_or_default();
                Cli::try_parse_from(line.split_whitespace())
                    .unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
    }

    #[test]
    fn there_is_a_completion_script_for_every_shell() {
        for shell in Shell::value_variants() {
            assert!(crate::completion::script(*shell).unwrap().contains("MESHCTL_COMPLETE"), "{shell}");
        }
    }
}
