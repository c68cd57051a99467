//! The changes of one revision for each node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::{Backend, BackendId, NetworkId, NodeId, Service, ServiceId};
use mesh_proto::v1::{self, change::Kind};
use mesh_store::Event;

use super::{
    Audience, Level, NetworkRecords, RecordChange, ServiceRecords, View, backend_key, lease_key, service_key,
};
use crate::keys;

/// The changes of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) revision: u64,
    /// Changes of nodes, networks, leases and keys.
    pub(crate) changes: Vec<RecordChange>,
    services: Vec<ServiceChange>,
    /// The networks of which nodes may now receive more or less than before.
    interest: BTreeMap<NetworkId, Interest>,
}

/// The change of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServiceChange {
    id: ServiceId,
    network: NetworkId,
    before: Audience,
    after: Audience,
    put: Option<Arc<Service>>,
    put_backends: Vec<Arc<Backend>>,
    removed_backends: Vec<BackendId>,
    /// The whole service, for nodes that did not have it.
    whole: Option<ServiceRecords>,
}

/// How much of a network each node receives.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interest {
    exists: bool,
    holders: BTreeSet<NodeId>,
    /// For nodes that now receive all of it.
    full: Option<Arc<NetworkRecords>>,
    /// For nodes that now receive only its record and its published services.
    published: Option<Arc<NetworkRecords>>,
}

impl Batch {
    /// Returns the networks whose leases change.
    pub(crate) fn leased_networks(&self) -> BTreeSet<&NetworkId> {
        let networks = self.changes.iter().filter_map(|change| match change {
            RecordChange::PutLease(lease) | RecordChange::RemoveLease(lease) => Some(&lease.network),
            RecordChange::PutNetwork(network) => Some(&network.id),
            RecordChange::RemoveNetwork(network) => Some(network),
            _ => None,
        });
        networks.collect()
    }
}

impl Interest {
    fn of(view: &View, id: &NetworkId) -> Self {
        Self {
            exists: view.networks.contains_key(id),
            holders: view.holders(id),
            full: None,
            published: None,
        }
    }

    fn level(&self, node: &NodeId) -> Option<Level> {
        match self {
            Self { exists: false, .. } => None,
            Self { holders, .. } if holders.contains(node) => Some(Level::Full),
            Self { .. } => Some(Level::Published),
        }
    }
}

/// The state before the revision, of everything that it affects.
pub(super) struct Before {
    networks: BTreeMap<NetworkId, Interest>,
    services: BTreeMap<ServiceId, (Audience, Option<NetworkId>)>,
}

impl Before {
    pub(super) fn new(view: &View, events: &[Event]) -> Self {
        let mut before = Self { networks: BTreeMap::new(), services: BTreeMap::new() };
        for key in events.iter().filter_map(|event| event.key().as_str()) {
            let network = match key.strip_prefix(keys::NETWORK) {
                Some(id) => id.parse().ok(),
                None => lease_key(key).map(|(network, _)| network),
            };
            if let Some(network) = network {
                before.networks.entry(network).or_insert_with_key(|id| Interest::of(view, id));
            }
            if let Some(service) = service_key(key).or_else(|| backend_key(key).map(|(service, _)| service)) {
                before.services.entry(service).or_insert_with_key(|id| {
                    (view.audience(id), view.services.get(id).map(|service| service.network.clone()))
                });
            }
        }
        before
    }

    /// Returns the batch that leads to the view.
    pub(super) fn batch(self, view: &View, changes: Vec<RecordChange>) -> Batch {
        let mut services: BTreeMap<&ServiceId, ServiceChange> = BTreeMap::new();
        for (id, (before, network)) in &self.services {
            let after = view.audience(id);
            let now = view.services.get(id).map(|service| service.network.clone());
            // Backends without a service are ignored.
            let Some(network) = now.or_else(|| network.clone()) else { continue };
            services.insert(
                id,
                ServiceChange {
                    id: id.clone(),
                    network,
                    before: *before,
                    after,
                    put: None,
                    put_backends: Vec::new(),
                    removed_backends: Vec::new(),
                    whole: (after > *before).then(|| view.services.records(id)).flatten(),
                },
            );
        }
        let mut others = Vec::new();
        for change in changes {
            let service = match &change {
                RecordChange::PutService(service) | RecordChange::RemoveService(service) => &service.id,
                RecordChange::PutBackend(backend) | RecordChange::RemoveBackend(backend) => &backend.service,
                _ => {
                    others.push(change);
                    continue;
                }
            };
            let Some(of_service) = services.get_mut(service) else { continue };
            match change {
                RecordChange::PutService(service) => of_service.put = Some(service),
                RecordChange::PutBackend(backend) => of_service.put_backends.push(backend),
                RecordChange::RemoveBackend(backend) => of_service.removed_backends.push(backend.id),
                _ => {}
            }
        }
        let services: Vec<ServiceChange> = services.into_values().collect();
        let interest = self.networks.into_iter().map(|(id, before)| {
            let now = now(view, &id, &before);
            (id, now)
        });
        Batch { revision: view.revision, changes: others, interest: interest.collect(), services }
    }
}

/// Returns how much each node receives now, with the records for those that receive more or less.
fn now(view: &View, id: &NetworkId, before: &Interest) -> Interest {
    let mut now = Interest::of(view, id);
    let is_new = !before.exists;
    if is_new || now.holders.difference(&before.holders).next().is_some() {
        now.full = view.network_records(id, Level::Full).map(Arc::new);
    }
    if is_new || before.holders.difference(&now.holders).next().is_some() {
        now.published = view.network_records(id, Level::Published).map(Arc::new);
    }
    now
}

impl Batch {
    /// Returns whether some node may receive more or less of a network than before.
    pub(crate) fn changes_interest(&self) -> bool {
        !self.interest.is_empty()
    }

    /// Returns the messages for a node about this revision. `known`: the level of each network that
    /// it has received.
    pub(crate) fn changes_for(
        &self,
        node: &NodeId,
        known: &mut BTreeMap<NetworkId, Level>,
    ) -> Vec<v1::Change> {
        // The networks whose level changes for the node, with the level before.
        let mut retold: BTreeMap<&NetworkId, Option<Level>> = BTreeMap::new();
        let mut wholes = Vec::new();
        for (id, interest) in &self.interest {
            let (before, after) = (known.get(id).copied(), interest.level(node));
            if before == after {
                continue;
            }
            retold.insert(id, before);
            // A network of which it receives less is removed first.
            if before > after {
                wholes.push(Kind::RemoveNetwork(id.to_string()));
                known.remove(id);
            }
            let Some(level) = after else { continue };
            known.insert(id.clone(), level);
            let records = if level == Level::Full { &interest.full } else { &interest.published };
            wholes.extend(records.iter().flat_map(|records| whole_network(records)));
        }
        let mut kinds: Vec<Kind> =
            self.changes.iter().filter_map(|change| message(change, known, &retold)).collect();
        for change in &self.services {
            let after = known.get(&change.network).copied();
            match retold.get(&change.network) {
                None => change.append_to(after, &mut kinds),
                Some(before) if *before < after => change.append_removals(*before, after, &mut kinds),
                Some(_) => {}
            }
        }
        kinds.extend(wholes);
        // New nodes first and removed nodes last, so that leases always refer to known nodes.
        kinds.sort_by_key(|kind| match kind {
            Kind::PutNode(_) => 0,
            Kind::RemoveNode(_) => 2,
            _ => 1,
        });
        kinds.into_iter().map(|kind| v1::Change { kind: Some(kind) }).collect()
    }
}

impl ServiceChange {
    /// Adds the changes for a node that receives as much of the network as before.
    fn append_to(&self, level: Option<Level>, kinds: &mut Vec<Kind>) {
        match (Level::receives(level, self.before), Level::receives(level, self.after)) {
            (false, false) => {}
            (false, true) => kinds.extend(self.whole.iter().flat_map(whole_service)),
            (true, false) => kinds.push(Kind::RemoveService(self.id.to_string())),
            (true, true) => {
                kinds.extend(self.put.iter().map(|service| Kind::PutService((&**service).into())));
                kinds.extend(self.removed_backends.iter().map(|id| Kind::RemoveBackend(id.get())));
                kinds.extend(self.put_backends.iter().map(|backend| Kind::PutBackend((&**backend).into())));
            }
        }
    }

    /// Adds the changes for a node that receives all of the network now, and had a part before.
    fn append_removals(&self, before: Option<Level>, after: Option<Level>, kinds: &mut Vec<Kind>) {
        if !Level::receives(before, self.before) {
            return;
        }
        if Level::receives(after, self.after) {
            kinds.extend(self.removed_backends.iter().map(|id| Kind::RemoveBackend(id.get())));
        } else {
            kinds.push(Kind::RemoveService(self.id.to_string()));
        }
    }
}

fn whole_network(records: &NetworkRecords) -> impl Iterator<Item = Kind> {
    let leases = records.leases.iter().map(|lease| Kind::PutLease(lease.into()));
    let services = records.services.iter().flat_map(whole_service);
    std::iter::once(Kind::PutNetwork((&records.network).into())).chain(leases).chain(services)
}

fn whole_service(records: &ServiceRecords) -> impl Iterator<Item = Kind> {
    let backends = records.backends.iter().map(|backend| Kind::PutBackend((&**backend).into()));
    std::iter::once(Kind::PutService((&*records.service).into())).chain(backends)
}

/// Returns the message about a node, network or lease, for a node that knows these networks.
/// Excludes networks that are sent again.
fn message(
    change: &RecordChange,
    known: &BTreeMap<NetworkId, Level>,
    retold: &BTreeMap<&NetworkId, Option<Level>>,
) -> Option<Kind> {
    let receives = |id: &NetworkId, level| {
        known.get(id).is_some_and(|known| *known >= level) && !retold.contains_key(id)
    };
    let kind = match change {
        RecordChange::PutNode(node) => Kind::PutNode(node.into()),
        RecordChange::RemoveNode(id) => Kind::RemoveNode(id.to_string()),
        RecordChange::PutNetwork(network) if receives(&network.id, Level::Published) => {
            Kind::PutNetwork(network.into())
        }
        RecordChange::PutLease(lease) if receives(&lease.network, Level::Full) => {
            Kind::PutLease(lease.into())
        }
        RecordChange::RemoveLease(lease) if receives(&lease.network, Level::Full) => {
            Kind::RemoveLease(lease.into())
        }
        _ => return None,
    };
    Some(kind)
}
