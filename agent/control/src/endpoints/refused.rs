//! Reports of endpoints that their node cannot have, kept to be checked again.

use std::collections::BTreeMap;

use mesh_model::{EndpointId, NetworkId};
use mesh_proto::v1;
use tracing::warn;

use crate::reports::shown;

/// Maximum number of refused endpoints of one node that are kept.
const MAX_REFUSED: usize = 256;

/// The refused endpoints of one node, by id.
#[derive(Debug, Default)]
pub(super) struct Refused {
    endpoints: BTreeMap<EndpointId, (v1::Endpoint, String)>,
    /// Why an endpoint without a valid id was refused.
    without_id: Option<String>,
}

impl Refused {
    /// Records a refused endpoint and the reason. Returns its id, if it has one.
    pub(super) fn put(&mut self, endpoint: v1::Endpoint, why: String) -> Option<EndpointId> {
        let Ok(id) = endpoint.id.parse::<EndpointId>() else {
            self.without_id.get_or_insert(why);
            return None;
        };
        let is_known = self.endpoints.get(&id).is_some_and(|(_, known)| *known == why);
        if !is_known && (self.endpoints.len() < MAX_REFUSED || self.endpoints.contains_key(&id)) {
            warn!(reason = ?why, "an endpoint that a node reports is refused");
            self.endpoints.insert(id.clone(), (bounded(endpoint), why));
        }
        Some(id)
    }

    pub(super) fn remove(&mut self, id: &EndpointId) {
        self.endpoints.remove(id);
    }

    /// Returns the reports about a network, or all.
    pub(super) fn reports(&self, network: Option<&NetworkId>) -> impl Iterator<Item = &v1::Endpoint> {
        let all = self.endpoints.values().map(|(endpoint, _)| endpoint);
        all.filter(move |endpoint| network.is_none_or(|id| endpoint.network_id == id.as_str()))
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = v1::RefusedEndpoint> {
        let without_id = self.without_id.iter().map(|why| (String::new(), why.clone()));
        let with_id = self.endpoints.iter().map(|(id, (_, why))| (id.to_string(), why.clone()));
        with_id.chain(without_id).map(|(endpoint, why)| v1::RefusedEndpoint {
            endpoint,
            why,
            name_taken: false,
        })
    }

    /// Returns the number of refused endpoints, and the reason of the first.
    pub(super) fn summary(&self) -> Option<(usize, String)> {
        let mut reasons = self.endpoints.values().map(|(_, why)| why).chain(&self.without_id);
        let first = reasons.next()?.clone();
        Some((1 + reasons.count(), first))
    }
}

/// Shortens a report that is too long to be kept. It stays refused for that reason.
fn bounded(endpoint: v1::Endpoint) -> v1::Endpoint {
    const MAX: usize = 16 << 10;
    let dns = endpoint.dns.iter().flat_map(|dns| [&dns.nameservers, &dns.search, &dns.options]);
    let lists = dns.chain([&endpoint.aliases]).flatten();
    let texts = [
        &endpoint.name,
        &endpoint.network_id,
        &endpoint.network_name,
        &endpoint.node_id,
        &endpoint.node_name,
        &endpoint.ipv4,
        &endpoint.ipv6,
        &endpoint.mac,
        &endpoint.ifname,
        &endpoint.service,
        &endpoint.health,
        &endpoint.created_at,
    ];
    let length: usize = texts.into_iter().chain(lists).map(String::len).sum();
    if length <= MAX {
        return endpoint;
    }
    v1::Endpoint { name: shown(&endpoint.name), id: endpoint.id, ..Default::default() }
}
