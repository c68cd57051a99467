//! `meshctl network ...`

use std::net::IpAddr;

use clap::{ArgAction, ArgGroup, Args, Subcommand, ValueEnum};
use mesh_model::{Mtu, Name, Prefix, Vni};

use super::value::{self, AuxAddress, KeyValue};
use crate::complete;
use crate::filter::{self, Filter, NetworkKey};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a network
    Create(Box<Create>),
    /// Change the access of a network's containers to hosts
    #[command(arg_required_else_help = true)]
    Update(Update),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show all details of networks
    Inspect(Inspect),
    /// Remove networks without endpoints
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove all networks without endpoints
    Prune(Prune),
}

/// `network create`.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLE)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent flag that people type")]
pub(crate) struct Create {
    /// Network driver
    #[arg(short, long, default_value = "overlay", value_parser = ["overlay"])]
    pub(crate) driver: String,

    /// Encrypt all traffic between hosts; drop what cannot be encrypted
    #[arg(long)]
    pub(crate) encrypted: bool,

    /// IPv4 or IPv6 subnet; may be repeated [default: the next free one of the cluster's pools]
    #[arg(long, value_name = "CIDR")]
    pub(crate) subnet: Vec<Prefix>,

    /// Gateway address of the subnet that contains it [default: the subnet's first address]
    #[arg(long, value_name = "IP")]
    pub(crate) gateway: Vec<IpAddr>,

    /// Allocate endpoint addresses only from this range of the subnet
    #[arg(long, value_name = "CIDR")]
    pub(crate) ip_range: Vec<Prefix>,

    /// Reserve an address (for a router, say); it is never allocated; may be repeated
    #[arg(long, value_name = "NAME=IP", value_parser = value::aux_address)]
    pub(crate) aux_address: Vec<AuxAddress>,

    /// Add an IPv6 subnet
    #[arg(long)]
    pub(crate) ipv6: bool,

    /// Block all traffic to and from outside the network
    #[arg(long)]
    pub(crate) internal: bool,

    /// Allow containers to be attached manually
    #[arg(
        long,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true"
    )]
    pub(crate) attachable: bool,

    /// Sockets of the nodes that containers may reach besides published ports: `none` (containers
    /// cannot resolve names either), `dns` (the name server at the gateway address, and pings), or
    /// `all` (every socket of every node)
    #[arg(long, value_name = "ACCESS", value_enum, default_value_t = HostAccess::Dns, hide_possible_values = true)]
    pub(crate) host_access: HostAccess,

    /// Access of containers to cloud metadata services, such as those in 169.254.0.0/16 and at
    /// `fd00:ec2::254`: `block` or `allow`
    #[arg(long, value_name = "ACCESS", value_enum, default_value_t = Metadata::Block, hide_possible_values = true)]
    pub(crate) metadata: Metadata,

    /// Maximum MTU in bytes [default: the underlay's MTU minus the encapsulation overhead]
    #[arg(long, value_name = "BYTES", value_parser = value::mtu)]
    pub(crate) mtu: Option<Mtu>,

    /// VXLAN network identifier [default: the next free one from 4096]
    #[arg(long, value_name = "VNI", value_parser = value::vni)]
    pub(crate) vni: Option<Vni>,

    /// Label; may be repeated
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = value::key_value)]
    pub(crate) label: Vec<KeyValue>,

    /// Driver option as in Docker: encrypted, mtu or com.docker.network.driver.mtu; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = value::key_value)]
    pub(crate) opt: Vec<KeyValue>,

    /// Name of the network
    pub(crate) name: Name,
}

const CREATE_EXAMPLE: &str = "\
Each gateway, range and reserved address belongs to the subnet that contains it.

Example:
  meshctl network create app
  meshctl network create --subnet 10.80.0.0/16 --gateway 10.80.0.1 --ip-range 10.80.4.0/22 --internal db";

/// `network update`.
#[derive(Debug, Args)]
#[command(
    after_help = UPDATE_EXAMPLE,
    group = ArgGroup::new("change").args(["host_access", "metadata"]).multiple(true).required(true)
)]
pub(crate) struct Update {
    /// Sockets of the nodes that containers may reach: `none`, `dns` or `all`; see `network create
    /// --help`
    #[arg(long, value_name = "ACCESS", value_enum, hide_possible_values = true)]
    pub(crate) host_access: Option<HostAccess>,

    /// Access of containers to cloud metadata services: `block` or `allow`
    #[arg(long, value_name = "ACCESS", value_enum, hide_possible_values = true)]
    pub(crate) metadata: Option<Metadata>,

    /// Name, id or id prefix
    #[arg(value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) network: String,
}

const UPDATE_EXAMPLE: &str = "\
The change takes effect immediately, also for open connections.

Example:
  meshctl network update --host-access all app";

/// The sockets of the nodes that containers may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HostAccess {
    /// None, not even the name server.
    None,
    /// The name server at the gateway address.
    Dns,
    /// Every socket.
    All,
}

impl From<HostAccess> for mesh_proto::v1::HostAccess {
    fn from(access: HostAccess) -> Self {
        match access {
            HostAccess::None => Self::None,
            HostAccess::Dns => Self::Dns,
            HostAccess::All => Self::All,
        }
    }
}

/// The access of containers to cloud metadata services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Metadata {
    /// No access.
    Block,
    /// Access.
    Allow,
}

impl From<Metadata> for mesh_proto::v1::MetadataAccess {
    fn from(metadata: Metadata) -> Self {
        match metadata {
            Metadata::Block => Self::Block,
            Metadata::Allow => Self::Allow,
        }
    }
}

/// `network ls`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl network ls --filter label=tier=web")]
pub(crate) struct Ls {
    /// Print only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Filter by driver=NAME, id=PREFIX, label=KEY[=VALUE], name=PART or vni=VNI; may be repeated:
    /// all labels and one value of each other key must match
    #[arg(short = 'f', long, value_name = "KEY=VALUE", value_parser = filter::parse::<NetworkKey>)]
    pub(crate) filter: Vec<Filter<NetworkKey>>,
}

/// `network inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl network inspect app")]
pub(crate) struct Inspect {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) networks: Vec<String>,
}

/// `network rm`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl network rm app db")]
pub(crate) struct Rm {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) networks: Vec<String>,
}

/// `network prune`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl network prune -f")]
pub(crate) struct Prune {
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(crate) force: bool,
}
