//! What this agent knows of the cluster: the records that a manager sent, brought up to date by its deltas.

use std::collections::BTreeMap;

use mesh_model::cluster::Cluster;
use mesh_model::{
    Backend, BackendId, Lease, Network, NetworkId, Node, NodeId, Prefix, Service, ServiceId, Vni,
};
use mesh_proto::convert::{InvalidMessage, parse, required};
use mesh_proto::v1;
use serde::{Deserialize, Serialize};

use crate::services::{ServiceRecords, UnknownService};

/// The records that concern this node, at one revision of the store. Kept on disk, so that an agent which restarts
/// while no manager answers goes on as before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The store's revision that this is the state of.
    pub revision: u64,
    /// What is true for the whole cluster.
    pub cluster: Cluster,
    /// Every member.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Every network. Which of them this node has a part in, its leases and endpoints tell.
    pub networks: BTreeMap<NetworkId, Network>,
    /// All leases of the networks in which this node has one.
    #[serde(with = "as_list")]
    pub leases: BTreeMap<(NetworkId, Prefix), Lease>,
    /// The services that concern this node, with all their backends.
    #[serde(default)]
    pub services: ServiceRecords,
    /// `HOST:PORT` of every manager.
    pub managers: Vec<String>,
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

/// Why a message of a manager was not taken: the session is over, and the next one begins with a snapshot.
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
    /// A backend of a service that no record is known of.
    #[error(transparent)]
    UnknownService(#[from] UnknownService),
    /// A change of a kind that this version does not know.
    #[error("the manager sent a change of an unknown kind")]
    UnknownChange,
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
        }
    }

    /// The view that a snapshot is.
    pub fn from_snapshot(snapshot: v1::Snapshot) -> Result<Self, ViewError> {
        let nodes = records::<_, Node>(snapshot.nodes)?;
        let networks = records::<_, Network>(snapshot.networks)?;
        let leases = records::<_, Lease>(snapshot.leases)?;
        let services = records::<_, Service>(snapshot.services)?;
        let backends = records::<_, Backend>(snapshot.backends)?;
        Ok(Self {
            revision: snapshot.revision,
            cluster: required("cluster", snapshot.cluster)?.try_into()?,
            nodes: nodes.into_iter().map(|node| (node.id.clone(), node)).collect(),
            networks: networks.into_iter().map(|network| (network.id.clone(), network)).collect(),
            leases: leases.into_iter().map(|lease| ((lease.network.clone(), lease.prefix), lease)).collect(),
            services: ServiceRecords::new(services, backends),
            managers: snapshot.managers,
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
            next.change(change)?;
        }
        Ok(next)
    }

    fn change(&mut self, change: v1::Change) -> Result<(), ViewError> {
        use v1::change::Kind;
        match change.kind.ok_or(ViewError::UnknownChange)? {
            Kind::PutNode(node) => {
                let node = Node::try_from(node)?;
                self.nodes.insert(node.id.clone(), node);
            }
            Kind::RemoveNode(id) => {
                self.nodes.remove(&parse::<NodeId>("remove_node", &id)?);
            }
            Kind::PutNetwork(network) => {
                let network = Network::try_from(network)?;
                self.networks.insert(network.id.clone(), network);
            }
            Kind::RemoveNetwork(id) => {
                let id = parse::<NetworkId>("remove_network", &id)?;
                self.networks.remove(&id);
                self.leases.retain(|(network, _), _| *network != id);
                self.services.remove_network(&id);
            }
            Kind::PutLease(lease) => {
                let lease = Lease::try_from(lease)?;
                self.leases.insert((lease.network.clone(), lease.prefix), lease);
            }
            Kind::RemoveLease(lease) => {
                let network = parse::<NetworkId>("network", &lease.network)?;
                let prefix = parse::<Prefix>("prefix", &lease.prefix)?;
                self.leases.remove(&(network, prefix));
            }
            Kind::PutService(service) => self.services.put_service(Service::try_from(service)?),
            Kind::RemoveService(id) => {
                self.services.remove_service(&parse::<ServiceId>("remove_service", &id)?);
            }
            Kind::PutBackend(backend) => self.services.put_backend(Backend::try_from(backend)?)?,
            Kind::RemoveBackend(number) => {
                // A number that is none is that of no backend here.
                if let Ok(id) = BackendId::try_from(number) {
                    self.services.remove_backend(id);
                }
            }
        }
        Ok(())
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

fn records<M, R: TryFrom<M, Error = InvalidMessage>>(messages: Vec<M>) -> Result<Vec<R>, InvalidMessage> {
    messages.into_iter().map(R::try_from).collect()
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
