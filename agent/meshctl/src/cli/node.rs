//! `meshctl node ...`

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::value;
use crate::complete;
use crate::filter::{self, Filter, NodeKey};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the cluster's nodes
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show all details of nodes
    Inspect(Inspect),
    /// Change a node
    Update(Update),
    /// Remove nodes from the cluster
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

/// `node ls`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl node ls --filter state=ready --filter role=worker")]
pub(crate) struct Ls {
    /// Print only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Filter by availability=active|drain, id=PREFIX, name=PART, role=manager|worker or
    /// state=ready|unknown|down; may be repeated: one value of each key must match
    #[arg(short = 'f', long, value_name = "KEY=VALUE", value_parser = filter::parse::<NodeKey>)]
    pub(crate) filter: Vec<Filter<NodeKey>>,
}

/// `node inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl node inspect h2")]
pub(crate) struct Inspect {
    /// Names, ids or id prefixes
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
    /// Whether backends of the node get new connections
    #[arg(long, value_enum)]
    pub(crate) availability: Option<Availability>,

    /// Address at which other nodes reach it. On the node itself an interface is accepted too; its
    /// address is then followed
    #[arg(long, value_name = "IP|IFACE[:PORT]", value_parser = value::not_empty)]
    pub(crate) advertise_addr: Option<String>,

    /// Address of its tunnel endpoints. On the node itself an interface is accepted too; its
    /// address is then followed
    #[arg(long, value_name = "IP|IFACE", value_parser = value::not_empty)]
    pub(crate) data_path_addr: Option<String>,

    /// Name, id or id prefix
    #[arg(value_parser = value::not_empty, add = complete::nodes())]
    pub(crate) node: String,
}

/// `node rm`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl node rm h2")]
pub(crate) struct Rm {
    /// Remove a node even if it is ready
    #[arg(short, long)]
    pub(crate) force: bool,

    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "NODE", value_parser = value::not_empty, add = complete::nodes())]
    pub(crate) nodes: Vec<String>,
}

/// Whether backends of a node get new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Availability {
    /// They do.
    Active,
    /// They keep their connections and get no new ones.
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
