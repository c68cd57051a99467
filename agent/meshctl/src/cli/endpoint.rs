//! `meshctl endpoint ...`

use std::net::{Ipv4Addr, Ipv6Addr};

use clap::{ArgGroup, Args, Subcommand};
use mesh_model::{IfName, MacAddr, Name};

use super::value;
use crate::complete;
use crate::filter::{self, EndpointKey, Filter};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Attach a container's network namespace to a network, and print the endpoint's id, addresses
    /// and lines for the container's resolv.conf
    Attach(Box<Attach>),
    /// List endpoints
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show all details of endpoints
    Inspect(Inspect),
    /// Detach endpoints of this host
    Detach(Detach),
}

/// `endpoint attach`.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("namespace").required(true).args(["netns", "pid"]),
    after_help = "Example:\n  meshctl endpoint attach --network app --netns web --name web --alias www"
)]
pub(crate) struct Attach {
    /// Network: name, id or id prefix
    #[arg(long, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) network: String,

    /// Network namespace: a path, or a name under /run/netns
    #[arg(long, value_name = "PATH|NAME", value_parser = value::netns)]
    pub(crate) netns: Option<String>,

    /// Process in the network namespace
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub(crate) pid: Option<u32>,

    /// Name of the endpoint, unique in the network [default: the namespace's name, or the id]
    #[arg(long)]
    pub(crate) name: Option<Name>,

    /// IPv4 address [default: the next free one]
    #[arg(long)]
    pub(crate) ip: Option<Ipv4Addr>,

    /// IPv6 address [default: the next free one]
    #[arg(long)]
    pub(crate) ip6: Option<Ipv6Addr>,

    /// MAC address [default: derived from the IP address]
    #[arg(long)]
    pub(crate) mac: Option<MacAddr>,

    /// Name of the interface in the container [default: the first free of eth0, eth1, ...]
    #[arg(long, value_name = "NAME")]
    pub(crate) ifname: Option<IfName>,

    /// Additional name; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Vec<Name>,

    /// Service to add the endpoint to as a backend: name, NETWORK/NAME, id or id prefix
    #[arg(long, value_name = "SERVICE", value_parser = value::not_empty, add = complete::services())]
    pub(crate) service: Option<String>,

    /// Allow packets with other source addresses, as a router sends them
    #[arg(long)]
    pub(crate) allow_forwarding: bool,
}

/// `endpoint ls`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl endpoint ls --network app --node h1")]
pub(crate) struct Ls {
    /// List only the endpoints of a network: name, id or id prefix
    #[arg(long, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) network: Option<String>,

    /// List only the endpoints of a node: name, id or id prefix
    #[arg(long, value_name = "NODE", value_parser = value::not_empty, add = complete::nodes())]
    pub(crate) node: Option<String>,

    /// Print only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Filter by id=PREFIX, name=PART, network=NAME, node=NAME or service=NAME; may be repeated:
    /// one value of each key must match
    #[arg(short = 'f', long, value_name = "KEY=VALUE", value_parser = filter::parse::<EndpointKey>)]
    pub(crate) filter: Vec<Filter<EndpointKey>>,
}

/// `endpoint inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl endpoint inspect web")]
pub(crate) struct Inspect {
    /// Names, NETWORK/NAME, ids or id prefixes
    #[arg(required = true, value_name = "ENDPOINT", value_parser = value::not_empty, add = complete::endpoints())]
    pub(crate) endpoints: Vec<String>,
}

/// `endpoint detach`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl endpoint detach web")]
pub(crate) struct Detach {
    /// Names, NETWORK/NAME, ids or id prefixes
    #[arg(required = true, value_name = "ENDPOINT", value_parser = value::not_empty, add = complete::endpoints())]
    pub(crate) endpoints: Vec<String>,
}
