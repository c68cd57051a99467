//! `meshctl apply`

use std::path::PathBuf;

use clap::Args;

/// `apply`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Apply {
    /// The file, YAML; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Read variables from this file instead of `.env` beside FILE; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,

    /// Also apply the services of this profile; may be repeated [default: those in
    /// `COMPOSE_PROFILES`]
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Vec<String>,

    /// Also remove what an earlier file of the project made and this one does not have
    #[arg(long)]
    pub(crate) prune: bool,

    /// With `--prune`, remove all that the project has without asking
    #[arg(short, long)]
    pub(crate) yes: bool,

    /// Check the whole file and print what would change; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

const EXAMPLE: &str = "\
Compose files are understood as far as they are about networks and services; what is without effect, and what is probably
a mistake, is named on standard error. Variables come from the environment and from `.env` beside the file. The project is the file's `name:`, or the name of its folder. `x-mesh:` has what Compose has no word for: for a
network encrypted, mtu, vni; for a service vip, vip6, affinity, health-tcp, health-http, health-interval, health-retries,
when-all-unhealthy.

Example:
  meshctl apply -f compose.yaml --prune --dry-run";
