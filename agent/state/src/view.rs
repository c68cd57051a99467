//! What this agent knows of the cluster: the records that a manager sent, brought up to date by its
//! deltas.

use std::collections::BTreeMap;

use mesh_model::cluster::Cluster;
use mesh_model::{Backend, BackendId, Lease, Network, NetworkId, Node, NodeId, Prefix, Service, Vni};
use mesh_proto::convert::{InvalidMessage, required};
use mesh_proto::v1;
use serde::{Deserialize, Serialize};

use crate::service_records::ServiceRecords;
use crate::unreadable::Unreadable;

/// The records that concern this node, at one revision of the store. Kept on disk, so that an agent
/// which restarts while no manager answers continues with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The store's revision that this is the state of.
    pub revision: u64,
    /// What is true for the whole cluster.
    pub cluster: Cluster,
    /// Every member.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Every network. Leases and endpoints decide in which of them this node has a part.
    pub networks: BTreeMap<NetworkId, Network>,
    /// All leases of the networks in which this node has one.
    #[serde(with = "as_list")]
    pub leases: BTreeMap<(NetworkId, Prefix), Lease>,
    /// The services that concern this node, with all their backends.
    #[serde(default)]
    pub services: ServiceRecords,
    /// `HOST:PORT` of every manager.
    pub managers: Vec<String>,
    /// Records that could not be read, and are missing from the others.
    #[serde(skip)]
    pub unreadable: Unreadable,
}

/// Leases carry their own keys, and JSON has no composite ones.
mod as_list {
    use std::collections::BTreeMap;

    use mesh_model::{Lease, NetworkId, Prefix};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        leases: &BTreeMap<(NetworkId, Prefix), Lease>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(leases.values())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<(NetworkId, Prefix), Lease>, D::Error> {
        let leases = Vec::<Lease>::deserialize(deserializer)?;
        Ok(leases.into_iter().map(|lease| ((lease.network.clone(), lease.prefix), lease)).collect())
    }
}

/// Why a message of a manager was not taken: the session is over, and the next one begins with a
/// snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A field does not hold what it should.
    #[error("a record from the manager is not valid: {0}")]
    Invalid(#[from] InvalidMessage),
    /// A delta leads to a revision before the one we are at.
    #[error("a delta for revision {delta} came after revision {current}")]
    Backwards {
        /// The delta's revision.
        delta: u64,
        /// Ours.
        current: u64,
    },
}

impl ClusterView {
    /// What a new member knows before its first session.
    pub fn new(cluster: Cluster, node: Node, managers: Vec<String>) -> Self {
        Self {
            revision: 0,
            cluster,
            nodes: BTreeMap::from([(node.id.clone(), node)]),
            networks: BTreeMap::new(),
            leases: BTreeMap::new(),
            services: ServiceRecords::default(),
            managers,
            unreadable: Unreadable::default(),
        }
    }

    /// The view that a snapshot is. Records that cannot be read are skipped: one bad record must
    /// not keep all others away.
    pub fn from_snapshot(snapshot: v1::Snapshot) -> Result<Self, ViewError> {
        let mut skipped = Unreadable::default();
        let nodes = records::<_, Node>("node", |node| node.id.clone(), snapshot.nodes, &mut skipped);
        let networks =
            records::<_, Network>("network", |network| network.id.clone(), snapshot.networks, &mut skipped);
        let leases = records::<_, Lease>("lease", lease_name, snapshot.leases, &mut skipped);
        let services =
            records::<_, Service>("service", |service| service.id.clone(), snapshot.services, &mut skipped);
        let backends = records::<_, Backend>(
            "backend",
            |backend| backend.id.to_string(),
            snapshot.backends,
            &mut skipped,
        );
        Ok(Self {
            revision: snapshot.revision,
            cluster: required("cluster", snapshot.cluster)?.try_into()?,
            nodes: nodes.into_iter().map(|node| (node.id.clone(), node)).collect(),
            networks: networks.into_iter().map(|network| (network.id.clone(), network)).collect(),
            leases: leases.into_iter().map(|lease| ((lease.network.clone(), lease.prefix), lease)).collect(),
            services: ServiceRecords::new(services, backends),
            managers: snapshot.managers,
            unreadable: skipped,
        })
    }

    /// The view that a delta leads to. This one stays as it is, so that a bad delta spoils nothing.
    pub fn with_delta(&self, delta: v1::Delta) -> Result<Self, ViewError> {
        if delta.revision < self.revision {
            return Err(ViewError::Backwards { delta: delta.revision, current: self.revision });
        }
        let mut next = self.clone();
        next.revision = delta.revision;
        for change in delta.changes {
            match change.kind {
                Some(kind) => next.change(kind),
                None => drop(next.unreadable.read::<(), _>("change", "", Err("its kind is not known"))),
            }
        }
        Ok(next)
    }

    /// Makes one change. A record that cannot be read leaves what was known before; what cannot be
    /// read when it is to be removed could not be read when it came.
    fn change(&mut self, kind: v1::change::Kind) {
        use v1::change::Kind;
        match kind {
            Kind::PutNode(node) => {
                let id = node.id.clone();
                if let Some(node) = self.unreadable.read("node", &id, Node::try_from(node)) {
                    self.nodes.insert(node.id.clone(), node);
                }
            }
            Kind::RemoveNode(id) => {
                self.unreadable.forget("node", &id);
                if let Ok(id) = id.parse() {
                    self.nodes.remove(&id);
                }
            }
            Kind::PutNetwork(network) => {
                let id = network.id.clone();
                if let Some(network) = self.unreadable.read("network", &id, Network::try_from(network)) {
                    self.networks.insert(network.id.clone(), network);
                }
            }
            Kind::RemoveNetwork(id) => {
                self.unreadable.forget("network", &id);
                if let Ok(id) = id.parse::<NetworkId>() {
                    self.networks.remove(&id);
                    self.leases.retain(|(network, _), _| *network != id);
                    self.services.remove_network(&id);
                }
            }
            Kind::PutLease(lease) => {
                let name = lease_name(&lease);
                if let Some(lease) = self.unreadable.read("lease", &name, Lease::try_from(lease)) {
                    self.leases.insert((lease.network.clone(), lease.prefix), lease);
                }
            }
            Kind::RemoveLease(lease) => {
                self.unreadable.forget("lease", &lease_name(&lease));
                if let (Ok(network), Ok(prefix)) = (lease.network.parse(), lease.prefix.parse()) {
                    self.leases.remove(&(network, prefix));
                }
            }
            Kind::PutService(_) | Kind::RemoveService(_) | Kind::PutBackend(_) | Kind::RemoveBackend(_) => {
                self.change_services(kind);
            }
        }
    }

    fn change_services(&mut self, kind: v1::change::Kind) {
        use v1::change::Kind;
        match kind {
            Kind::PutService(service) => {
                let id = service.id.clone();
                if let Some(service) = self.unreadable.read("service", &id, Service::try_from(service)) {
                    self.services.put_service(service);
                }
            }
            Kind::RemoveService(id) => {
                self.unreadable.forget("service", &id);
                if let Ok(id) = id.parse() {
                    self.services.remove_service(&id);
                }
            }
            Kind::PutBackend(backend) => {
                let id = backend.id.to_string();
                let read = Backend::try_from(backend).map_err(|error| error.to_string());
                let put = read.and_then(|backend| {
                    self.services.put_backend(backend).map_err(|error| error.to_string())
                });
                self.unreadable.read("backend", &id, put);
            }
            Kind::RemoveBackend(number) => {
                self.unreadable.forget("backend", &number.to_string());
                // A number that is none is that of no backend here.
                if let Ok(id) = BackendId::try_from(number) {
                    self.services.remove_backend(id);
                }
            }
            _ => {}
        }
    }

    /// The network with this VNI, when it is known here.
    pub fn network_by_vni(&self, vni: Vni) -> Option<&Network> {
        self.networks.values().find(|network| network.vni == vni)
    }

    /// The networks in which a node has a lease.
    pub fn local_networks<'a>(&'a self, node: &NodeId) -> BTreeMap<&'a NetworkId, &'a Network> {
        let own = self.leases.values().filter(|lease| lease.node == *node);
        own.filter_map(|lease| self.networks.get_key_value(&lease.network)).collect()
    }

    /// The leases of one network, in order.
    pub fn leases_of<'a>(&'a self, network: &'a NetworkId) -> impl Iterator<Item = &'a Lease> {
        self.leases.values().filter(move |lease| lease.network == *network)
    }
}

fn records<M, R: TryFrom<M, Error = InvalidMessage>>(
    kind: &str,
    id: impl Fn(&M) -> String,
    messages: Vec<M>,
    skipped: &mut Unreadable,
) -> Vec<R> {
    let read = |message: M| {
        let id = id(&message);
        skipped.read(kind, &id, R::try_from(message))
    };
    messages.into_iter().filter_map(read).collect()
}

fn lease_name(lease: &v1::Lease) -> String {
    format!("{} of network {}", lease.prefix, lease.network)
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
