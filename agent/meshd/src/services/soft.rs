//! What nobody stores about services: backends' health, and other nodes' endpoints for their names.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::{BackendId, Endpoint, EndpointId, NetworkId};
use mesh_proto::convert::{InvalidMessage, parse};
use mesh_proto::v1;
use serde::{Deserialize, Serialize};

use crate::dns::NamedEndpoint;
use crate::view::ClusterView;

/// The names of each network that other nodes' endpoints have. Saved, so that they survive a restart without a manager.
pub(crate) type Names = BTreeMap<NetworkId, BTreeMap<EndpointId, NamedEndpoint>>;

/// Soft state: it is told anew at the start of each session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Soft {
    /// What a manager said of other nodes' backends.
    told: BTreeMap<BackendId, bool>,
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
        let told = self.told.iter().filter(|(id, healthy)| !**healthy && !self.found.contains_key(id));
        let found = self.found.iter().filter(|(_, healthy)| **healthy == Some(false));
        told.map(|(id, _)| *id).chain(found.map(|(id, _)| *id)).collect()
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

    /// Takes what a manager says of backends.
    pub(crate) fn tell_health(&mut self, message: &v1::BackendHealth) -> Result<(), InvalidMessage> {
        let entry = |entry: &v1::BackendHealthEntry| {
            let id = BackendId::try_from(entry.backend)
                .map_err(|error| InvalidMessage { field: "backend", reason: error.to_string() })?;
            Ok((id, entry.healthy))
        };
        let put = message.put.iter().map(entry).collect::<Result<BTreeMap<_, _>, InvalidMessage>>()?;
        if message.all {
            self.told.clear();
        }
        self.told.extend(put);
        Ok(())
    }

    /// Takes what a manager says of other nodes' endpoints.
    pub(crate) fn tell_endpoints(&mut self, message: v1::Endpoints) -> Result<(), InvalidMessage> {
        let mut put = Vec::new();
        for endpoint in message.put {
            let network: NetworkId = parse("network_id", &endpoint.network_id)?;
            let id: EndpointId = parse("id", &endpoint.id)?;
            put.push((network, id, named(&endpoint)?));
        }
        let removed = message.removed.iter().map(|id| parse("removed", id));
        let removed = removed.collect::<Result<BTreeSet<EndpointId>, InvalidMessage>>()?;
        if message.all {
            for network in &message.networks {
                self.names.remove(&parse::<NetworkId>("networks", network)?);
            }
        }
        for names in self.names.values_mut() {
            names.retain(|id, _| !removed.contains(id));
        }
        for (network, id, endpoint) in put {
            self.names.entry(network).or_default().insert(id, endpoint);
        }
        self.names.retain(|_, names| !names.is_empty());
        self.names_changed = true;
        Ok(())
    }

    /// The names, if they have changed since they were last taken.
    pub(crate) fn take_changed_names(&mut self) -> Option<SavedNames> {
        std::mem::take(&mut self.names_changed).then(|| SavedNames { names: self.names.clone() })
    }

    /// The health of an endpoint of this node: of all services with a check that it is a backend of.
    pub fn health_of(&self, view: &ClusterView, endpoint: &Endpoint) -> &'static str {
        let checked = view.services.values().filter(|records| {
            records.service.network == endpoint.network && records.service.health.is_some()
        });
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

fn named(endpoint: &v1::Endpoint) -> Result<NamedEndpoint, InvalidMessage> {
    let aliases = endpoint.aliases.iter().map(|alias| parse("aliases", alias));
    Ok(NamedEndpoint {
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
