//! `meshctl node ...`

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::value;
use crate::complete;
use crate::filter::{self, Filter, NodeKey};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the cluster's hosts
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about hosts
    Inspect(Inspect),
    /// Change a host
    Update(Update),
    /// Take hosts out of the cluster
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

/// `node ls`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl node ls --filter state=ready --filter role=worker")]
pub(crate) struct Ls {
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Only those with: availability=active|drain, id=PREFIX, name=PART, role=manager|worker,
    /// state=ready|unknown|down; repeated, one of the values of each key must hold
    #[arg(short = 'f', long, value_name = "KEY=VALUE", value_parser = filter::parse::<NodeKey>)]
    pub(crate) filter: Vec<Filter<NodeKey>>,
}

/// `node inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl node inspect h2")]
pub(crate) struct Inspect {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "NODE", value_parser = value::not_empty, add = complete::nodes())]
    pub(crate) nodes: Vec<String>,
}

/// `node update`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  meshctl node update --availability drain h2",
    group = ArgGroup::new("change").args(["availability", "advertise_addr", "data_path_addr"]).multiple(true).required(true)
)]
pub(crate) struct Update {
    /// Whether it takes new work
    #[arg(long, value_enum)]
    pub(crate) availability: Option<Availability>,

    /// Where the other hosts reach it; on the node itself, an interface can be named, which is then
    /// followed
    #[arg(long, value_name = "IP|IFACE[:PORT]", value_parser = value::not_empty)]
    pub(crate) advertise_addr: Option<String>,

    /// Where its tunnels end; on the node itself, an interface can be named, which is then followed
    #[arg(long, value_name = "IP|IFACE", value_parser = value::not_empty)]
    pub(crate) data_path_addr: Option<String>,

    /// Name, id or beginning of an id
    #[arg(value_parser = value::not_empty, add = complete::nodes())]
    pub(crate) node: String,
}

/// `node rm`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl node rm h2")]
pub(crate) struct Rm {
    /// Remove a host that is not down, and with its endpoints
    #[arg(short, long)]
    pub(crate) force: bool,

    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "NODE", value_parser = value::not_empty, add = complete::nodes())]
    pub(crate) nodes: Vec<String>,
}

/// Whether a host takes new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Availability {
    /// It does.
    Active,
    /// It keeps what it has and takes nothing new.
    Drain,
}

impl From<Availability> for mesh_model::Availability {
    fn from(availability: Availability) -> Self {
        match availability {
            Availability::Active => Self::Active,
            Availability::Drain => Self::Drain,
        }
    }
}
