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

#[cfg(test)]
mod tests {
    use mesh_model::{Availability, LeaseState, Mtu, Role, Subnet, Vni};
    use mesh_store::{Revision, Value};
    use proptest::prelude::*;

    use super::*;
    use crate::records::encode;

    const NODES: usize = 3;
    const NETWORKS: usize = 3;
    const BLOCKS: usize = 4;

    fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(n: usize) -> T {
        format!("{n:024x}").parse().unwrap()
    }

    fn node(n: usize, mtu: u32) -> Node {
        Node {
            id: id(n),
            name: format!("h{n}").parse().unwrap(),
            role: Role::Worker,
            availability: Availability::Active,
            advertise_addr: "192.168.77.11:7377".parse().unwrap(),
            data_path_addr: "192.168.77.11".parse().unwrap(),
            data_path_mtu: Mtu::try_from(mtu).unwrap(),
            version: String::new(),
            wireguard: None,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn network(n: usize, internal: bool) -> Network {
        Network {
            id: id(n),
            name: format!("n{n}").parse().unwrap(),
            vni: Vni::FIRST_AUTOMATIC,
            subnets: Vec::<Subnet>::new(),
            mtu: None,
            encrypted: false,
            internal,
            attachable: true,
            removing: false,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn lease(network: usize, block: usize, node: usize) -> Lease {
        let prefix = format!("10.{network}.0.{}/30", block * 4).parse().unwrap();
        Lease { network: id(network), prefix, node: id(node), state: LeaseState::Active, revision: 0 }
    }

    /// What one transaction may do to one key: put something, or delete it.
    fn write() -> impl Strategy<Value = (Key, Option<Value>)> {
        prop_oneof![
            (0..NODES, prop::option::of(1000u32..1010))
                .prop_map(|(n, mtu)| { (keys::node(&id(n)), mtu.map(|mtu| encode(&node(n, mtu)))) }),
            (0..NETWORKS, prop::option::of(any::<bool>())).prop_map(|(n, internal)| {
                (keys::network(&id(n)), internal.map(|internal| encode(&network(n, internal))))
            }),
            (0..NETWORKS, 0..BLOCKS, prop::option::of(0..NODES)).prop_map(|(network, block, node)| {
                let key = keys::lease(&id(network), &lease(network, block, 0).prefix);
                (key, node.map(|node| encode(&lease(network, block, node))))
            }),
        ]
    }

    /// What a node knows from its messages.
    #[derive(Debug, Default, PartialEq)]
    struct Agent {
        nodes: BTreeMap<String, v1::Node>,
        networks: BTreeMap<String, v1::Network>,
        leases: BTreeMap<(String, String), v1::Lease>,
    }

    impl Agent {
        fn snapshot(view: &View, node: &NodeId) -> Self {
            let mut agent = Self::default();
            for node in view.nodes.values() {
                agent.hear(Kind::PutNode(node.into()));
            }
            for records in view.networks_of(node) {
                agent.hear(Kind::PutNetwork((&records.network).into()));
                for lease in &records.leases {
                    agent.hear(Kind::PutLease(lease.into()));
                }
            }
            agent
        }

        fn hear(&mut self, kind: Kind) {
            match kind {
                Kind::PutNode(node) => {
                    self.nodes.insert(node.id.clone(), node);
                }
                Kind::RemoveNode(id) => {
                    self.nodes.remove(&id).expect("a node that was known");
                }
                Kind::PutNetwork(network) => {
                    self.networks.insert(network.id.clone(), network);
                }
                Kind::RemoveNetwork(id) => {
                    self.networks.remove(&id).expect("a network that was known");
                    self.leases.retain(|(network, _), _| *network != id);
                }
                Kind::PutLease(lease) => {
                    assert!(self.networks.contains_key(&lease.network), "a lease of a known network");
                    self.leases.insert((lease.network.clone(), lease.prefix.clone()), lease);
                }
                Kind::RemoveLease(lease) => {
                    self.leases.remove(&(lease.network, lease.prefix)).expect("a lease that was known");
                }
                Kind::PutService(_)
                | Kind::RemoveService(_)
                | Kind::PutBackend(_)
                | Kind::RemoveBackend(_) => {
                    panic!("there are no services")
                }
            }
        }
    }

    proptest! {
        /// Records come and go in any combination, also in ones that no transaction of ours makes.
        #[test]
        fn deltas_lead_to_what_a_snapshot_says(
            batches in prop::collection::vec(prop::collection::vec(write(), 1..6), 1..40),
        ) {
            let mut store: BTreeMap<Key, KeyValue> = BTreeMap::new();
            let mut view = View::default();
            let me: NodeId = id(0);
            let (mut agent, mut visible) = (Agent::default(), BTreeSet::new());
            for (index, batch) in batches.into_iter().enumerate() {
                let revision = index as u64 + 2;
                let mut events = BTreeMap::new();
                for (key, value) in batch {
                    match value {
                        Some(value) => {
                            let mod_revision = Revision(revision);
                            let kv = KeyValue { key: key.clone(), value, create_revision: mod_revision, mod_revision, version: 1 };
                            store.insert(key.clone(), kv.clone());
                            events.insert(key, Event::Put(kv));
                        }
                        None if store.remove(&key).is_some() => {
                            events.insert(key.clone(), Event::Delete { key, revision: Revision(revision) });
                        }
                        None => {}
                    }
                }
                let events: Vec<Event> = events.into_values().collect();
                let batch = view.apply(revision, &events);
                for change in batch.changes_for(&me, &mut visible) {
                    agent.hear(change.kind.expect("a change has a kind"));
                }
                let kvs: Vec<KeyValue> = store.values().cloned().collect();
                prop_assert_eq!(&view, &View::new(revision, &kvs));
                prop_assert_eq!(&agent, &Agent::snapshot(&view, &me));
            }
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_keeps_no_other_from_being_seen() {
        let kv = |key: Key, value: Value| {
            let at = Revision(2);
            KeyValue { key, value, create_revision: at, mod_revision: at, version: 1 }
        };
        let good = kv(keys::node(&id(1)), encode(&node(1, 1500)));
        let view = View::new(2, &[kv(keys::node(&id(0)), "{".into()), good]);
        assert_eq!(view.nodes.keys().cloned().collect::<Vec<_>>(), [id(1)]);
    }
}
