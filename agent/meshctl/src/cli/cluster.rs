//! `meshctl cluster ...`

use clap::{Args, Subcommand, ValueEnum};
use mesh_model::{Name, Prefix};

use super::value;

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a cluster with this host as its first manager
    Init(Init),
    /// Join this host to a cluster
    Join(Join),
    /// Print the command that joins another host
    JoinToken(JoinToken),
    /// Show the cluster of this host
    #[command(after_help = "Example:\n  meshctl cluster status")]
    Status,
    /// Replace the keys of encrypted networks on every node, without packet loss
    #[command(after_help = "Example:\n  meshctl cluster rotate-keys")]
    RotateKeys,
    /// Leave the cluster and remove all its state from this host
    Leave(Leave),
}

/// The host's addresses in the cluster.
#[derive(Debug, Args)]
pub(crate) struct Addresses {
    /// Address at which other nodes reach this one, or the interface that has it
    /// [default: the host's only global address]
    #[arg(long, value_name = "IP|IFACE[:PORT]", value_parser = value::not_empty)]
    pub(crate) advertise_addr: Option<String>,

    /// Address of tunnel endpoints, or the interface that has it [default: the advertised address]
    #[arg(long, value_name = "IP|IFACE", value_parser = value::not_empty)]
    pub(crate) data_path_addr: Option<String>,

    /// Name of the node [default: the host's name]
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

    /// UDP port of VXLAN on every node
    #[arg(long, value_name = "PORT", default_value_t = 4789, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) data_path_port: u16,

    /// Pool of the subnets of networks without --subnet; may be repeated
    #[arg(long, value_name = "CIDR", default_value = "10.64.0.0/10")]
    pub(crate) default_addr_pool: Vec<Prefix>,

    /// Prefix length of those subnets
    #[arg(long, value_name = "BITS", default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) default_addr_pool_mask_length: u8,

    /// Use direct server return: the backend's node sends replies of published ports to the client
    /// itself, from the address that the client connected to. The underlay must forward packets
    /// with another node's source address. Clients at other interfaces than the data-path
    /// interface are answered by the node that they connected to
    #[arg(long)]
    pub(crate) dsr: bool,
}

/// `cluster join`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl cluster join --token TOKEN 192.0.2.11:7377")]
pub(crate) struct Join {
    /// Token that `meshctl cluster join-token` printed on a manager
    #[arg(long, value_name = "TOKEN", value_parser = value::not_empty)]
    pub(crate) token: String,

    /// This host's addresses.
    #[command(flatten)]
    pub(crate) addresses: Addresses,

    /// Address of a manager
    #[arg(value_name = "HOST:PORT", value_parser = value::host_port)]
    pub(crate) manager: String,
}

/// `cluster join-token`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl cluster join-token worker")]
pub(crate) struct JoinToken {
    /// Role of the host; a cluster supports one manager for now
    #[arg(value_enum)]
    pub(crate) role: Role,

    /// Replace the token; the old one becomes invalid
    #[arg(long)]
    pub(crate) rotate: bool,

    /// Print only the token
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `cluster leave`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl cluster leave")]
pub(crate) struct Leave {
    /// Leave even if endpoints are attached, this host is a manager, or no manager responds
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// The role of a host that joins.
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
