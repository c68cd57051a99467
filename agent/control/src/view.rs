//! The records as one manager sees them at one revision, and what a revision changes for each node. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::{Lease, Network, NetworkId, Node, NodeId, Prefix};
use mesh_proto::v1::{self, change::Kind};
use mesh_store::{Event, Key, KeyValue};
use tracing::error;

use crate::keys;
use crate::records::{decode, decode_lease};

/// A network with its leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkRecords {
    pub(crate) network: Network,
    pub(crate) leases: Vec<Lease>,
}

/// All records that agents are told about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) revision: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) networks: BTreeMap<NetworkId, Network>,
    pub(crate) leases: BTreeMap<NetworkId, BTreeMap<Prefix, Lease>>,
}

/// One change of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecordChange {
    PutNode(Node),
    RemoveNode(NodeId),
    PutNetwork(Network),
    RemoveNetwork(NetworkId),
    PutLease(Lease),
    /// As it was.
    RemoveLease(Lease),
}

/// What one revision changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) revision: u64,
    pub(crate) changes: Vec<RecordChange>,
    /// The networks in which a node got its first lease: what it has to be told.
    gained: BTreeMap<NodeId, BTreeMap<NetworkId, Arc<NetworkRecords>>>,
    /// The networks in which a node lost its last lease, or which are gone.
    lost: BTreeMap<NodeId, BTreeSet<NetworkId>>,
}

impl View {
    /// The view of a whole store. A record that cannot be read is left out and logged: it must not keep the rest from
    /// working.
    pub(crate) fn new(revision: u64, kvs: &[KeyValue]) -> Self {
        let mut view = Self { revision, ..Self::default() };
        for kv in kvs {
            view.put(kv);
        }
        view
    }

    /// The networks in which the node holds a lease, with all their leases.
    pub(crate) fn networks_of(&self, node: &NodeId) -> impl Iterator<Item = NetworkRecords> {
        let is_held = |id: &NetworkId| self.holders(id).contains(node);
        self.networks.keys().filter(move |id| is_held(id)).filter_map(|id| self.network_records(id))
    }

    /// Goes on to the next revision.
    pub(crate) fn apply(&mut self, revision: u64, events: &[Event]) -> Batch {
        let touched = touched_networks(events);
        let before: BTreeMap<&NetworkId, BTreeSet<NodeId>> =
            touched.iter().map(|id| (id, self.visible_to(id))).collect();
        let changes = events
            .iter()
            .filter_map(|event| match event {
                Event::Put(kv) => self.put(kv),
                Event::Delete { key, .. } => self.remove(key),
            })
            .collect();
        self.revision = revision;
        let mut batch = Batch { revision, changes, ..Batch::default() };
        for (id, before) in before {
            let after = self.visible_to(id);
            if let Some(records) = self.network_records(id).map(Arc::new) {
                for node in after.difference(&before) {
                    batch.gained.entry(node.clone()).or_default().insert(id.clone(), records.clone());
                }
            }
            for node in before.difference(&after) {
                batch.lost.entry(node.clone()).or_default().insert(id.clone());
            }
        }
        batch
    }

    fn network_records(&self, id: &NetworkId) -> Option<NetworkRecords> {
        let network = self.networks.get(id)?.clone();
        let leases = self.leases.get(id).into_iter().flat_map(BTreeMap::values).cloned().collect();
        Some(NetworkRecords { network, leases })
    }

    /// The nodes that hold a lease in the network.
    fn holders(&self, id: &NetworkId) -> BTreeSet<NodeId> {
        self.leases.get(id).into_iter().flat_map(BTreeMap::values).map(|lease| lease.node.clone()).collect()
    }

    /// The nodes that are told about the network.
    fn visible_to(&self, id: &NetworkId) -> BTreeSet<NodeId> {
        if self.networks.contains_key(id) { self.holders(id) } else { BTreeSet::new() }
    }

    fn put(&mut self, kv: &KeyValue) -> Option<RecordChange> {
        let key = kv.key.as_str()?;
        let change = if key.starts_with(keys::NODE) {
            decode(kv).map(|record| RecordChange::PutNode(record.value))
        } else if key.starts_with(keys::NETWORK) {
            decode(kv).map(|record| RecordChange::PutNetwork(record.value))
        } else if key.starts_with(keys::LEASE) {
            decode_lease(kv).map(RecordChange::PutLease)
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
        let (network, prefix) = lease_key(key)?;
        let leases = self.leases.get_mut(&network)?;
        let lease = leases.remove(&prefix)?;
        if leases.is_empty() {
            self.leases.remove(&network);
        }
        Some(RecordChange::RemoveLease(lease))
    }
}

/// The network and prefix of a lease's key.
fn lease_key(key: &str) -> Option<(NetworkId, Prefix)> {
    let (network, prefix) = key.strip_prefix(keys::LEASE)?.split_once('/')?;
    Some((network.parse().ok()?, prefix.parse().ok()?))
}

fn touched_networks(events: &[Event]) -> BTreeSet<NetworkId> {
    let network = |key: &str| match key.strip_prefix(keys::NETWORK) {
        Some(id) => id.parse().ok(),
        None => lease_key(key).map(|(network, _)| network),
    };
    events.iter().filter_map(|event| network(event.key().as_str()?)).collect()
}

impl Batch {
    /// What a node has to be told of this revision.
    pub(crate) fn changes_for(&self, node: &NodeId, visible: &mut BTreeSet<NetworkId>) -> Vec<v1::Change> {
        let gained = self.gained.get(node);
        let lost = self.lost.get(node);
        // Networks that it gains are told whole, and those that it loses are forgotten whole.
        for id in lost.into_iter().flatten() {
            visible.remove(id);
        }
        let known: Vec<Kind> = self.changes.iter().filter_map(|change| message(change, visible)).collect();
        let mut kinds = Vec::new();
        for (id, records) in gained.into_iter().flatten() {
            visible.insert(id.clone());
            kinds.push(Kind::PutNetwork((&records.network).into()));
            kinds.extend(records.leases.iter().map(|lease| Kind::PutLease(lease.into())));
        }
        kinds.extend(known);
        kinds.extend(lost.into_iter().flatten().map(|id| Kind::RemoveNetwork(id.to_string())));
        // Nodes first when they come and last when they go, so that leases always point to nodes that are known.
        kinds.sort_by_key(|kind| match kind {
            Kind::PutNode(_) => 0,
            Kind::RemoveNode(_) => 2,
            _ => 1,
        });
        kinds.into_iter().map(|kind| v1::Change { kind: Some(kind) }).collect()
    }
}

/// A change as a message, for a node that knows these networks.
fn message(change: &RecordChange, visible: &BTreeSet<NetworkId>) -> Option<Kind> {
    match change {
        RecordChange::PutNode(node) => Some(Kind::PutNode(node.into())),
        RecordChange::RemoveNode(id) => Some(Kind::RemoveNode(id.to_string())),
        RecordChange::PutNetwork(network) => {
            visible.contains(&network.id).then(|| Kind::PutNetwork(network.into()))
        }
        RecordChange::RemoveNetwork(id) => visible.contains(id).then(|| Kind::RemoveNetwork(id.to_string())),
        RecordChange::PutLease(lease) => {
            visible.contains(&lease.network).then(|| Kind::PutLease(lease.into()))
        }
        RecordChange::RemoveLease(lease) => {
            visible.contains(&lease.network).then(|| Kind::RemoveLease(lease.into()))
        }
    }
}
