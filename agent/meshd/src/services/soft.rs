//! What nobody stores about services: backends' health, and other nodes' endpoints for their names.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::{BackendId, Endpoint, EndpointId, NetworkId, NodeId};
use mesh_proto::convert::{InvalidMessage, parse};
use mesh_proto::v1;
use serde::{Deserialize, Serialize};

use crate::dns::NamedEndpoint;
use crate::unreadable::Unreadable;
use crate::view::ClusterView;

/// The names of each network that other nodes' endpoints have. Saved, so that they survive a restart without a manager.
pub(crate) type Names = BTreeMap<NetworkId, BTreeMap<EndpointId, NamedEndpoint>>;

/// Soft state: it is told anew at the start of each session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Soft {
    /// The backends of other nodes that do not pass, as a manager said.
    told: BTreeSet<BackendId>,
    /// What this node found out about its own; nothing yet about some.
    found: BTreeMap<BackendId, Option<bool>>,
    /// Other nodes' endpoints.
    pub(crate) names: Names,
    /// Whether the disk has other names.
    names_changed: bool,
}

/// A backend's health, as people see it.
const HEALTHY: &str = "healthy";
const UNHEALTHY: &str = "unhealthy";
const UNKNOWN: &str = "unknown";
const NONE: &str = "none";

impl Soft {
    /// Begins with the names that were saved.
    pub(crate) fn new(names: Names) -> Self {
        Self { names, ..Self::default() }
    }

    /// The backends that are known not to pass. What this node found out itself goes before what it was told.
    pub fn unhealthy(&self) -> BTreeSet<BackendId> {
        let told = self.told.iter().filter(|id| !self.found.contains_key(id));
        let found = self.found.iter().filter(|(_, healthy)| **healthy == Some(false));
        told.copied().chain(found.map(|(id, _)| *id)).collect()
    }

    /// What there is to tell a manager of this node's backends.
    pub fn found(&self) -> BTreeMap<BackendId, bool> {
        self.found.iter().filter_map(|(id, healthy)| Some((*id, (*healthy)?))).collect()
    }

    /// These backends are checked here from now on, and no others. Whether that changes anything.
    pub(crate) fn set_checked(&mut self, backends: &BTreeSet<BackendId>) -> bool {
        let before = self.found.len();
        self.found.retain(|id, _| backends.contains(id));
        let removed = self.found.len() != before;
        for id in backends {
            self.found.entry(*id).or_insert(None);
        }
        removed
    }

    /// A check of one of this node's backends has another result than before.
    pub(crate) fn set_found(&mut self, backend: BackendId, healthy: bool) {
        if let Some(found) = self.found.get_mut(&backend) {
            *found = Some(healthy);
        }
    }

    /// Takes what a manager says of backends. One that has begun a moment ago names the nodes that it has not heard yet:
    /// what is known of those stays.
    pub(crate) fn tell_health(&mut self, view: &ClusterView, message: &v1::BackendHealth) {
        // A number that is none is that of no backend.
        let entries = message.put.iter();
        let put: BTreeMap<BackendId, bool> =
            entries.filter_map(|entry| Some((entry.backend.try_into().ok()?, entry.healthy))).collect();
        let unheard = nodes(&message.unheard);
        if message.all {
            let stays = |id: &BackendId| {
                let backend = view.services.backend(*id);
                backend.is_some_and(|(_, backend)| unheard.contains(&backend.node))
            };
            self.told.retain(stays);
        }
        for (id, healthy) in put {
            if healthy {
                self.told.remove(&id);
            } else {
                self.told.insert(id);
            }
        }
    }

    /// Takes what a manager says of other nodes' endpoints; of nodes that it has not heard yet, as with health. An endpoint
    /// that cannot be read is skipped: its names resolve to nothing.
    pub(crate) fn tell_endpoints(&mut self, message: &v1::Endpoints, unreadable: &mut Unreadable) {
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
    }

    /// The names, if they have changed since they were last taken.
    pub(crate) fn take_changed_names(&mut self) -> Option<SavedNames> {
        std::mem::take(&mut self.names_changed).then(|| SavedNames { names: self.names.clone() })
    }

    /// They are not on the disk after all.
    pub(crate) fn touch_names(&mut self) {
        self.names_changed = true;
    }

    /// The health of an endpoint of this node: of all services with a check that it is a backend of.
    pub fn health_of(&self, view: &ClusterView, endpoint: &Endpoint) -> &'static str {
        let checked = view.services.checked().filter(|records| records.service.network == endpoint.network);
        let backends = checked.flat_map(|records| records.backends.values());
        let of_endpoint = backends.filter(|backend| backend.endpoint == endpoint.id);
        let mut health = NONE;
        for backend in of_endpoint {
            health = match (self.found.get(&backend.id).copied().flatten(), health) {
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
        unhealthy: endpoint.health == UNHEALTHY,
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
pub(crate) struct SavedNames {
    pub(crate) names: Names,
}

#[cfg(test)]
mod tests {
    use super::*;

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
        soft.tell_endpoints(&all(&[1, 2], first, &[]), &mut Unreadable::default());
        assert_eq!(names(&soft), ["c1", "c2", "c3"]);
        soft.tell_endpoints(&all(&[1], vec![endpoint(4, 1, 1)], &[2]), &mut Unreadable::default());
        assert_eq!(names(&soft), ["c2", "c4", "c3"]);
        let change =
            v1::Endpoints { removed: vec![id(2)], put: vec![endpoint(5, 2, 1)], ..v1::Endpoints::default() };
        soft.tell_endpoints(&change, &mut Unreadable::default());
        assert_eq!(names(&soft), ["c4", "c3", "c5"]);
        assert!(soft.take_changed_names().is_some() && soft.take_changed_names().is_none());
    }

    #[test]
    fn an_endpoint_with_an_alias_that_is_no_name_keeps_no_other_away() {
        let (mut soft, mut unreadable) = (Soft::default(), Unreadable::default());
        let bad = v1::Endpoint { aliases: vec!["*".into()], ..endpoint(2, 1, 2) };
        let put = vec![endpoint(1, 1, 1), bad, endpoint(3, 1, 3)];
        soft.tell_endpoints(&all(&[1], put, &[]), &mut unreadable);
        assert_eq!(names(&soft), ["c1", "c3"]);
        assert_eq!(unreadable.lines().len(), 1, "{:?}", unreadable.lines());
        let gone = v1::Endpoints { removed: vec![id(2)], ..v1::Endpoints::default() };
        soft.tell_endpoints(&gone, &mut unreadable);
        assert!(unreadable.lines().is_empty());
    }

    fn view() -> ClusterView {
        let cluster = v1::Cluster {
            id: "c".into(),
            data_path_port: 4789,
            default_addr_pools: vec!["10.64.0.0/10".into()],
            default_addr_pool_mask_length: 20,
            ipv6_pool: "fd00:1:2::/48".into(),
            created_at: "2026-01-01T00:00:00Z".into(),
            dsr: false,
        };
        let snapshot = v1::Snapshot { cluster: Some(cluster), ..v1::Snapshot::default() };
        ClusterView::from_snapshot(snapshot).unwrap()
    }

    #[test]
    fn what_this_node_found_out_goes_before_what_it_was_told() {
        let backend = |n: u32| BackendId::try_from(n).unwrap();
        let view = view();
        let told = |put: &[(u32, bool)], all| v1::BackendHealth {
            put: put
                .iter()
                .map(|(backend, healthy)| v1::BackendHealthEntry { backend: *backend, healthy: *healthy })
                .collect(),
            all,
            unheard: Vec::new(),
        };
        let mut soft = Soft::default();
        soft.tell_health(&view, &told(&[(1, false), (2, false), (3, true)], true));
        assert_eq!(soft.unhealthy(), [backend(1), backend(2)].into());
        soft.set_checked(&[backend(2)].into());
        assert_eq!(soft.unhealthy(), [backend(1)].into());
        assert!(soft.found().is_empty());
        soft.set_found(backend(2), false);
        assert_eq!(
            (soft.unhealthy(), soft.found()),
            ([backend(1), backend(2)].into(), [(backend(2), false)].into())
        );
        soft.tell_health(&view, &told(&[(4, false)], true));
        assert_eq!(soft.unhealthy(), [backend(2), backend(4)].into());
    }
}
