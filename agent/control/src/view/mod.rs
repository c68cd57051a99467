//! The records as one manager sees them at one revision, and the changes of a revision for each
//! node. Pure.

mod apply;
mod batch;
mod services;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::{Backend, EndpointId, Lease, Network, NetworkId, Node, NodeId, Prefix, Service, ServiceId};
use mesh_store::{Key, KeyValue};
use tracing::error;

use crate::keys;
use crate::records::{decode, decode_lease};

pub(crate) use batch::Batch;
pub(crate) use services::{Audience, ServiceRecords, Services};

/// How much of a network a node receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Its record, so that packets to it do not leave by another route, and its services with
    /// published ports.
    Published,
    /// Everything: the node has a lease in it.
    Full,
}

impl Level {
    /// Returns whether a node with this level of a network receives a service in it.
    pub(crate) fn receives(this: Option<Self>, audience: Audience) -> bool {
        match audience {
            Audience::Nobody => false,
            Audience::Holders => this == Some(Self::Full),
            Audience::Everyone => this.is_some(),
        }
    }
}

/// The records of a network that a node receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkRecords {
    pub(crate) network: Network,
    pub(crate) leases: Vec<Lease>,
    pub(crate) services: Vec<ServiceRecords>,
}

/// All records that agents receive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) revision: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) networks: BTreeMap<NetworkId, Network>,
    pub(crate) leases: BTreeMap<NetworkId, BTreeMap<Prefix, Lease>>,
    pub(crate) services: Services,
    /// The generation that every node's newest key must have; 0 before the first rotation.
    pub(crate) generation: u32,
}

/// One change of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecordChange {
    PutNode(Node),
    RemoveNode(NodeId),
    PutNetwork(Network),
    RemoveNetwork(NetworkId),
    PutLease(Lease),
    /// The previous record.
    RemoveLease(Lease),
    PutService(Arc<Service>),
    /// The previous record.
    RemoveService(Arc<Service>),
    PutBackend(Arc<Backend>),
    /// The previous record.
    RemoveBackend(Arc<Backend>),
    Generation(u32),
}

impl View {
    /// Builds the view of a whole store. Skips and logs a record that cannot be parsed, so that the
    /// others still work.
    pub(crate) fn new(revision: u64, kvs: &[KeyValue]) -> Self {
        let mut view = Self { revision, ..Self::default() };
        for kv in kvs {
            view.put(kv);
        }
        view
    }

    /// Returns the records of each network that the node receives.
    pub(crate) fn networks_of(&self, node: &NodeId) -> impl Iterator<Item = (Level, NetworkRecords)> {
        let holds = move |id: &NetworkId| {
            self.leases.get(id).into_iter().flat_map(BTreeMap::values).any(|lease| lease.node == *node)
        };
        self.networks.keys().filter_map(move |id| {
            let level = if holds(id) { Level::Full } else { Level::Published };
            Some((level, self.network_records(id, level)?))
        })
    }

    /// Returns the nodes that receive a service with this audience in this network.
    pub(crate) fn interested(&self, network: &NetworkId, audience: Audience) -> Vec<NodeId> {
        match audience {
            Audience::Nobody => Vec::new(),
            Audience::Holders => self.holders(network).into_iter().collect(),
            Audience::Everyone => self.nodes.keys().cloned().collect(),
        }
    }

    /// Returns which nodes receive a service.
    pub(crate) fn audience(&self, service: &ServiceId) -> Audience {
        self.services.audience(service)
    }

    /// Returns the records of a network for a node with this level.
    fn network_records(&self, id: &NetworkId, level: Level) -> Option<NetworkRecords> {
        let network = self.networks.get(id)?.clone();
        let services = |ids: &mut dyn Iterator<Item = &ServiceId>| {
            ids.filter_map(|id| self.services.records(id)).collect::<Vec<_>>()
        };
        Some(match level {
            Level::Published => {
                let services = services(&mut self.services.published_in(id));
                NetworkRecords { network, leases: Vec::new(), services }
            }
            Level::Full => {
                let leases = self.leases.get(id).into_iter().flat_map(BTreeMap::values).cloned().collect();
                NetworkRecords { network, leases, services: services(&mut self.services.in_network(id)) }
            }
        })
    }

    /// Returns the nodes that hold a lease in the network.
    fn holders(&self, id: &NetworkId) -> BTreeSet<NodeId> {
        self.leases.get(id).into_iter().flat_map(BTreeMap::values).map(|lease| lease.node.clone()).collect()
    }

    fn put(&mut self, kv: &KeyValue) -> Option<RecordChange> {
        let key = kv.key.as_str()?;
        let change = if key.starts_with(keys::NODE) {
            decode(kv).map(|record| RecordChange::PutNode(record.value))
        } else if key.starts_with(keys::NETWORK) {
            decode(kv).map(|record| RecordChange::PutNetwork(record.value))
        } else if key.starts_with(keys::LEASE) {
            decode_lease(kv).map(RecordChange::PutLease)
        } else if key.starts_with(keys::SERVICE) {
            decode(kv).map(|record| RecordChange::PutService(Arc::new(record.value)))
        } else if key.starts_with(keys::BACKEND) {
            decode(kv).map(|record| RecordChange::PutBackend(Arc::new(record.value)))
        } else if key == keys::GENERATION {
            decode(kv).map(|record| RecordChange::Generation(record.value))
        } else {
            return None;
        };
        let change = change.inspect_err(|error| error!(%error, "left out a record")).ok()?;
        match &change {
            RecordChange::PutNode(node) => {
                self.nodes.insert(node.id.clone(), node.clone());
            }
            RecordChange::PutNetwork(network) => {
                self.networks.insert(network.id.clone(), network.clone());
            }
            RecordChange::PutLease(lease) => {
                self.leases.entry(lease.network.clone()).or_default().insert(lease.prefix, lease.clone());
            }
            RecordChange::PutService(service) => self.services.put_service(service.clone()),
            RecordChange::PutBackend(backend) => self.services.put_backend(backend.clone()),
            RecordChange::Generation(generation) => self.generation = *generation,
            _ => {}
        }
        Some(change)
    }

    fn remove(&mut self, key: &Key) -> Option<RecordChange> {
        let key = key.as_str()?;
        if let Some(id) = key.strip_prefix(keys::NODE) {
            let id = id.parse().ok()?;
            self.nodes.remove(&id)?;
            return Some(RecordChange::RemoveNode(id));
        }
        if let Some(id) = key.strip_prefix(keys::NETWORK) {
            let id = id.parse().ok()?;
            self.networks.remove(&id)?;
            return Some(RecordChange::RemoveNetwork(id));
        }
        if let Some(id) = service_key(key) {
            return self.services.remove_service(&id).map(RecordChange::RemoveService);
        }
        if let Some((service, endpoint)) = backend_key(key) {
            return self.services.remove_backend(&service, &endpoint).map(RecordChange::RemoveBackend);
        }
        let (network, prefix) = lease_key(key)?;
        let leases = self.leases.get_mut(&network)?;
        let lease = leases.remove(&prefix)?;
        if leases.is_empty() {
            self.leases.remove(&network);
        }
        Some(RecordChange::RemoveLease(lease))
    }
}

/// Parses the network and prefix of a lease's key.
fn lease_key(key: &str) -> Option<(NetworkId, Prefix)> {
    let (network, prefix) = key.strip_prefix(keys::LEASE)?.split_once('/')?;
    Some((network.parse().ok()?, prefix.parse().ok()?))
}

/// Parses the service of a service's key.
fn service_key(key: &str) -> Option<ServiceId> {
    key.strip_prefix(keys::SERVICE)?.parse().ok()
}

/// Parses the service and endpoint of a backend's key.
fn backend_key(key: &str) -> Option<(ServiceId, EndpointId)> {
    let (service, endpoint) = key.strip_prefix(keys::BACKEND)?.split_once('/')?;
    Some((service.parse().ok()?, endpoint.parse().ok()?))
}
