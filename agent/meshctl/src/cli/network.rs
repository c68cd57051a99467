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
    /// Make a network
    Create(Box<Create>),
    /// Change what the containers of a network may reach of the hosts
    #[command(arg_required_else_help = true)]
    Update(Update),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about networks
    Inspect(Inspect),
    /// Remove networks that nothing is attached to
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove all networks that nothing is attached to
    Prune(Prune),
}

/// `network create`.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLE)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent flag that people type")]
pub(crate) struct Create {
    /// The driver
    #[arg(short, long, default_value = "overlay", value_parser = ["overlay"])]
    pub(crate) driver: String,

    /// Let its packets leave a host encrypted or not at all
    #[arg(long)]
    pub(crate) encrypted: bool,

    /// A subnet, IPv4 or IPv6; may be repeated [default: the next free one of the cluster's pools]
    #[arg(long, value_name = "CIDR")]
    pub(crate) subnet: Vec<Prefix>,

    /// The gateway of the subnet that it lies in [default: the subnet's first address]
    #[arg(long, value_name = "IP")]
    pub(crate) gateway: Vec<IpAddr>,

    /// Hand out addresses of this part of the subnet that it lies in only
    #[arg(long, value_name = "CIDR")]
    pub(crate) ip_range: Vec<Prefix>,

    /// An address that is never handed out, with the name of what has it; may be repeated
    #[arg(long, value_name = "NAME=IP", value_parser = value::aux_address)]
    pub(crate) aux_address: Vec<AuxAddress>,

    /// Give it an IPv6 subnet too
    #[arg(long)]
    pub(crate) ipv6: bool,

    /// Reach nothing outside the network
    #[arg(long)]
    pub(crate) internal: bool,

    /// Whether containers may be attached by hand
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

    /// Which sockets of the hosts its containers may reach, published ports aside: `none`, not even
    /// the name server, so that its containers resolve no names; `dns`, the name server at the
    /// gateway address, and pings are answered; `all`, every one of every node
    #[arg(long, value_name = "ACCESS", value_enum, default_value_t = HostAccess::Dns, hide_possible_values = true)]
    pub(crate) host_access: HostAccess,

    /// Whether its containers may reach cloud metadata services, 169.254.0.0/16 and `fd00:ec2::254`
    /// among them: `block` or `allow`
    #[arg(long, value_name = "ACCESS", value_enum, default_value_t = Metadata::Block, hide_possible_values = true)]
    pub(crate) metadata: Metadata,

    /// Upper bound of its MTU in bytes [default: what the underlay leaves]
    #[arg(long, value_name = "BYTES", value_parser = value::mtu)]
    pub(crate) mtu: Option<Mtu>,

    /// Its VXLAN network identifier [default: the next free one from 4096]
    #[arg(long, value_name = "VNI", value_parser = value::vni)]
    pub(crate) vni: Option<Vni>,

    /// A label; may be repeated
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = value::key_value)]
    pub(crate) label: Vec<KeyValue>,

    /// An option in Docker's spelling: encrypted, mtu or com.docker.network.driver.mtu; may be
    /// repeated
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = value::key_value)]
    pub(crate) opt: Vec<KeyValue>,

    /// Its name
    pub(crate) name: Name,
}

const CREATE_EXAMPLE: &str = "\
Subnets, gateways, ranges and auxiliary addresses belong together by where they lie.

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
    /// Which sockets of the hosts its containers may reach: `none`, `dns` or `all`; see `network
    /// create --help`
    #[arg(long, value_name = "ACCESS", value_enum, hide_possible_values = true)]
    pub(crate) host_access: Option<HostAccess>,

    /// Whether its containers may reach cloud metadata services: `block` or `allow`
    #[arg(long, value_name = "ACCESS", value_enum, hide_possible_values = true)]
    pub(crate) metadata: Option<Metadata>,

    /// Its name, id or beginning of its id
    #[arg(value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) network: String,
}

const UPDATE_EXAMPLE: &str = "\
The change takes effect at once, for open connections too.

Example:
  meshctl network update --host-access all app";

/// Which sockets of the hosts containers may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HostAccess {
    /// None, not even the name server.
    None,
    /// The name server at the gateway address.
    Dns,
    /// Every one.
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

/// Whether containers may reach cloud metadata services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Metadata {
    /// They may not.
    Block,
    /// They may.
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
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Only those with: driver=NAME, id=PREFIX, label=KEY[=VALUE], name=PART, vni=VNI; repeated,
    /// one of the values of each key must hold, and all labels
    #[arg(short = 'f', long, value_name = "KEY=VALUE", value_parser = filter::parse::<NetworkKey>)]
    pub(crate) filter: Vec<Filter<NetworkKey>>,
}

/// `network inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl network inspect app")]
pub(crate) struct Inspect {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) networks: Vec<String>,
}

/// `network rm`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl network rm app db")]
pub(crate) struct Rm {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) networks: Vec<String>,
}

/// `network prune`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl network prune -f")]
pub(crate) struct Prune {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}
