//! What nodes report about their endpoints: kept in memory, since it is the nodes' own.
//!
//! Names of endpoints are the nodes' to choose, so that attaching works without any manager. Of those that choose the same
//! name in one network, the first to be reported has it; the others' agents are told that they are refused. Those that were
//! attached while no manager could say so stay reachable by id, and get the name when the first gives it up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_model::{EndpointId, Name, NetworkId, NodeId};
use mesh_proto::v1;
use tokio::sync::{broadcast, watch};
use tracing::warn;

use crate::limits;

/// What a node said that changed something.
#[derive(Debug, Clone)]
pub(crate) struct EndpointNews {
    pub(crate) node: NodeId,
    pub(crate) put: Vec<v1::Endpoint>,
    /// As they were.
    pub(crate) removed: Vec<v1::Endpoint>,
}

/// The endpoints of all nodes that have reported since this manager began.
#[derive(Debug)]
pub(crate) struct Endpoints {
    registry: Mutex<Registry>,
    /// Counts the reports of all that a node has.
    reports: watch::Sender<u64>,
    news: broadcast::Sender<Arc<EndpointNews>>,
}

#[derive(Debug, Default)]
struct Registry {
    nodes: BTreeMap<NodeId, BTreeMap<EndpointId, v1::Endpoint>>,
    owners: BTreeMap<EndpointId, BTreeSet<NodeId>>,
    /// Who has a name in a network, in the order in which they were reported.
    names: BTreeMap<(String, String), Vec<(NodeId, EndpointId)>>,
    /// The names that more than one has.
    contested: BTreeSet<(String, String)>,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self {
            registry: Mutex::default(),
            reports: watch::Sender::default(),
            news: broadcast::Sender::new(limits::FEED_BACKLOG),
        }
    }
}

impl Endpoints {
    /// A node told all that it has.
    pub(crate) fn replace(&self, node: &NodeId, endpoints: Vec<v1::Endpoint>) {
        let mut registry = self.lock();
        let told: BTreeSet<&str> = endpoints.iter().map(|endpoint| endpoint.id.as_str()).collect();
        let known = registry.nodes.entry(node.clone()).or_default();
        let gone: Vec<EndpointId> = known.keys().filter(|id| !told.contains(id.as_str())).cloned().collect();
        self.change(&mut registry, node, endpoints, &gone);
        drop(registry);
        self.reports.send_modify(|count| *count += 1);
    }

    /// A node told what has changed.
    pub(crate) fn update(&self, node: &NodeId, put: Vec<v1::Endpoint>, removed: &[String]) {
        let removed: Vec<EndpointId> = removed.iter().filter_map(|id| id.parse().ok()).collect();
        self.change(&mut self.lock(), node, put, &removed);
    }

    fn change(&self, registry: &mut Registry, node: &NodeId, put: Vec<v1::Endpoint>, removed: &[EndpointId]) {
        let mut news = EndpointNews { node: node.clone(), put: Vec::new(), removed: Vec::new() };
        for mut endpoint in put {
            let Some(id) = checked(&endpoint) else {
                warn!(%node, id = endpoint.id, "left out an endpoint that makes no sense");
                continue;
            };
            // A node speaks for itself only.
            endpoint.node_id = node.to_string();
            if let Some((other, twin)) = registry.same_name(node, &id, &endpoint) {
                warn!(
                    name = endpoint.name, network = endpoint.network_id, first = %other, first_id = %twin, second = %node, second_id = %id,
                    "two endpoints of one network have the same name"
                );
            }
            if registry.put(node, id, endpoint.clone()) {
                news.put.push(endpoint);
            }
        }
        news.removed.extend(removed.iter().filter_map(|id| registry.remove(node, id)));
        self.tell(news);
    }

    /// Under the lock, so that a subscriber's list and its first news fit. Nobody listening is no error.
    fn tell(&self, news: EndpointNews) {
        if !(news.put.is_empty() && news.removed.is_empty()) {
            let _ = self.news.send(Arc::new(news));
        }
    }

    /// Wakes after each report of all that a node has.
    pub(crate) fn reports(&self) -> watch::Receiver<u64> {
        self.reports.subscribe()
    }

    /// Every change from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<EndpointNews>> {
        self.news.subscribe()
    }

    /// Forgets those of nodes that are no members any more.
    pub(crate) fn retain(&self, members: &BTreeSet<NodeId>) {
        let mut registry = self.lock();
        let gone: Vec<NodeId> =
            registry.nodes.keys().filter(|node| !members.contains(*node)).cloned().collect();
        for node in gone {
            let ids: Vec<EndpointId> =
                registry.nodes.get(&node).into_iter().flat_map(BTreeMap::keys).cloned().collect();
            self.change(&mut registry, &node, Vec::new(), &ids);
            registry.nodes.remove(&node);
        }
    }

    /// Those of a network, or all, in order of node and id.
    pub(crate) fn list(&self, network: Option<&NetworkId>) -> Vec<v1::Endpoint> {
        let registry = self.lock();
        let all = registry.nodes.values().flat_map(BTreeMap::values);
        all.filter(|endpoint| network.is_none_or(|id| endpoint.network_id == id.as_str())).cloned().collect()
    }

    /// The addresses of a network that each node uses.
    pub(crate) fn addresses(&self, network: &NetworkId) -> BTreeMap<NodeId, BTreeSet<IpAddr>> {
        let registry = self.lock();
        let addresses = |endpoints: &BTreeMap<EndpointId, v1::Endpoint>| {
            let those = endpoints.values().filter(|endpoint| endpoint.network_id == network.as_str());
            let texts = those.flat_map(|endpoint| [&endpoint.ipv4, &endpoint.ipv6]);
            texts.filter_map(|text| text.parse().ok()).collect()
        };
        registry.nodes.iter().map(|(node, endpoints)| (node.clone(), addresses(endpoints))).collect()
    }

    /// Those with this id, usually one.
    pub(crate) fn with_id(&self, id: &EndpointId) -> Vec<v1::Endpoint> {
        let registry = self.lock();
        let nodes = registry.owners.get(id).into_iter().flatten();
        nodes.filter_map(|node| registry.get(node, id)).cloned().collect()
    }

    /// Those of a network with this name, usually one.
    pub(crate) fn with_name(&self, network: &NetworkId, name: &Name) -> Vec<v1::Endpoint> {
        let registry = self.lock();
        let keys = registry.names.get(&(network.to_string(), name.to_string())).into_iter().flatten();
        keys.filter_map(|(node, id)| registry.get(node, id)).cloned().collect()
    }

    /// The node's endpoints whose names others had first, in order of their names.
    pub(crate) fn refused(&self, node: &NodeId) -> Vec<v1::RefusedEndpoint> {
        let registry = self.lock();
        let mut refused = Vec::new();
        for name in &registry.contested {
            let Some([(first_node, first), others @ ..]) = registry.names.get(name).map(Vec::as_slice) else {
                continue;
            };
            let Some(first) = registry.get(first_node, first) else { continue };
            let why = format!(
                "endpoint {} exists on network {} ({} on node {})",
                first.name, first.network_name, first.id, first.node_name
            );
            let own = others.iter().filter(|(other, _)| other == node && other != first_node);
            refused.extend(
                own.map(|(_, id)| v1::RefusedEndpoint { endpoint: id.to_string(), why: why.clone() }),
            );
        }
        refused
    }

    /// Whether the node has the endpoint.
    pub(crate) fn has(&self, node: &NodeId, id: &EndpointId) -> bool {
        self.lock().get(node, id).is_some()
    }

    /// Whether the node has reported since this manager began.
    pub(crate) fn has_heard(&self, node: &NodeId) -> bool {
        self.lock().nodes.contains_key(node)
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // Each change is made whole under the lock.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn get(&self, node: &NodeId, id: &EndpointId) -> Option<&v1::Endpoint> {
        self.nodes.get(node)?.get(id)
    }

    /// False when it was known exactly so.
    fn put(&mut self, node: &NodeId, id: EndpointId, endpoint: v1::Endpoint) -> bool {
        let known = self.get(node, &id);
        if known == Some(&endpoint) {
            return false;
        }
        let name = name_key(&endpoint);
        // One that keeps its name keeps its turn.
        if known.is_none_or(|known| name_key(known) != name) {
            self.remove(node, &id);
            let named = self.names.entry(name.clone()).or_default();
            named.push((node.clone(), id.clone()));
            if named.len() > 1 {
                self.contested.insert(name);
            }
        }
        self.owners.entry(id.clone()).or_default().insert(node.clone());
        self.nodes.entry(node.clone()).or_default().insert(id, endpoint);
        true
    }

    fn remove(&mut self, node: &NodeId, id: &EndpointId) -> Option<v1::Endpoint> {
        let endpoint = self.nodes.get_mut(node)?.remove(id)?;
        if let Some(nodes) = self.owners.get_mut(id) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.owners.remove(id);
            }
        }
        let name = name_key(&endpoint);
        if let Some(named) = self.names.get_mut(&name) {
            named.retain(|(other_node, other)| (other_node, other) != (node, id));
            if named.len() < 2 {
                self.contested.remove(&name);
            }
            if named.is_empty() {
                self.names.remove(&name);
            }
        }
        Some(endpoint)
    }

    /// Another endpoint of the same network with the same name.
    fn same_name(
        &self,
        node: &NodeId,
        id: &EndpointId,
        endpoint: &v1::Endpoint,
    ) -> Option<&(NodeId, EndpointId)> {
        let named = self.names.get(&name_key(endpoint)).into_iter().flatten();
        let mut others = named.filter(|(other_node, other)| (other_node, other) != (node, id));
        others.next()
    }
}

fn name_key(endpoint: &v1::Endpoint) -> (String, String) {
    (endpoint.network_id.clone(), endpoint.name.clone())
}

/// The id of an endpoint whose fields are what they should be.
fn checked(endpoint: &v1::Endpoint) -> Option<EndpointId> {
    let is_address = |text: &str| text.is_empty() || text.parse::<IpAddr>().is_ok();
    endpoint.name.parse::<Name>().ok()?;
    endpoint.network_id.parse::<NetworkId>().ok()?;
    (is_address(&endpoint.ipv4) && is_address(&endpoint.ipv6)).then_some(())?;
    endpoint.id.parse().ok()
}
