//! Soft state of services: backends' health, and the names of other nodes' endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::{BackendId, Endpoint, EndpointId, Finding, NetworkId, NodeId};
use mesh_proto::convert::{InvalidMessage, parse};
use mesh_proto::v1;
use serde::{Deserialize, Serialize};

use crate::named_endpoint::NamedEndpoint;
use crate::unreadable::Unreadable;
use crate::view::ClusterView;

/// The names of each network that other nodes' endpoints have. Saved, so that they survive a
/// restart without a manager.
pub(crate) type Names = BTreeMap<NetworkId, BTreeMap<EndpointId, NamedEndpoint>>;

/// Soft state: a manager sends it at the start of each session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Soft {
    /// Whether backends of other nodes are healthy, as a manager reported.
    reported: BTreeMap<BackendId, bool>,
    /// The results of this node's own checks.
    found: BTreeMap<BackendId, Finding>,
    /// All that pass, of both. Shared with readers, since there may be tens of thousands.
    healthy: Arc<BTreeSet<BackendId>>,
    /// Whether the disk has other results.
    health_changed: bool,
    /// Other nodes' endpoints.
    pub(crate) names: Names,
    /// Whether the disk has other names.
    names_changed: bool,
    /// Number of changes so far: of what passes, of this node's results, of names.
    versions: (u64, u64, u64),
}

/// A backend's health, as people see it.
const HEALTHY: &str = "healthy";
const UNHEALTHY: &str = "unhealthy";
const UNKNOWN: &str = "unknown";
const NONE: &str = "none";

impl Soft {
    /// Begins with the names and the health that were saved.
    pub(crate) fn new(names: Names, health: SavedHealth) -> Self {
        let healthy = health.backends.iter().filter(|(_, healthy)| **healthy).map(|(id, _)| *id).collect();
        Self { names, reported: health.backends, healthy: Arc::new(healthy), ..Self::default() }
    }

    /// Returns the healthy backends. This node's own results take precedence over reports.
    pub fn healthy(&self) -> Arc<BTreeSet<BackendId>> {
        Arc::clone(&self.healthy)
    }

    /// Other nodes' endpoints in a network.
    pub fn endpoints_of(&self, network: &NetworkId) -> impl Iterator<Item = &NamedEndpoint> {
        self.names.get(network).into_iter().flat_map(BTreeMap::values)
    }

    /// The results of this node's checks, as managers get them.
    pub fn found(&self) -> &BTreeMap<BackendId, Finding> {
        &self.found
    }

    pub(crate) fn health_version(&self) -> u64 {
        self.versions.0
    }

    pub(crate) fn findings_version(&self) -> u64 {
        self.versions.1
    }

    pub(crate) fn names_version(&self) -> u64 {
        self.versions.2
    }

    /// Sets which backends this node checks. A backend that it has checked before, perhaps before a
    /// restart, keeps its result.
    pub fn set_checked(&mut self, backends: &BTreeSet<BackendId>) {
        let gone: Vec<BackendId> = self.found.keys().filter(|id| !backends.contains(id)).copied().collect();
        for id in &gone {
            self.found.remove(id);
            self.reported.remove(id);
            self.settle(*id);
        }
        for id in backends {
            let healthy = self.reported.get(id).copied();
            self.found.entry(*id).or_insert(Finding { healthy, error: String::new() });
        }
        self.versions.1 += u64::from(!gone.is_empty());
    }

    /// Takes the result of a check of one of this node's backends.
    pub fn set_found(&mut self, backend: BackendId, finding: Finding) {
        if let Some(found) = self.found.get_mut(&backend) {
            self.versions.1 += 1;
            let before = std::mem::replace(found, finding);
            if before.healthy != found.healthy {
                self.settle(backend);
            }
        }
    }

    /// Updates the set of healthy backends.
    fn settle(&mut self, id: BackendId) {
        let known = match self.found.get(&id) {
            Some(finding) => finding.healthy,
            None => self.reported.get(&id).copied(),
        };
        let reconciliations = known == Some(true);
        if reconciliations != self.healthy.contains(&id) {
            let healthy = Arc::make_mut(&mut self.healthy);
            if reconciliations {
                healthy.insert(id)
            } else {
                healthy.remove(&id)
            };
        }
        self.health_changed = true;
    }

    /// The health of all backends, if it has changed since it was last taken.
    pub fn take_changed_health(&mut self) -> Option<SavedHealth> {
        std::mem::take(&mut self.health_changed).then(|| {
            let mut backends = self.reported.clone();
            backends.retain(|id, _| !self.found.contains_key(id));
            backends.extend(self.found.iter().filter_map(|(id, finding)| Some((*id, finding.healthy?))));
            SavedHealth { backends }
        })
    }

    /// The health is not on the disk after all.
    pub fn touch_health(&mut self) {
        self.health_changed = true;
    }

    /// Stores a manager's report about backends. A manager that has just started names the nodes
    /// whose reports it lacks: their earlier findings stay.
    pub fn receive_health(&mut self, view: &ClusterView, message: &v1::BackendHealth) {
        // A number that is none is that of no backend.
        let entry = |entry: &v1::BackendHealthEntry| {
            Some((BackendId::try_from(entry.backend).ok()?, (!entry.unknown).then_some(entry.healthy)))
        };
        let put: BTreeMap<BackendId, Option<bool>> = message.put.iter().filter_map(entry).collect();
        let unheard = nodes(&message.unheard);
        let mut touched: BTreeSet<BackendId> = put.keys().copied().collect();
        if message.all {
            let void = |id: &BackendId| {
                let backend = view.services.backend(*id);
                backend.is_none_or(|(_, backend)| !unheard.contains(&backend.node))
            };
            let void: Vec<BackendId> = self.reported.keys().filter(|id| void(id)).copied().collect();
            for id in void {
                self.reported.remove(&id);
                touched.insert(id);
            }
        }
        for (id, healthy) in put {
            match healthy {
                Some(healthy) => drop(self.reported.insert(id, healthy)),
                None => drop(self.reported.remove(&id)),
            }
        }
        for id in touched {
            self.settle(id);
        }
        self.versions.0 += 1;
    }

    /// Stores a manager's report about other nodes' endpoints. Those of nodes whose reports it
    /// lacks stay, as with health. An endpoint that cannot be read is skipped: its names do not
    /// resolve.
    pub fn receive_endpoints(&mut self, message: &v1::Endpoints, unreadable: &mut Unreadable) {
        let read =
            |endpoint: &v1::Endpoint| -> Result<(NetworkId, EndpointId, NamedEndpoint), InvalidMessage> {
                Ok((parse("network_id", &endpoint.network_id)?, parse("id", &endpoint.id)?, named(endpoint)?))
            };
        let endpoints = message.put.iter();
        let put: Vec<_> = endpoints
            .filter_map(|endpoint| unreadable.read("endpoint", &endpoint.id, read(endpoint)))
            .collect();
        for id in &message.removed {
            unreadable.forget("endpoint", id);
        }
        let removed: BTreeSet<EndpointId> = message.removed.iter().filter_map(|id| id.parse().ok()).collect();
        let unheard = nodes(&message.unheard);
        let networks: BTreeSet<NetworkId> =
            message.networks.iter().filter_map(|network| network.parse().ok()).collect();
        for (_, names) in self.names.iter_mut().filter(|(id, _)| message.all && networks.contains(id)) {
            names.retain(|_, endpoint| unheard.contains(&endpoint.node));
        }
        for names in self.names.values_mut() {
            names.retain(|id, _| !removed.contains(id));
        }
        for (network, id, endpoint) in put {
            self.names.entry(network).or_default().insert(id, endpoint);
        }
        self.names.retain(|_, names| !names.is_empty());
        self.names_changed = true;
        self.versions.2 += 1;
    }

    /// The names, if they have changed since they were last taken.
    pub fn take_changed_names(&mut self) -> Option<SavedNames> {
        std::mem::take(&mut self.names_changed).then(|| SavedNames { names: self.names.clone() })
    }

    /// They are not on the disk after all.
    pub fn touch_names(&mut self) {
        self.names_changed = true;
    }

    /// The health of an endpoint of this node: of all services with a check that it is a backend
    /// of.
    pub fn health_of(&self, view: &ClusterView, endpoint: &Endpoint) -> &'static str {
        let checked = view.services.checked().filter(|records| records.service.network == endpoint.network);
        let backends = checked.flat_map(|records| records.backends.values());
        let of_endpoint = backends.filter(|backend| backend.endpoint == endpoint.id);
        let mut health = NONE;
        for backend in of_endpoint {
            let found = self.found.get(&backend.id).and_then(|finding| finding.healthy);
            health = match (found, health) {
                (Some(false), _) | (_, UNHEALTHY) => UNHEALTHY,
                (None, _) | (_, UNKNOWN) => UNKNOWN,
                (Some(true), _) => HEALTHY,
            };
        }
        health
    }
}

fn nodes(ids: &[String]) -> BTreeSet<NodeId> {
    ids.iter().filter_map(|id| id.parse().ok()).collect()
}

fn named(endpoint: &v1::Endpoint) -> Result<NamedEndpoint, InvalidMessage> {
    let aliases = endpoint.aliases.iter().map(|alias| parse("aliases", alias));
    Ok(NamedEndpoint {
        node: parse("node_id", &endpoint.node_id)?,
        name: parse("name", &endpoint.name)?,
        aliases: aliases.collect::<Result<_, _>>()?,
        ipv4: optional("ipv4", &endpoint.ipv4)?,
        ipv6: optional("ipv6", &endpoint.ipv6)?,
        unhealthy: !matches!(endpoint.health.as_str(), HEALTHY | NONE),
    })
}

fn optional<T: std::str::FromStr<Err: std::fmt::Display>>(
    field: &'static str,
    text: &str,
) -> Result<Option<T>, InvalidMessage> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

/// What is on the disk of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SavedNames {
    pub(crate) names: Names,
}

/// What is on the disk of backends' health: after a restart, those that passed get traffic without
/// a break.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SavedHealth {
    backends: BTreeMap<BackendId, bool>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn id(n: u32) -> String {
        format!("{n:024x}")
    }

    fn endpoint(n: u32, network: u32, node: u32) -> v1::Endpoint {
        v1::Endpoint {
            id: id(n),
            name: format!("c{n}"),
            network_id: id(network),
            node_id: id(node),
            ipv4: format!("10.0.0.{n}"),
            health: "none".into(),
            ..v1::Endpoint::default()
        }
    }

    fn all(networks: &[u32], put: Vec<v1::Endpoint>, unheard: &[u32]) -> v1::Endpoints {
        let ids = |numbers: &[u32]| numbers.iter().copied().map(id).collect();
        v1::Endpoints {
            put,
            all: true,
            networks: ids(networks),
            unheard: ids(unheard),
            ..v1::Endpoints::default()
        }
    }

    fn names(soft: &Soft) -> Vec<String> {
        soft.names.values().flat_map(BTreeMap::values).map(|endpoint| endpoint.name.to_string()).collect()
    }

    #[test]
    fn all_of_a_network_replaces_what_was_known_of_it_but_not_what_is_on_nodes_that_were_not_heard() {
        let mut soft = Soft::default();
        let first = vec![endpoint(1, 1, 1), endpoint(2, 1, 2), endpoint(3, 2, 1)];
        soft.receive_endpoints(&all(&[1, 2], first, &[]), &mut Unreadable::default());
        assert_eq!(names(&soft), ["c1", "c2", "c3"]);
        soft.receive_endpoints(&all(&[1], vec![endpoint(4, 1, 1)], &[2]), &mut Unreadable::default());
        assert_eq!(names(&soft), ["c2", "c4", "c3"]);
        let change =
            v1::Endpoints { removed: vec![id(2)], put: vec![endpoint(5, 2, 1)], ..v1::Endpoints::default() };
        soft.receive_endpoints(&change, &mut Unreadable::default());
        assert_eq!(names(&soft), ["c4", "c3", "c5"]);
        assert!(soft.take_changed_names().is_some() && soft.take_changed_names().is_none());
    }

    #[test]
    fn an_endpoint_with_an_alias_that_is_no_name_keeps_no_other_away() {
        let (mut soft, mut unreadable) = (Soft::default(), Unreadable::default());
        let bad = v1::Endpoint { aliases: vec!["*".into()], ..endpoint(2, 1, 2) };
        let put = vec![endpoint(1, 1, 1), bad, endpoint(3, 1, 3)];
        soft.receive_endpoints(&all(&[1], put, &[]), &mut unreadable);
        assert_eq!(names(&soft), ["c1", "c3"]);
        assert_eq!(unreadable.lines().len(), 1, "{:?}", unreadable.lines());
        let gone = v1::Endpoints { removed: vec![id(2)], ..v1::Endpoints::default() };
        soft.receive_endpoints(&gone, &mut unreadable);
        assert!(unreadable.lines().is_empty());
    }

    fn view() -> ClusterView {
        ClusterView::new(fake::cluster(), fake::node(), vec![])
    }

    fn told(put: &[(u32, bool)], all: bool) -> v1::BackendHealth {
        let entry = |(backend, healthy): &(u32, bool)| v1::BackendHealthEntry {
            backend: *backend,
            healthy: *healthy,
            ..v1::BackendHealthEntry::default()
        };
        v1::BackendHealth { put: put.iter().map(entry).collect(), all, unheard: Vec::new() }
    }

    fn backend(n: u32) -> BackendId {
        BackendId::try_from(n).unwrap()
    }

    fn found(healthy: bool) -> Finding {
        Finding { healthy: Some(healthy), error: String::new() }
    }

    #[test]
    fn what_this_node_found_out_goes_before_what_it_was_told() {
        let view = view();
        let mut soft = Soft::default();
        soft.receive_health(&view, &told(&[(1, true), (2, true), (3, false)], true));
        assert_eq!(*soft.healthy(), [backend(1), backend(2)].into());
        soft.set_checked(&[backend(2), backend(4)].into());
        assert_eq!(*soft.healthy(), [backend(1), backend(2)].into());
        assert_eq!(soft.found()[&backend(4)], Finding::default());
        soft.set_found(backend(2), found(false));
        soft.set_found(backend(4), found(true));
        soft.receive_health(&view, &told(&[(2, true), (3, true), (4, false)], true));
        assert_eq!(*soft.healthy(), [backend(3), backend(4)].into());
        soft.receive_health(&view, &told(&[], true));
        assert_eq!(*soft.healthy(), [backend(4)].into());
    }

    #[test]
    fn what_passed_before_a_restart_passes_after_it_until_a_check_fails() {
        let mut soft = Soft::default();
        soft.set_checked(&[backend(1)].into());
        soft.set_found(backend(1), found(true));
        soft.receive_health(&view(), &told(&[(2, true), (3, false)], false));
        let saved = soft.take_changed_health().unwrap();
        assert!(soft.take_changed_health().is_none());
        let mut soft = Soft::new(Names::new(), saved);
        assert_eq!(*soft.healthy(), [backend(1), backend(2)].into());
        soft.set_checked(&[backend(1)].into());
        assert_eq!(soft.found()[&backend(1)], found(true));
        soft.set_found(backend(1), found(false));
        assert_eq!(*soft.healthy(), [backend(2)].into());
    }
}
