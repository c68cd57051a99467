//! `meshctl apply`: networks and services as declared in one file.
//!
//! [`file`] parses the file. [`plan`] compares it with the current state, without calls or a clock.
//! `command::apply` makes the calls.

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

/// The label with the name of the project whose file created an object.
pub(crate) const LABEL: &str = "mesh.apply";

/// The contents of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Declared {
    /// The project's name.
    pub(crate) project: String,
    /// In the order of the file, each name once.
    pub(crate) networks: Vec<Network>,
    /// In the order of the file, each name once in a network.
    pub(crate) services: Vec<Service>,
    /// Services without an active profile: they are neither created nor removed.
    pub(crate) inactive: Vec<Service>,
    /// Keys without effect, in the order of the file.
    pub(crate) ignored: Vec<Ignored>,
    /// Probable mistakes, in the order of the file.
    pub(crate) warnings: Vec<Warning>,
}

/// A network as declared.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent flag, named as in the file")]
pub(crate) struct Network {
    /// Its name in the cluster.
    pub(crate) name: Name,
    /// Managed elsewhere: it must exist, and its other settings are ignored.
    pub(crate) external: bool,
    pub(crate) internal: bool,
    pub(crate) ipv6: bool,
    pub(crate) encrypted: bool,
    pub(crate) attachable: bool,
    pub(crate) host_policy: HostPolicy,
    pub(crate) mtu: Option<Mtu>,
    pub(crate) vni: Option<Vni>,
    /// Empty: chosen by the cluster.
    pub(crate) subnets: Vec<Subnet>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Network {
    /// Returns a network of which only the name is declared.
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
    /// `None`: chosen by the cluster.
    pub(crate) vip: Option<Ipv4Addr>,
    /// `None`: chosen by the cluster.
    pub(crate) vip6: Option<Ipv6Addr>,
    pub(crate) ports: Vec<Port>,
    pub(crate) affinity: Affinity,
    pub(crate) health: Option<HealthCheck>,
    pub(crate) when_all_unhealthy: WhenAllUnhealthy,
    /// Additional names that resolve to it.
    pub(crate) aliases: Vec<Name>,
}

/// A published port as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// Any port of this range.
    pub(crate) published: RangeInclusive<u16>,
    pub(crate) target: u16,
    pub(crate) protocol: Protocol,
    pub(crate) mode: PublishMode,
    pub(crate) host_ip: Option<IpAddr>,
}

impl Port {
    /// Returns whether an existing port matches the declaration.
    fn allows(&self, port: &PublishedPort) -> bool {
        self.published.contains(&port.published)
            && (self.target, self.protocol, self.mode, self.host_ip)
                == (port.target, port.protocol, port.mode, port.host_ip)
    }

    /// Returns the port with a chosen published port; with 0, the cluster chooses.
    fn with(&self, published: u16) -> PublishedPort {
        let Self { target, protocol, mode, host_ip, .. } = *self;
        PublishedPort { published, target, protocol, mode, host_ip }
    }

    /// Returns whether the cluster chooses the published port.
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
