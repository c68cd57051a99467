//! The desired map entries of one service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_ebpf_types::{
    AFFINITY_CLIENT_IP, Address, BACKEND_ENCRYPTED, DRAINING, EndpointKey, FAILING, HOST_MODE, LOCAL,
    LOOPBACK_PUBLISHED_IPV4, LOOPBACK_PUBLISHED_IPV6, Published, PublishedKey, ServiceKey, TableEntry,
    TableKey, Vni,
};
use mesh_model::traffic::{excluded, usable};
use mesh_model::{
    Affinity, Availability, Backend, BackendId, BackendState, Network, NetworkId, Node, NodeId, PublishMode,
    PublishedPort, Service,
};

use super::rendezvous;

/// A service's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    /// The service's record.
    pub service: Service,
    /// Its backends, draining ones too.
    pub backends: BTreeMap<BackendId, Backend>,
}

/// Other inputs of the entries.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// This node.
    pub node: &'a NodeId,
    /// All nodes.
    pub nodes: &'a BTreeMap<NodeId, Node>,
    /// Nodes whose datapath does not respond.
    pub down: &'a BTreeSet<NodeId>,
    /// The networks of services.
    pub networks: &'a BTreeMap<NetworkId, Network>,
    /// Backends that pass their service's check.
    pub healthy: &'a BTreeSet<BackendId>,
    /// The nodes' WireGuard numbers, if they have any.
    pub peers: &'a BTreeMap<NodeId, u16>,
    /// Nodes that this node cannot reach.
    pub unreachable: &'a Unreachable,
}

/// Nodes that this node cannot reach, although others may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unreachable {
    /// Through VXLAN: affects backends of unencrypted networks.
    pub clear: BTreeSet<NodeId>,
    /// Through WireGuard: affects backends of encrypted networks.
    pub encrypted: BTreeSet<NodeId>,
}

impl Records {
    /// Returns the backends that get new connections; the same on every node that reaches them all.
    ///
    /// Candidates are active and on a node that is neither down nor drained. Those that this node
    /// cannot reach are excluded, unless it can reach none. [`usable`] decides among the rest.
    pub fn usable(&self, facts: &Facts<'_>) -> BTreeSet<BackendId> {
        self.usable_where(facts, |_| true)
    }

    /// Returns the maximum number of entries of its tables in the array.
    pub fn room(&self) -> u64 {
        let each = super::space::padded(rendezvous::size(self.backends.len()));
        u64::from(each) * scopes(&self.service).len() as u64
    }

    /// Returns the candidates that this node can reach; all of them if it can reach none.
    fn reachable(&self, candidates: BTreeSet<BackendId>, facts: &Facts<'_>) -> BTreeSet<BackendId> {
        let encrypted = facts.networks.get(&self.service.network).is_some_and(|network| network.encrypted);
        let Unreachable { clear, encrypted: by_wireguard } = facts.unreachable;
        let unreachable = if encrypted { by_wireguard } else { clear };
        if unreachable.is_empty() {
            return candidates;
        }
        let is_reachable = |id: &&BackendId| {
            self.backends.get(*id).is_some_and(|backend| !unreachable.contains(&backend.node))
        };
        let reachable: BTreeSet<BackendId> = candidates.iter().filter(is_reachable).copied().collect();
        if reachable.is_empty() { candidates } else { reachable }
    }

    fn usable_where(&self, facts: &Facts<'_>, matches: impl Fn(&Backend) -> bool) -> BTreeSet<BackendId> {
        let takes_more = |backend: &Backend| {
            let availability = facts.nodes.get(&backend.node).map(|node| node.availability);
            excluded(backend, availability, facts.down.contains(&backend.node)).is_none()
        };
        let candidates: BTreeSet<BackendId> = self
            .backends
            .values()
            .filter(|backend| takes_more(backend) && matches(backend))
            .map(|backend| backend.id)
            .collect();
        usable(&self.service, self.reachable(candidates, facts), facts.healthy)
    }
}

/// The set of backends in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// All usable backends.
    Cluster,
    /// Those on this node, for ports that each host answers itself.
    Host,
}

impl Scope {
    const fn of(port: &PublishedPort) -> Self {
        match port.mode {
            PublishMode::Ingress => Self::Cluster,
            PublishMode::Host => Self::Host,
        }
    }
}

/// Returns the scopes for which a service has tables.
fn scopes(service: &Service) -> BTreeSet<Scope> {
    service.vips().map(|_| Scope::Cluster).chain(service.ports.iter().map(Scope::of)).collect()
}

/// The inputs of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// The backends, by number.
    pub backends: BTreeSet<u32>,
    /// The size of their table if there is more than one.
    pub size: u32,
}

impl Share {
    fn new(usable: BTreeSet<BackendId>, size: u32) -> Self {
        Self { backends: usable.into_iter().map(BackendId::get).collect(), size }
    }

    /// Returns the number of entries of the table.
    pub(crate) fn len(&self) -> u32 {
        match self.backends.len() {
            0 => 0,
            1 => 1,
            _ => self.size,
        }
    }
}

/// An entry that refers to a table whose place is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Template {
    Service(ServiceKey, mesh_ebpf_types::Service),
    Published(PublishedKey, Published, Scope),
}

impl Template {
    pub(crate) const fn scope(&self) -> Scope {
        match self {
            Self::Service(..) => Scope::Cluster,
            Self::Published(_, _, scope) => *scope,
        }
    }

    /// Returns the entry, with the place of the table.
    pub(crate) const fn naming(&self, first: u32, size: u32) -> TableEntry {
        match *self {
            Self::Service(key, service) => {
                TableEntry::Service(key, mesh_ebpf_types::Service { first, size, ..service })
            }
            Self::Published(key, published, _) => {
                TableEntry::Published(key, Published { first, size, ..published })
            }
        }
    }
}

/// Returns the table to which an entry refers: index of its first entry, and size.
pub const fn named_table(entry: &TableEntry) -> Option<(u32, u32)> {
    match entry {
        TableEntry::Service(_, service) => Some((service.first, service.size)),
        TableEntry::Published(_, published) => Some((published.first, published.size)),
        _ => None,
    }
}

/// Returns the tables that entries name: by index of their first entry, as long as the longest of
/// the entries says. Empty tables are left out.
pub fn named_tables<'a>(entries: impl IntoIterator<Item = &'a TableEntry>) -> BTreeMap<u32, u32> {
    let mut tables: BTreeMap<u32, u32> = BTreeMap::new();
    for (first, size) in entries.into_iter().filter_map(named_table).filter(|(_, size)| *size > 0) {
        let longest = tables.entry(first).or_default();
        *longest = size.max(*longest);
    }
    tables
}

/// All that one service wants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entries {
    pub name: String,
    pub shares: BTreeMap<Scope, Share>,
    pub named: BTreeMap<TableKey, Template>,
    pub backends: BTreeMap<u32, TableEntry>,
    pub addresses: BTreeMap<u32, BTreeSet<EndpointKey>>,
}

impl Entries {
    /// Returns the entries of a service. A service whose network is unknown has none.
    pub(crate) fn of(records: &Records, facts: &Facts<'_>) -> Self {
        let service = &records.service;
        let Some(network) = facts.networks.get(&service.network) else { return Self::default() };
        let vni = Vni::new(network.vni.get());
        let mut entries = Self { name: service.name.to_string(), ..Self::default() };
        let usable = records.usable(facts);
        for backend in records.backends.values() {
            let failing = !usable.contains(&backend.id) && is_failing(service, backend, facts);
            entries.backend(backend, network, vni, facts, failing);
        }
        let size = rendezvous::size(records.backends.len());
        let affinity = match service.affinity {
            Affinity::None => 0,
            Affinity::ClientIp => AFFINITY_CLIENT_IP,
        };
        for vip in service.vips() {
            entries.vip(vni, vip, affinity);
        }
        for port in &service.ports {
            entries.port(vni, port, affinity);
        }
        for scope in scopes(service) {
            let usable = match scope {
                Scope::Cluster => usable.clone(),
                Scope::Host => records.usable_where(facts, |backend| backend.node == *facts.node),
            };
            entries.shares.insert(scope, Share::new(usable, size));
        }
        entries
    }

    fn backend(&mut self, backend: &Backend, network: &Network, vni: Vni, facts: &Facts<'_>, failing: bool) {
        let id = backend.id.get();
        let node = facts.nodes.get(&backend.node);
        let mut flags = 0;
        if backend.node == *facts.node {
            flags |= LOCAL;
        }
        if !takes_new(backend, node) {
            flags |= DRAINING;
        }
        if failing {
            flags |= FAILING;
        }
        if network.encrypted {
            flags |= BACKEND_ENCRYPTED;
        }
        let value = mesh_ebpf_types::Backend {
            vni,
            ipv4: backend.ipv4.map_or([0; 4], |ipv4| ipv4.octets()),
            ipv6: backend.ipv6.map_or(Address::NONE, Address::from),
            node: node.map_or(Address::NONE, |node| node.data_path_addr.into()),
            flags,
            peer: facts.peers.get(&backend.node).copied().unwrap_or_default(),
        };
        self.backends.insert(id, TableEntry::Backend(id, value));
        let addresses = backend.addresses().map(|address| EndpointKey { vni, address: address.into() });
        self.addresses.insert(id, addresses.collect());
    }

    fn vip(&mut self, vni: Vni, vip: IpAddr, flags: u32) {
        let key = ServiceKey { vni, address: vip.into() };
        let service = mesh_ebpf_types::Service { flags, ..mesh_ebpf_types::Service::default() };
        self.named.insert(TableKey::Service(key), Template::Service(key, service));
    }

    fn port(&mut self, vni: Vni, port: &PublishedPort, flags: u32) {
        let scope = Scope::of(port);
        let mode = match scope {
            Scope::Cluster => 0,
            Scope::Host => HOST_MODE,
        };
        let key = PublishedKey {
            address: port.host_ip.map_or(Address::NONE, key_address),
            port: port.published.to_be_bytes(),
            protocol: port.protocol.number(),
            padding: 0,
        };
        let target = port.target.to_be_bytes();
        let published = Published { vni, target, flags: flags | mode, ..Published::default() };
        self.named.insert(TableKey::Published(key), Template::Published(key, published, scope));
    }
}

/// Returns the address of a [`PublishedKey`] for a port that is published on one address only.
fn key_address(address: IpAddr) -> Address {
    if address == IpAddr::from(Ipv4Addr::LOCALHOST) {
        Address::from_v4(LOOPBACK_PUBLISHED_IPV4)
    } else if address == IpAddr::from(Ipv6Addr::LOCALHOST) {
        LOOPBACK_PUBLISHED_IPV6
    } else {
        address.into()
    }
}

/// Returns whether a backend or its node has failed.
fn is_failing(service: &Service, backend: &Backend, facts: &Facts<'_>) -> bool {
    let passes = service.health.is_none() || facts.healthy.contains(&backend.id);
    !passes || facts.down.contains(&backend.node)
}

/// Returns whether operators allow new connections to a backend.
fn takes_new(backend: &Backend, node: Option<&Node>) -> bool {
    backend.state == BackendState::Active
        && node.is_some_and(|node| node.availability == Availability::Active)
}
