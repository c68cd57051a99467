//! What the server knows of the networks.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// All networks whose names are served here, by name. Zones that did not change should be passed on
/// as the same `Arc`, and so should the parts of their lists: their index is then kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zones {
    /// Network name to what is in it.
    pub networks: BTreeMap<String, Arc<Zone>>,
    /// The containers that ask, by each of their addresses. One that is missing here is taken to be
    /// on the network that it asks, and on no other.
    pub clients: Arc<BTreeMap<IpAddr, Arc<Client>>>,
}

/// One container, whose questions are answered from all of its networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its addresses in all networks.
    pub addresses: Vec<IpAddr>,
    /// Its networks in the order in which they are asked.
    pub networks: Vec<String>,
}

impl Zones {
    /// Containers by their addresses.
    pub fn clients_of(clients: impl IntoIterator<Item = Client>) -> BTreeMap<IpAddr, Arc<Client>> {
        let clients = clients.into_iter().map(Arc::new);
        clients
            .flat_map(|client| client.addresses.clone().into_iter().map(move |a| (a, client.clone())))
            .collect()
    }

    /// Every network's gateway addresses: those that the server itself answers on.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.networks.values().flat_map(|zone| zone.gateways.iter().copied())
    }
}

/// The names of one network. Names are compared without regard to ASCII case and may have dots in
/// them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// Addresses that the network is served on; never asked as resolvers.
    pub gateways: Vec<IpAddr>,
    /// The network's subnets: no question for a name of an address in them leaves the host.
    pub subnets: Vec<IpNetwork>,
    /// Whether the network has no way out: no question is forwarded.
    pub internal: bool,
    /// All endpoints of the network that have a name, wherever they are.
    pub endpoints: List<Endpoint>,
    /// All services of the network.
    pub services: List<Service>,
}

/// A list in parts, of which one may change without the others: there may be ten thousand services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(Vec<Arc<Vec<T>>>);

impl<T> List<T> {
    /// The list that these parts make.
    pub fn of_parts(parts: impl IntoIterator<Item = Arc<Vec<T>>>) -> Self {
        Self(parts.into_iter().collect())
    }

    /// The parts.
    pub fn parts(&self) -> &[Arc<Vec<T>>] {
        &self.0
    }

    /// All that is in it.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|part| part.iter())
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// A list of one part.
impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self(vec![Arc::new(items.into_iter().collect())])
    }
}

/// A list of one part.
impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self(vec![Arc::new(items)])
    }
}

/// One endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its name. A service of the same name hides it.
    pub name: String,
    /// Further names, which several endpoints may share. Services' and endpoints' own names hide
    /// them.
    pub aliases: Vec<String>,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Whether it is healthy. An unhealthy one is left out where others share the alias; its own
    /// name is answered.
    pub healthy: bool,
}

/// One service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// What its name resolves to.
    pub mode: EndpointMode,
    /// Those that take new connections; draining ones are the caller's to leave out.
    pub backends: Vec<Backend>,
}

/// What a service's name resolves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointMode {
    /// A virtual IP.
    Vip {
        /// IPv4 address.
        ipv4: Option<Ipv4Addr>,
        /// IPv6 address.
        ipv6: Option<Ipv6Addr>,
    },
    /// The backends' own addresses.
    RoundRobin,
}

impl Default for EndpointMode {
    /// A virtual IP that has no address yet.
    fn default() -> Self {
        Self::Vip { ipv4: None, ipv6: None }
    }
}

/// One backend of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Whether it is healthy.
    pub healthy: bool,
}
