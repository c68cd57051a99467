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
    /// Create a service, and print its id and the published ports that were chosen
    Create(Box<Create>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// List the backends of services
    Ps(Ps),
    /// Show all details of services
    Inspect(Inspect),
    /// Change a service, and print its name and the published ports that were chosen
    Update(Box<Update>),
    /// Remove services; their endpoints stay attached
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Manage the backends of a service
    #[command(after_help = "Example:\n  meshctl service backend drain web c1")]
    Backend {
        /// The command.
        #[command(subcommand)]
        command: Backend,
    },
}

/// The endpoints that get new connections while none passes its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhenAllUnhealthy {
    /// All endpoints: the check may be wrong.
    All,
    /// None: connections are refused.
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

/// The health check of a service's backends.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("check").args(["health_tcp", "health_http"]))]
pub(crate) struct Health {
    /// Check that a backend accepts TCP connections on this port
    #[arg(id = "health_tcp", long = "health-tcp", value_name = "PORT", value_parser = HealthKind::parse_tcp)]
    pub(crate) tcp: Option<HealthKind>,

    /// Check that a backend responds to GET on this port and path with a status of 200 to 399
    #[arg(id = "health_http", long = "health-http", value_name = "PORT/PATH", value_parser = HealthKind::parse_http)]
    pub(crate) http: Option<HealthKind>,

    /// Interval between checks [default: 2s]
    #[arg(id = "health_interval", long = "health-interval", value_name = "TIME", value_parser = value::duration)]
    pub(crate) interval: Option<Duration>,

    /// Consecutive failures after which a backend is unhealthy [default: 3]
    #[arg(id = "health_retries", long = "health-retries", value_name = "N")]
    pub(crate) retries: Option<u32>,
}

/// `service create`.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLE)]
pub(crate) struct Create {
    /// Name, unique in the network
    #[arg(long)]
    pub(crate) name: Name,

    /// Network of its endpoints: name, id or id prefix
    #[arg(long, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) network: String,

    /// Addresses that the name resolves to: the virtual address, or those of the endpoints
    #[arg(long, value_enum, default_value_t = EndpointMode::Vip)]
    pub(crate) endpoint_mode: EndpointMode,

    /// Publish a port on every node: [HOSTIP:]PUBLISHED:TARGET[/tcp|udp|sctp], or
    /// published=,target=,protocol=,mode=ingress|host,host-ip=; may be repeated
    #[arg(short, long, value_name = "SPEC")]
    pub(crate) publish: Vec<PublishedPort>,

    /// Virtual IPv4 address [default: the next free one]
    #[arg(long, value_name = "IP")]
    pub(crate) vip: Option<Ipv4Addr>,

    /// Virtual IPv6 address [default: the next free one]
    #[arg(long, value_name = "IP")]
    pub(crate) vip6: Option<Ipv6Addr>,

    /// Whether all connections of a client address go to the same endpoint
    #[arg(long, value_enum, default_value_t = Affinity::None)]
    pub(crate) affinity: Affinity,

    /// The health check of its endpoints.
    #[command(flatten)]
    pub(crate) health: Health,

    /// Endpoints that get new connections while none passes its check
    #[arg(long, value_enum, default_value_t = WhenAllUnhealthy::All)]
    pub(crate) when_all_unhealthy: WhenAllUnhealthy,

    /// Additional name of the service; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Vec<Name>,

    /// Label; may be repeated
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = value::key_value)]
    pub(crate) label: Vec<value::KeyValue>,
}

const CREATE_EXAMPLE: &str = "\
If PUBLISHED is empty or 0, a free port from 30000 to 32767 is allocated.

Example:
  meshctl service create --name web --network app -p 8080:80 --health-http 80/healthz
  meshctl service create --name dns --network app -p 192.0.2.11:53:5353/udp -p target=8080,mode=host";

/// `service ls`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl service ls --network app --filter mode=vip")]
pub(crate) struct Ls {
    /// List only the services of a network: name, id or id prefix
    #[arg(long, value_name = "NETWORK", value_parser = value::not_empty, add = complete::networks())]
    pub(crate) network: Option<String>,

    /// Print only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Filter by id=PREFIX, label=KEY[=VALUE], mode=vip|dnsrr, name=PART or network=NAME; may be
    /// repeated: all labels and one value of each other key must match
    #[arg(short = 'f', long, value_name = "KEY=VALUE", value_parser = filter::parse::<ServiceKey>)]
    pub(crate) filter: Vec<Filter<ServiceKey>>,
}

/// `service ps`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl service ps web --filter health=unhealthy")]
pub(crate) struct Ps {
    /// Print only the endpoints' ids
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Filter by health=healthy|unhealthy|unknown|none, id=PREFIX, name=PART, node=NAME,
    /// state=active|draining or traffic=yes|no; may be repeated: one value of each key must match
    #[arg(short = 'f', long, value_name = "KEY=VALUE", value_parser = filter::parse::<BackendKey>)]
    pub(crate) filter: Vec<Filter<BackendKey>>,

    /// Names, NETWORK/NAME, ids or id prefixes
    #[arg(required = true, value_name = "SERVICE", value_parser = value::not_empty, add = complete::services())]
    pub(crate) services: Vec<String>,
}

/// `service inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl service inspect web")]
pub(crate) struct Inspect {
    /// Names, NETWORK/NAME, ids or id prefixes
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
    /// Publish another port, as with `service create --publish`; may be repeated
    #[arg(long, value_name = "SPEC")]
    pub(crate) publish_add: Vec<PublishedPort>,

    /// Stop publishing a port; may be repeated
    #[arg(long, value_name = "SPEC")]
    pub(crate) publish_rm: Vec<PublishedPort>,

    /// Whether all connections of a client address go to the same endpoint
    #[arg(long, value_enum)]
    pub(crate) affinity: Option<Affinity>,

    /// The health check of its endpoints.
    #[command(flatten)]
    pub(crate) health: Health,

    /// Stop checking its endpoints
    #[arg(long, conflicts_with_all = ["health_tcp", "health_http", "health_interval", "health_retries"])]
    pub(crate) no_health: bool,

    /// Endpoints that get new connections while none passes its check
    #[arg(long, value_enum)]
    pub(crate) when_all_unhealthy: Option<WhenAllUnhealthy>,

    /// Name, NETWORK/NAME, id or id prefix
    #[arg(value_parser = value::not_empty, add = complete::services())]
    pub(crate) service: String,
}

/// `service rm`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl service rm web db")]
pub(crate) struct Rm {
    /// Names, NETWORK/NAME, ids or id prefixes
    #[arg(required = true, value_name = "SERVICE", value_parser = value::not_empty, add = complete::services())]
    pub(crate) services: Vec<String>,
}

/// `service backend ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Backend {
    /// Add an endpoint to a service
    #[command(after_help = "Example:\n  meshctl service backend add web c1")]
    Add(Member),
    /// Remove an endpoint from a service; its connections to the service end
    #[command(visible_alias = "remove", after_help = "Example:\n  meshctl service backend rm web c1")]
    Rm(Member),
    /// Stop new connections to an endpoint; existing connections continue
    #[command(after_help = "Example:\n  meshctl service backend drain web c1")]
    Drain(Member),
    /// Resume new connections to an endpoint
    #[command(after_help = "Example:\n  meshctl service backend activate web c1")]
    Activate(Member),
}

/// An endpoint of a service.
#[derive(Debug, Args)]
pub(crate) struct Member {
    /// Service: name, NETWORK/NAME, id or id prefix
    #[arg(value_parser = value::not_empty, add = complete::services())]
    pub(crate) service: String,

    /// Endpoint in the service's network: name, NETWORK/NAME, id or id prefix
    #[arg(value_parser = value::not_empty, add = complete::endpoints())]
    pub(crate) endpoint: String,
}

/// The addresses that a service's name resolves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointMode {
    /// The virtual address, which is balanced over the endpoints.
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
    /// They may go to different endpoints.
    None,
    /// All connections of one client address go to the same endpoint.
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
