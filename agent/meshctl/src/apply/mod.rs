//! `meshctl apply`: networks and services as one file declares them.
//!
//! [`file`] understands the file, [`plan`] compares it with what there is, without a call or a
//! clock. The calls that follow are in `command::apply`.

mod compare;
mod dotenv;
mod file;
mod health;
mod network;
mod notes;
mod plan;
mod port;
mod ports;
mod schema;
mod service;
mod variables;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use mesh_model::{
    Affinity, EndpointMode, HealthCheck, HostPolicy, Mtu, Name, Prefix, Protocol, PublishMode, PublishedPort,
    Vni, WhenAllUnhealthy,
};

pub(crate) use compare::Conflict;
pub(crate) use dotenv::add as add_dotenv;
pub(crate) use file::{Given, read};
pub(crate) use notes::{Ignored, Warning, Why};
pub(crate) use plan::{Change, Listed, NewHealth, Plan, Step, Update, plan};
pub(crate) use variables::Variables;
pub(crate) use yaml::Invalid;

/// The label that says which project's file made something; its value is the project's name.
pub(crate) const LABEL: &str = "mesh.apply";

/// What a file declares.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Declared {
    /// The project's name.
    pub(crate) project: String,
    /// In the order of the file, each name once.
    pub(crate) networks: Vec<Network>,
    /// In the order of the file, each name once in a network.
    pub(crate) services: Vec<Service>,
    /// Services whose profiles are not active: they are neither made nor removed.
    pub(crate) inactive: Vec<Service>,
    /// What of the file is without effect, in the order of the file.
    pub(crate) ignored: Vec<Ignored>,
    /// What is probably a mistake, in the order of the file.
    pub(crate) warnings: Vec<Warning>,
}

/// A network as declared.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent flag, named as in the file")]
pub(crate) struct Network {
    /// Its name in the cluster.
    pub(crate) name: Name,
    /// Somebody else's: it must be there, and the rest of what is declared of it does not matter.
    pub(crate) external: bool,
    pub(crate) internal: bool,
    pub(crate) ipv6: bool,
    pub(crate) encrypted: bool,
    pub(crate) attachable: bool,
    pub(crate) host_policy: HostPolicy,
    pub(crate) mtu: Option<Mtu>,
    pub(crate) vni: Option<Vni>,
    /// None: chosen by the cluster.
    pub(crate) subnets: Vec<Subnet>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Network {
    /// One of which nothing is declared but that it is there.
    fn named(name: Name) -> Self {
        Self {
            name,
            external: false,
            internal: false,
            ipv6: false,
            encrypted: false,
            attachable: true,
            host_policy: HostPolicy::default(),
            mtu: None,
            vni: None,
            subnets: Vec::new(),
            labels: BTreeMap::new(),
        }
    }
}

/// A subnet as declared.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_field_names, reason = "the fields are called as elsewhere")]
pub(crate) struct Subnet {
    pub(crate) subnet: Prefix,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) ip_range: Option<Prefix>,
    pub(crate) aux: BTreeMap<String, IpAddr>,
}

/// A service as declared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Service {
    pub(crate) name: Name,
    /// Its network's name in the cluster.
    pub(crate) network: Name,
    pub(crate) endpoint_mode: EndpointMode,
    /// None: chosen by the cluster.
    pub(crate) vip: Option<Ipv4Addr>,
    /// None: chosen by the cluster.
    pub(crate) vip6: Option<Ipv6Addr>,
    pub(crate) ports: Vec<Port>,
    pub(crate) affinity: Affinity,
    pub(crate) health: Option<HealthCheck>,
    pub(crate) when_all_unhealthy: WhenAllUnhealthy,
    /// Further names that resolve to it.
    pub(crate) aliases: Vec<Name>,
}

/// A published port as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// Any one of these.
    pub(crate) published: RangeInclusive<u16>,
    pub(crate) target: u16,
    pub(crate) protocol: Protocol,
    pub(crate) mode: PublishMode,
    pub(crate) host_ip: Option<IpAddr>,
}

impl Port {
    /// Whether a port that there is is one that is declared.
    fn allows(&self, port: &PublishedPort) -> bool {
        self.published.contains(&port.published)
            && (self.target, self.protocol, self.mode, self.host_ip)
                == (port.target, port.protocol, port.mode, port.host_ip)
    }

    /// The port with its published one chosen; 0: by the cluster.
    fn with(&self, published: u16) -> PublishedPort {
        let Self { target, protocol, mode, host_ip, .. } = *self;
        PublishedPort { published, target, protocol, mode, host_ip }
    }

    /// Whether the cluster is to choose.
    fn is_automatic(&self) -> bool {
        self.published == PublishedPort::AUTOMATIC
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (*self.published.start(), *self.published.end());
        if first == last {
            self.with(first).fmt(f)
        } else {
            write!(f, "{} (or up to {last})", self.with(first))
        }
    }
}
