//! `meshctl service ...`

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use mesh_model::{HealthKind, Name, PublishedPort};

use super::value;
use crate::complete;
use crate::filter::{self, BackendKey, Filter, ServiceKey};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a service; prints its id, and the ports that were chosen for it
    Create(Box<Create>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// List the backends of services
    Ps(Ps),
    /// Show everything about services
    Inspect(Inspect),
    /// Change a service; prints its name, and the ports that were chosen for it
    Update(Box<Update>),
    /// Remove services; their endpoints stay
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Say which endpoints answer for a service
    #[command(after_help = "Example:\n  meshctl service backend drain web c1")]
    Backend {
        /// What to do.
        #[command(subcommand)]
        command: Backend,
    },
}

/// What becomes of new connections while no endpoint passes its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhenAllUnhealthy {
    /// All endpoints get them: the check may be wrong.
    All,
    /// None gets them: they are refused.
    None,
}

impl From<WhenAllUnhealthy> for mesh_model::WhenAllUnhealthy {
    fn from(choice: WhenAllUnhealthy) -> Self {
        match choice {
            WhenAllUnhealthy::All => Self::All,
            WhenAllUnhealthy::None => Self::None,
        }
    }
}

/// How a service's backends are checked.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("check").args(["health_tcp", "health_http"]))]
pub(crate) struct Health {
    /// Check that a TCP connection to this port of a backend can be made
    #[arg(id = "health_tcp", long = "health-tcp", value_name = "PORT", value_parser = HealthKind::parse_tcp)]
    pub(crate) tcp: Option<HealthKind>,

    /// Check that a backend answers GET on this port and path with 200 to 399
    #[arg(id = "health_http", long = "health-http", value_name = "PORT/PATH", value_parser = HealthKind::parse_http)]
    pub(crate) http: Option<HealthKind>,

    /// How long from one check to the next [default: 2s]
    #[arg(id = "health_interval", long = "health-interval", value_name = "TIME", value_parser = value::duration)]
    pub(crate) interval: Option<Duration>,

    /// How many checks must fail in a row to make a backend unhealthy [default: 3]
    #[arg(id = "health_retries", long = "health-retries", value_name = "N")]
    pub(crate) retries: Option<u32>,
}

/// `service create`.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLE)]
pub(crate) struct Create {
    /// Its name, unique in its network
    #[arg(long)]
    pub(crate) name: Name,

    /// The network of its endpoints: name, id or beginning of its id
    #[arg(long, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) network: String,

    /// What its name resolves to: a virtual address, or the addresses of its endpoints
    #[arg(long, value_enum, default_value_t = EndpointMode::Vip)]
    pub(crate) endpoint_mode: EndpointMode,

    /// A port that every host answers for it: [HOSTIP:]PUBLISHED:TARGET[/tcp|udp|sctp], or
    /// published=,target=,protocol=,mode=ingress|host,host-ip=; may be repeated
    #[arg(short, long, value_name = "SPEC")]
    pub(crate) publish: Vec<PublishedPort>,

    /// Its virtual IPv4 address [default: the next free one]
    #[arg(long, value_name = "IP")]
    pub(crate) vip: Option<Ipv4Addr>,

    /// Its virtual IPv6 address [default: the next free one]
    #[arg(long, value_name = "IP")]
    pub(crate) vip6: Option<Ipv6Addr>,

    /// Whether all connections of a client go to the same endpoint
    #[arg(long, value_enum, default_value_t = Affinity::None)]
    pub(crate) affinity: Affinity,

    /// How its endpoints are checked.
    #[command(flatten)]
    pub(crate) health: Health,

    /// Which endpoints get new connections while none passes its check
    #[arg(long, value_enum, default_value_t = WhenAllUnhealthy::All)]
    pub(crate) when_all_unhealthy: WhenAllUnhealthy,

    /// A further name that resolves to it; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Vec<Name>,

    /// A label; may be repeated
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = value::key_value)]
    pub(crate) label: Vec<value::KeyValue>,
}

const CREATE_EXAMPLE: &str = "\
A PUBLISHED that is empty or 0 is a free port of 30000 to 32767.

Example:
  meshctl service create --name web --network app -p 8080:80 --health-http 80/healthz
  meshctl service create --name dns --network app -p 192.0.2.11:53:5353/udp -p target=8080,mode=host";

/// `service ls`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl service ls --network app --filter mode=vip")]
pub(crate) struct Ls {
    /// Only those of a network: name, id or beginning of its id
    #[arg(long, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) network: Option<String>,

    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Only those with: id=PREFIX, label=KEY[=VALUE], mode=vip|dnsrr, name=PART, network=NAME;
    /// repeated, one of the values of each key must hold, and all labels
    #[arg(short = 'f', long, value_name = "KEY=VALUE", value_parser = filter::parse::<ServiceKey>)]
    pub(crate) filter: Vec<Filter<ServiceKey>>,
}

/// `service ps`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl service ps web --filter health=unhealthy")]
pub(crate) struct Ps {
    /// Print the endpoints' ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Only those with: health=healthy|unhealthy|unknown|none, id=PREFIX, name=PART, node=NAME,
    /// state=active|draining, traffic=yes|no; repeated, one of the values of each key must hold
    #[arg(short = 'f', long, value_name = "KEY=VALUE", value_parser = filter::parse::<BackendKey>)]
    pub(crate) filter: Vec<Filter<BackendKey>>,

    /// Names, NETWORK/NAME, ids or beginnings of ids
    #[arg(required = true, value_name = "SERVICE", value_parser = value::not_empty, add = complete::services())]
    pub(crate) services: Vec<String>,
}

/// `service inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl service inspect web")]
pub(crate) struct Inspect {
    /// Names, NETWORK/NAME, ids or beginnings of ids
    #[arg(required = true, value_name = "SERVICE", value_parser = value::not_empty, add = complete::services())]
    pub(crate) services: Vec<String>,
}

/// `service update`.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("change").required(true).multiple(true).args([
        "publish_add", "publish_rm", "affinity", "health_tcp", "health_http", "health_interval", "health_retries",
        "no_health", "when_all_unhealthy",
    ]),
    after_help = "Example:\n  meshctl service update --publish-rm 8080:80 --publish-add 9090:80 --affinity client-ip web"
)]
pub(crate) struct Update {
    /// A further port, as with `service create --publish`; may be repeated
    #[arg(long, value_name = "SPEC")]
    pub(crate) publish_add: Vec<PublishedPort>,

    /// A port that it is not to have any more; may be repeated
    #[arg(long, value_name = "SPEC")]
    pub(crate) publish_rm: Vec<PublishedPort>,

    /// Whether all connections of a client go to the same endpoint
    #[arg(long, value_enum)]
    pub(crate) affinity: Option<Affinity>,

    /// How its endpoints are checked.
    #[command(flatten)]
    pub(crate) health: Health,

    /// Do not check its endpoints any more
    #[arg(long, conflicts_with_all = ["health_tcp", "health_http", "health_interval", "health_retries"])]
    pub(crate) no_health: bool,

    /// Which endpoints get new connections while none passes its check
    #[arg(long, value_enum)]
    pub(crate) when_all_unhealthy: Option<WhenAllUnhealthy>,

    /// Name, NETWORK/NAME, id or beginning of an id
    #[arg(value_parser = value::not_empty, add = complete::services())]
    pub(crate) service: String,
}

/// `service rm`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl service rm web db")]
pub(crate) struct Rm {
    /// Names, NETWORK/NAME, ids or beginnings of ids
    #[arg(required = true, value_name = "SERVICE", value_parser = value::not_empty, add = complete::services())]
    pub(crate) services: Vec<String>,
}

/// `service backend ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Backend {
    /// Let an endpoint answer for a service
    #[command(after_help = "Example:\n  meshctl service backend add web c1")]
    Add(Member),
    /// Let an endpoint not answer for a service any more; its connections end
    #[command(visible_alias = "remove", after_help = "Example:\n  meshctl service backend rm web c1")]
    Rm(Member),
    /// Send an endpoint no new connections; it keeps those that it has
    #[command(after_help = "Example:\n  meshctl service backend drain web c1")]
    Drain(Member),
    /// Send an endpoint new connections again
    #[command(after_help = "Example:\n  meshctl service backend activate web c1")]
    Activate(Member),
}

/// An endpoint of a service.
#[derive(Debug, Args)]
pub(crate) struct Member {
    /// The service: name, NETWORK/NAME, id or beginning of its id
    #[arg(value_parser = value::not_empty, add = complete::services())]
    pub(crate) service: String,

    /// The endpoint, one of the service's network: name, NETWORK/NAME, id or beginning of its id
    #[arg(value_parser = value::not_empty, add = complete::endpoints())]
    pub(crate) endpoint: String,
}

/// What a service's name resolves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointMode {
    /// A virtual address that is balanced over the endpoints.
    Vip,
    /// The addresses of the endpoints, in changing order.
    Dnsrr,
}

impl From<EndpointMode> for mesh_model::EndpointMode {
    fn from(mode: EndpointMode) -> Self {
        match mode {
            EndpointMode::Vip => Self::Vip,
            EndpointMode::Dnsrr => Self::Dnsrr,
        }
    }
}

/// Whether a client's connections stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Affinity {
    /// Each goes its own way.
    None,
    /// All of one client address go to the same endpoint.
    ClientIp,
}

impl From<Affinity> for mesh_model::Affinity {
    fn from(affinity: Affinity) -> Self {
        match affinity {
            Affinity::None => Self::None,
            Affinity::ClientIp => Self::ClientIp,
        }
    }
}
