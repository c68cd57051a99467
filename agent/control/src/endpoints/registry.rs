//! The endpoints with their indexes. The cost of a change does not depend on their number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use mesh_ipam::Family;
use mesh_model::{EndpointId, Name, NetworkId, NodeId};
use mesh_proto::v1;
use sha2::{Digest, Sha256};

use super::refused::Refused;
use crate::limits;
use crate::reports::{CheckedEndpoint, Checker, MAX_ENDPOINTS, nameless};

/// A network and a name in it, ignoring case.
type NameKey = (NetworkId, Name);

#[derive(Debug, Default)]
pub(super) struct Registry {
    nodes: BTreeMap<NodeId, BTreeMap<EndpointId, CheckedEndpoint>>,
    owners: BTreeMap<EndpointId, BTreeSet<NodeId>>,
    /// The endpoints with each name in a network, in the order of their reports.
    names: BTreeMap<NameKey, Vec<(NodeId, EndpointId)>>,
    /// The names that several endpoints have.
    contested: BTreeSet<NameKey>,
    /// The endpoint of each address.
    addresses: BTreeMap<(NetworkId, IpAddr), (NodeId, EndpointId)>,
    /// Addresses that nodes have stopped using, and when.
    released: BTreeMap<(NodeId, NetworkId), BTreeMap<IpAddr, Instant>>,
    refused: BTreeMap<NodeId, Refused>,
}

impl Registry {
    pub(super) fn get(&self, node: &NodeId, id: &EndpointId) -> Option<&CheckedEndpoint> {
        self.nodes.get(node)?.get(id)
    }

    /// Returns the ids of a node's endpoints.
    pub(super) fn of_node(&self, node: &NodeId) -> impl Iterator<Item = &EndpointId> {
        self.nodes.get(node).into_iter().flat_map(BTreeMap::keys)
    }

    pub(super) fn owners(&self, id: &EndpointId) -> impl Iterator<Item = &NodeId> {
        self.owners.get(id).into_iter().flatten()
    }

    pub(super) fn named(&self, network: &NetworkId, name: &Name) -> impl Iterator<Item = &CheckedEndpoint> {
        let holders = self.names.get(&(network.clone(), name.folded())).into_iter().flatten();
        holders.filter_map(|(node, id)| self.get(node, id))
    }

    pub(super) fn all(&self, network: Option<&NetworkId>) -> impl Iterator<Item = &CheckedEndpoint> {
        let all = self.nodes.values().flat_map(BTreeMap::values);
        all.filter(move |endpoint| network.is_none_or(|id| endpoint.network == *id))
    }

    pub(super) fn addresses(&self, network: &NetworkId) -> BTreeMap<NodeId, BTreeSet<IpAddr>> {
        let addresses = |endpoints: &BTreeMap<EndpointId, CheckedEndpoint>| {
            let those = endpoints.values().filter(|endpoint| endpoint.network == *network);
            those.flat_map(|endpoint| endpoint.addresses.iter().copied()).collect()
        };
        self.nodes.iter().map(|(node, endpoints)| (node.clone(), addresses(endpoints))).collect()
    }

    pub(super) fn used(&mut self, node: &NodeId, network: &NetworkId, family: Family) -> u128 {
        let mut used: BTreeSet<IpAddr> = BTreeSet::new();
        if let Some(released) = self.released.get_mut(&(node.clone(), network.clone())) {
            released.retain(|_, at| at.elapsed() < limits::RESTING);
            used.extend(released.keys());
        }
        let own = self.nodes.get(node).into_iter().flat_map(BTreeMap::values);
        used.extend(own.filter(|one| one.network == *network).flat_map(|one| &one.addresses));
        used.iter().fold(0, |count, address| count + u128::from(Family::of(*address) == family))
    }

    /// Records that the node has reported, even if it has no endpoints.
    pub(super) fn begin(&mut self, node: &NodeId) {
        self.nodes.entry(node.clone()).or_default();
        self.refused.remove(node);
    }

    pub(super) fn has_report(&self, node: &NodeId) -> bool {
        self.nodes.contains_key(node)
    }

    pub(super) fn nodes_except(&self, members: &BTreeSet<NodeId>) -> Vec<NodeId> {
        self.nodes.keys().filter(|node| !members.contains(*node)).cloned().collect()
    }

    /// Deletes a node whose endpoints were removed.
    pub(super) fn forget(&mut self, node: &NodeId) {
        self.nodes.remove(node);
        self.refused.remove(node);
        self.released.retain(|(of, _), _| of != node);
    }

    pub(super) fn forget_refused(&mut self, node: &NodeId, ids: &[String]) {
        let Some(refused) = self.refused.get_mut(node) else { return };
        for id in ids.iter().filter_map(|id| id.parse().ok()) {
            refused.remove(&id);
        }
    }

    /// Returns the nodes that have, or request, endpoints in a network, or in any.
    pub(super) fn reporters(&self, network: Option<&NetworkId>) -> Vec<NodeId> {
        let has = |node: &&NodeId| {
            let refused = self.refused.get(*node).is_some_and(|one| one.reports(network).next().is_some());
            let known = self.nodes.get(*node).into_iter().flat_map(BTreeMap::values);
            refused || known.into_iter().any(|one| network.is_none_or(|id| one.network == *id))
        };
        self.nodes.keys().filter(has).cloned().collect()
    }

    /// Returns a node's reports about a network, or all.
    pub(super) fn reports(&self, node: &NodeId, network: Option<&NetworkId>) -> Vec<v1::Endpoint> {
        let known = self.nodes.get(node).into_iter().flat_map(BTreeMap::values);
        let known = known.filter(|one| network.is_none_or(|id| one.network == *id)).map(|one| &one.listed);
        let refused = self.refused.get(node).into_iter().flat_map(|refused| refused.reports(network));
        known.chain(refused).cloned().collect()
    }

    /// Parses a report, and checks it against the node's leases and its other endpoints.
    pub(super) fn check(
        &self,
        checker: Checker<'_>,
        reported: &v1::Endpoint,
    ) -> Result<CheckedEndpoint, String> {
        let endpoint = checker.endpoint(reported)?;
        let (node, id, name) = (checker.node, &endpoint.id, &endpoint.name);
        let own = self.nodes.get(node);
        let is_new = own.is_none_or(|own| !own.contains_key(id));
        if is_new && own.is_some_and(|own| own.len() >= MAX_ENDPOINTS) {
            return Err(format!("endpoint {name} ({id}): a node can have at most {MAX_ENDPOINTS} endpoints"));
        }
        let holders = self.names.get(&(endpoint.network.clone(), name.folded())).into_iter().flatten();
        if let Some((_, twin)) = holders.into_iter().find(|(of, other)| of == node && other != id) {
            return Err(format!("endpoint {name} ({id}): endpoint {twin} of this node has the same name"));
        }
        for address in &endpoint.addresses {
            let owner = self.addresses.get(&(endpoint.network.clone(), *address));
            if let Some((_, twin)) = owner.filter(|(of, other)| of == node && other != id) {
                return Err(format!(
                    "endpoint {name} ({id}): endpoint {twin} of this node has address {address}"
                ));
            }
        }
        Ok(endpoint)
    }

    /// Stores an endpoint. Adds the records that other nodes now receive to `changed`.
    pub(super) fn put(
        &mut self,
        node: &NodeId,
        mut endpoint: CheckedEndpoint,
        changed: &mut Vec<v1::Endpoint>,
    ) {
        if let Some(refused) = self.refused.get_mut(node) {
            refused.remove(&endpoint.id);
        }
        let (id, key) = (endpoint.id.clone(), name_key(&endpoint));
        let known = self.get(node, &id);
        endpoint.visible.id = match known {
            Some(known) => known.visible.id.clone(),
            None if self.twin(node, &id).is_some() => id_of_twin(node, &id),
            None => id.to_string(),
        };
        if known == Some(&endpoint) {
            return;
        }
        // An endpoint that keeps its name keeps its position.
        if known.is_none_or(|known| name_key(known) != key) {
            self.remove(node, &id, changed);
            let holders = self.names.entry(key.clone()).or_default();
            holders.push((node.clone(), id.clone()));
            if holders.len() > 1 {
                self.contested.insert(key);
            }
        } else {
            self.release(node, &id);
        }
        for address in &endpoint.addresses {
            // If two nodes claim an address, only one has the lease; the other is checked again.
            self.addresses.insert((endpoint.network.clone(), *address), (node.clone(), id.clone()));
        }
        self.owners.entry(id.clone()).or_default().insert(node.clone());
        self.nodes.entry(node.clone()).or_default().insert(id.clone(), endpoint);
        changed.extend(self.get(node, &id).map(|endpoint| self.visible(endpoint)));
    }

    /// Removes an endpoint. Adds the records of others that change by this to `changed`.
    pub(super) fn remove(
        &mut self,
        node: &NodeId,
        id: &EndpointId,
        changed: &mut Vec<v1::Endpoint>,
    ) -> Option<v1::Endpoint> {
        self.release(node, id);
        let endpoint = self.nodes.get_mut(node)?.remove(id)?;
        if let Some(nodes) = self.owners.get_mut(id) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.owners.remove(id);
            }
        }
        let key = name_key(&endpoint);
        if let Some(holders) = self.names.get_mut(&key) {
            let was_first = holders.first().is_some_and(|(of, first)| (of, first) == (node, id));
            holders.retain(|(of, other)| (of, other) != (node, id));
            let next = holders.first().filter(|_| was_first).cloned();
            if holders.len() < 2 {
                self.contested.remove(&key);
            }
            if holders.is_empty() {
                self.names.remove(&key);
            }
            if let Some((of, other)) = next
                && let Some(next) = self.get(&of, &other)
            {
                changed.push(self.visible(next));
            }
        }
        Some(endpoint.visible)
    }

    /// Returns another node that has an endpoint with the same id.
    pub(super) fn twin(&self, node: &NodeId, id: &EndpointId) -> Option<&NodeId> {
        self.owners(id).find(|owner| *owner != node)
    }

    /// Releases the addresses of an endpoint. They rest before they count as unused in the node's
    /// quota.
    fn release(&mut self, node: &NodeId, id: &EndpointId) {
        let Some(endpoint) = self.nodes.get(node).and_then(|own| own.get(id)) else { return };
        let released = self.released.entry((node.clone(), endpoint.network.clone())).or_default();
        for address in &endpoint.addresses {
            let key = (endpoint.network.clone(), *address);
            if self.addresses.get(&key).is_some_and(|(of, owner)| (of, owner) == (node, id)) {
                self.addresses.remove(&key);
                released.insert(*address, Instant::now());
            }
        }
    }

    /// Returns an endpoint as other nodes receive it: without a name that another one had first.
    pub(super) fn visible(&self, endpoint: &CheckedEndpoint) -> v1::Endpoint {
        let mut message = endpoint.visible.clone();
        let first = self.names.get(&name_key(endpoint)).and_then(|holders| holders.first());
        if first.is_some_and(|(node, id)| node.as_str() != message.node_id || *id != endpoint.id) {
            nameless(&mut message);
        }
        message
    }

    /// Refuses a report. Returns its id, if it has one.
    pub(super) fn refuse(
        &mut self,
        node: &NodeId,
        endpoint: v1::Endpoint,
        why: String,
    ) -> Option<EndpointId> {
        self.refused.entry(node.clone()).or_default().put(endpoint, why)
    }

    pub(super) fn all_refused(&self, node: &NodeId) -> Vec<v1::RefusedEndpoint> {
        let impossible = self.refused.get(node).into_iter().flat_map(Refused::messages);
        impossible.chain(self.without_name(node)).collect()
    }

    pub(super) fn impossible(&self, node: &NodeId) -> Option<(usize, String)> {
        self.refused.get(node)?.summary()
    }

    /// Returns the node's endpoints whose names others had first, in order of their names.
    fn without_name(&self, node: &NodeId) -> Vec<v1::RefusedEndpoint> {
        let mut refused = Vec::new();
        for key in &self.contested {
            let Some([(first_node, first), others @ ..]) = self.names.get(key).map(Vec::as_slice) else {
                continue;
            };
            let Some(first) = self.get(first_node, first).map(|first| &first.listed) else { continue };
            let why = format!(
                "endpoint {} exists on network {} ({} on node {})",
                first.name, first.network_name, first.id, first.node_name
            );
            let own = others.iter().filter(|(other, _)| other == node && other != first_node);
            refused.extend(own.map(|(_, id)| v1::RefusedEndpoint {
                endpoint: id.to_string(),
                why: why.clone(),
                name_taken: true,
            }));
        }
        refused
    }
}

/// Returns a replacement id for an endpoint whose id another node's endpoint had first. Other nodes
/// index endpoints by id, and neither must replace the other.
fn id_of_twin(node: &NodeId, id: &EndpointId) -> String {
    let digest = Sha256::new().chain_update(node.as_str()).chain_update(id.as_str()).finalize();
    hex::encode(&digest[..12])
}

fn name_key(endpoint: &CheckedEndpoint) -> NameKey {
    (endpoint.network.clone(), endpoint.name.folded())
}
