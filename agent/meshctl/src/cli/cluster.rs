//! `meshctl cluster ...`

use clap::{Args, Subcommand, ValueEnum};
use mesh_model::{Name, Prefix};

use super::value;

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a cluster whose first manager is this host
    Init(Init),
    /// Make this host a member of a cluster
    Join(Join),
    /// Print what to run on a host that is to join
    JoinToken(JoinToken),
    /// Show the cluster that this host is a member of
    #[command(after_help = "Example:\n  meshctl cluster status")]
    Status,
    /// Have every host make a new key for encrypted networks; no packet is lost for it
    #[command(after_help = "Example:\n  meshctl cluster rotate-keys")]
    RotateKeys,
    /// Leave the cluster and remove everything of it from this host
    Leave(Leave),
}

/// Which of the host's addresses the cluster is to use.
#[derive(Debug, Args)]
pub(crate) struct Addresses {
    /// Where the other hosts reach this one: an address or an interface
    /// [default: the host's only global address]
    #[arg(long, value_name = "IP|IFACE[:PORT]", value_parser = value::not_empty)]
    pub(crate) advertise_addr: Option<String>,

    /// Where tunnels end: an address or an interface [default: the advertised address]
    #[arg(long, value_name = "IP|IFACE", value_parser = value::not_empty)]
    pub(crate) data_path_addr: Option<String>,

    /// This host's name in the cluster [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<Name>,
}

/// `cluster init`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl cluster init --advertise-addr 192.0.2.11")]
pub(crate) struct Init {
    /// This host's addresses.
    #[command(flatten)]
    pub(crate) addresses: Addresses,

    /// UDP port of VXLAN on every host
    #[arg(long, value_name = "PORT", default_value_t = 4789, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) data_path_port: u16,

    /// Where networks without --subnet get theirs from; may be repeated
    #[arg(long, value_name = "CIDR", default_value = "10.64.0.0/10")]
    pub(crate) default_addr_pool: Vec<Prefix>,

    /// Prefix length of those subnets
    #[arg(long, value_name = "BITS", default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) default_addr_pool_mask_length: u8,

    /// Direct server return: what a published port answers leaves by the backend's own host, as
    /// from the address that the client spoke to. For underlays that let a host send from another
    /// one's address
    #[arg(long)]
    pub(crate) dsr: bool,
}

/// `cluster join`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl cluster join --token TOKEN 192.0.2.11:7377")]
pub(crate) struct Join {
    /// What `meshctl cluster join-token` printed on a manager
    #[arg(long, value_name = "TOKEN", value_parser = value::not_empty)]
    pub(crate) token: String,

    /// This host's addresses.
    #[command(flatten)]
    pub(crate) addresses: Addresses,

    /// A manager
    #[arg(value_name = "HOST:PORT", value_parser = value::host_port)]
    pub(crate) manager: String,
}

/// `cluster join-token`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl cluster join-token worker")]
pub(crate) struct JoinToken {
    /// The role of the host; a cluster has one manager only so far
    #[arg(value_enum)]
    pub(crate) role: Role,

    /// Make a new token; the old one is worth nothing from then on
    #[arg(long)]
    pub(crate) rotate: bool,

    /// Print the token only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `cluster leave`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl cluster leave")]
pub(crate) struct Leave {
    /// Leave even with endpoints attached, as a manager, or when no manager answers
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// A role that a host can join in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Runs endpoints only.
    Worker,
    /// Serves the control plane too.
    Manager,
}

impl From<Role> for mesh_model::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Worker => Self::Worker,
            Role::Manager => Self::Manager,
        }
    }
}
