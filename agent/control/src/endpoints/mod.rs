//! The nodes' reports of their endpoints. They are kept in memory, since they belong to the nodes.
//!
//! Nodes choose their endpoints' names, so that attaching works without any manager. If several
//! choose the same name in one network, the first reported endpoint has it. The agents of the
//! others receive a refusal, and other nodes do not resolve the name to them. Endpoints that were
//! attached while no manager was reachable stay reachable by id, and get the name when the first
//! releases it.
//!
//! An endpoint that its node cannot have is not published. It is checked again when the leases of
//! its network change.

mod refused;
mod registry;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_ipam::Family;
use mesh_model::{EndpointId, Name, NetworkId, NodeId};
use mesh_proto::v1;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{broadcast, watch};

use self::registry::Registry;
use crate::limits;
use crate::reports::Checker;

/// Changes from a node's report.
#[derive(Debug, Clone)]
pub(crate) struct EndpointNews {
    pub(crate) node: NodeId,
    pub(crate) put: Vec<v1::Endpoint>,
    /// Their previous records.
    pub(crate) removed: Vec<v1::Endpoint>,
}

/// Other consequences of a report, besides what other nodes receive.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// The node's endpoints that were removed.
    pub(crate) gone: Vec<EndpointId>,
    /// Names that other nodes do not resolve, by endpoint, with the reason; `None` if that has
    /// ended.
    pub(crate) withheld: Vec<(EndpointId, Option<String>)>,
}

/// The endpoints of all nodes that have reported since this manager started.
#[derive(Debug)]
pub(crate) struct Endpoints {
    registry: Mutex<Registry>,
    /// Counts the complete reports.
    reports: watch::Sender<u64>,
    news: broadcast::Sender<Arc<EndpointNews>>,
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
    /// Handles a complete report of a node.
    pub(crate) fn replace(&self, checker: Checker<'_>, endpoints: Vec<v1::Endpoint>) -> Taken {
        let mut registry = self.lock();
        let reported: BTreeSet<&str> = endpoints.iter().map(|endpoint| endpoint.id.as_str()).collect();
        let known = registry.of_node(checker.node);
        let gone: Vec<EndpointId> = known.filter(|id| !reported.contains(id.as_str())).cloned().collect();
        registry.begin(checker.node);
        let taken = self.change(&mut registry, checker, endpoints, gone);
        drop(registry);
        self.reports.send_modify(|count| *count += 1);
        taken
    }

    /// Handles a report of changes from a node.
    pub(crate) fn update(&self, checker: Checker<'_>, put: Vec<v1::Endpoint>, removed: &[String]) -> Taken {
        let mut registry = self.lock();
        registry.forget_refused(checker.node, removed);
        let removed = removed.iter().filter_map(|id| id.parse().ok()).collect();
        self.change(&mut registry, checker, put, removed)
    }

    /// Checks all reports about a network again, or all reports: its leases have changed.
    pub(crate) fn check_again(&self, checker: Checker<'_>, network: Option<&NetworkId>) -> Taken {
        let mut registry = self.lock();
        let again = registry.reports(checker.node, network);
        if again.is_empty() {
            Taken::default()
        } else {
            self.change(&mut registry, checker, again, Vec::new())
        }
    }

    /// Returns the nodes that have endpoints in a network or reported some; all such nodes without
    /// a network.
    pub(crate) fn reporters(&self, network: Option<&NetworkId>) -> Vec<NodeId> {
        self.lock().reporters(network)
    }

    fn change(
        &self,
        registry: &mut Registry,
        checker: Checker<'_>,
        put: Vec<v1::Endpoint>,
        removed: Vec<EndpointId>,
    ) -> Taken {
        let node = checker.node;
        let mut taken = Taken::default();
        let mut news = EndpointNews { node: node.clone(), put: Vec::new(), removed: Vec::new() };
        // Remove first, so that new endpoints may have names or addresses of removed ones.
        for id in removed {
            news.removed.extend(registry.remove(node, &id, &mut news.put));
            taken.withheld.push((id.clone(), None));
            taken.gone.push(id);
        }
        for reported in put {
            match registry.check(checker, &reported) {
                Ok(endpoint) => {
                    let twin = registry.twin(node, &endpoint.id);
                    let twin =
                        twin.map(|other| format!("endpoint {}: node {other} has the same id", endpoint.name));
                    taken.withheld.push((endpoint.id.clone(), endpoint.withheld.clone().or(twin)));
                    registry.put(node, endpoint, &mut news.put);
                }
                Err(why) => {
                    if let Some(id) = registry.refuse(node, reported, why) {
                        let before = registry.remove(node, &id, &mut news.put);
                        if before.is_some() {
                            taken.gone.push(id);
                        }
                        news.removed.extend(before);
                    }
                }
            }
        }
        self.publish(registry, news);
        taken
    }

    /// Called under the lock, so that a subscriber's list and its first news are consistent. It is
    /// no error if there are no subscribers.
    fn publish(&self, _registry: &Registry, news: EndpointNews) {
        // Another node's endpoint may have got the name that this one released.
        let (own, others): (Vec<_>, Vec<_>) =
            news.put.into_iter().partition(|endpoint| endpoint.node_id == news.node.as_str());
        for endpoint in others {
            if let Ok(node) = endpoint.node_id.parse() {
                let put = vec![endpoint];
                let _ = self.news.send(Arc::new(EndpointNews { node, put, removed: Vec::new() }));
            }
        }
        if !(own.is_empty() && news.removed.is_empty()) {
            let _ = self.news.send(Arc::new(EndpointNews { put: own, ..news }));
        }
    }

    /// Returns a receiver that wakes after each complete report.
    pub(crate) fn reports(&self) -> watch::Receiver<u64> {
        self.reports.subscribe()
    }

    /// Returns a receiver of every change from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<EndpointNews>> {
        self.news.subscribe()
    }

    /// Deletes the endpoints of removed nodes.
    pub(crate) fn retain(&self, members: &BTreeSet<NodeId>) {
        let mut registry = self.lock();
        for node in registry.nodes_except(members) {
            let mut news = EndpointNews { node: node.clone(), put: Vec::new(), removed: Vec::new() };
            let ids: Vec<EndpointId> = registry.of_node(&node).cloned().collect();
            for id in ids {
                news.removed.extend(registry.remove(&node, &id, &mut news.put));
            }
            registry.forget(&node);
            self.publish(&registry, news);
        }
    }

    /// Returns the endpoints of a network, or all, in order of node and id.
    pub(crate) fn list(&self, network: Option<&NetworkId>) -> Vec<v1::Endpoint> {
        self.lock().all(network).map(|endpoint| endpoint.listed.clone()).collect()
    }

    /// Returns the endpoints of a network as other nodes receive them, in order of node and id.
    pub(crate) fn visible(&self, network: &NetworkId) -> Vec<v1::Endpoint> {
        let registry = self.lock();
        registry.all(Some(network)).map(|endpoint| registry.visible(endpoint)).collect()
    }

    /// Returns the addresses of a network that each node uses.
    pub(crate) fn addresses(&self, network: &NetworkId) -> BTreeMap<NodeId, BTreeSet<IpAddr>> {
        self.lock().addresses(network)
    }

    /// Returns how many addresses of a network the node uses, or has used recently.
    pub(crate) fn used(&self, node: &NodeId, network: &NetworkId, family: Family) -> u128 {
        self.lock().used(node, network, family)
    }

    /// Returns the endpoints with this id, usually one.
    pub(crate) fn with_id(&self, id: &EndpointId) -> Vec<v1::Endpoint> {
        let registry = self.lock();
        registry.owners(id).filter_map(|node| registry.get(node, id)).map(|one| one.listed.clone()).collect()
    }

    /// Returns the endpoints of a network with this name, usually one. If several differ in case,
    /// returns the one with exactly this spelling.
    pub(crate) fn with_name(&self, network: &NetworkId, name: &Name) -> Vec<v1::Endpoint> {
        let registry = self.lock();
        let named: Vec<v1::Endpoint> =
            registry.named(network, name).map(|endpoint| endpoint.listed.clone()).collect();
        let exact: Vec<_> = named.iter().filter(|one| one.name == name.as_str()).cloned().collect();
        if exact.is_empty() { named } else { exact }
    }

    /// Returns the node's refused endpoints with the reasons.
    pub(crate) fn refused(&self, node: &NodeId) -> Vec<v1::RefusedEndpoint> {
        self.lock().all_refused(node)
    }

    /// Returns the number of endpoints that the node cannot have, and the reason of the first.
    pub(crate) fn impossible(&self, node: &NodeId) -> Option<(usize, String)> {
        self.lock().impossible(node)
    }

    /// Whether the node has the endpoint.
    pub(crate) fn has(&self, node: &NodeId, id: &EndpointId) -> bool {
        self.lock().get(node, id).is_some()
    }

    /// Returns whether the node has reported since this manager started.
    pub(crate) fn has_report(&self, node: &NodeId) -> bool {
        self.lock().has_report(node)
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock()
    }
}
