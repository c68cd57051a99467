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
    /// Attach a container's network namespace to a network; prints the id, the addresses and the
    /// lines for the container's resolv.conf
    Attach(Box<Attach>),
    /// List endpoints
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about endpoints
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
    /// The network: name, id or beginning of its id
    #[arg(long, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) network: String,

    /// The namespace: a path, or a name under /run/netns
    #[arg(long, value_name = "PATH|NAME", value_parser = value::netns)]
    pub(crate) netns: Option<String>,

    /// The namespace of this process
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub(crate) pid: Option<u32>,

    /// The endpoint's name, unique in the network [default: the namespace's name, or the id]
    #[arg(long)]
    pub(crate) name: Option<Name>,

    /// Its IPv4 address [default: the next free one]
    #[arg(long)]
    pub(crate) ip: Option<Ipv4Addr>,

    /// Its IPv6 address [default: the next free one]
    #[arg(long)]
    pub(crate) ip6: Option<Ipv6Addr>,

    /// Its MAC address [default: derived from its address]
    #[arg(long)]
    pub(crate) mac: Option<MacAddr>,

    /// The interface's name in the container [default: the first free of eth0, eth1, ...]
    #[arg(long, value_name = "NAME")]
    pub(crate) ifname: Option<IfName>,

    /// A further name; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Vec<Name>,

    /// The service that it is to answer for: name, NETWORK/NAME, id or beginning of its id
    #[arg(long, value_name = "SERVICE", value_parser = value::not_empty, add = complete::services())]
    pub(crate) service: Option<String>,

    /// Let it send from addresses that are not its own, as a router does
    #[arg(long)]
    pub(crate) allow_forwarding: bool,
}

/// `endpoint ls`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl endpoint ls --network app --node h1")]
pub(crate) struct Ls {
    /// Only those of a network: name, id or beginning of its id
    #[arg(long, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) network: Option<String>,

    /// Only those on a host: name, id or beginning of its id
    #[arg(long, value_name = "NODE", value_parser = value::not_empty, add = complete::nodes())]
    pub(crate) node: Option<String>,

    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Only those with: id=PREFIX, name=PART, network=NAME, node=NAME, service=NAME; repeated, one
    /// of the values of each key must hold
    #[arg(short = 'f', long, value_name = "KEY=VALUE", value_parser = filter::parse::<EndpointKey>)]
    pub(crate) filter: Vec<Filter<EndpointKey>>,
}

/// `endpoint inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl endpoint inspect web")]
pub(crate) struct Inspect {
    /// Names, NETWORK/NAME, ids or beginnings of ids
    #[arg(required = true, value_name = "ENDPOINT", value_parser = value::not_empty, add = complete::endpoints())]
    pub(crate) endpoints: Vec<String>,
}

/// `endpoint detach`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl endpoint detach web")]
pub(crate) struct Detach {
    /// Names, NETWORK/NAME, ids or beginnings of ids
    #[arg(required = true, value_name = "ENDPOINT", value_parser = value::not_empty, add = complete::endpoints())]
    pub(crate) endpoints: Vec<String>,
}
