//! `meshctl apply`

use std::path::PathBuf;

use clap::Args;

/// `apply`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Apply {
    /// YAML file; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Read variables from this file instead of `.env` next to FILE; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,

    /// Also apply the services of this profile; may be repeated [default: those in
    /// `COMPOSE_PROFILES`]
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Vec<String>,

    /// Also remove what an earlier file of the project created and this file does not declare
    #[arg(long)]
    pub(crate) prune: bool,

    /// With `--prune`, remove everything of the project without confirmation
    #[arg(short, long)]
    pub(crate) yes: bool,

    /// Check the whole file and print the changes without making them
    #[arg(long)]
    pub(crate) dry_run: bool,
}

const EXAMPLE: &str = "\
Reads the networks and services of a Compose file. Keys without effect and likely mistakes are
listed on standard error. Variables come from the environment and from `.env` next to the file.
The project is the file's `name:`, or the name of its folder. Settings that Compose does not have
are under `x-mesh:`. For a network: encrypted, mtu, vni. For a service: vip, vip6, affinity,
health-tcp, health-http, health-interval, health-retries, when-all-unhealthy.

Example:
  meshctl apply -f compose.yaml --prune --dry-run";
