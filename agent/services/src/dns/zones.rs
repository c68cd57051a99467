//! The names of the networks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use mesh_dns::{Client, List, Zone, Zones};
use mesh_model::endpoint::NetnsRef;
use mesh_model::{Endpoint, EndpointMode, EndpointPhase, Network, NetworkId, NodeId, ServiceId};
use mesh_planner::services::{Facts, Records};
use mesh_state::{State, parts};

use crate::inputs::{Inputs, Scope};

/// The inputs of zones, except services.
pub(super) struct Networks {
    networks: BTreeMap<NetworkId, (Network, Vec<mesh_dns::Endpoint>)>,
    clients: Vec<Client>,
}

impl Networks {
    /// Returns the networks whose names are served on this node: those in which it has a lease.
    pub(super) fn of(state: &State, node: &NodeId) -> Self {
        let local = state.view.local_networks(node).into_values();
        let networks = local.map(|n| (n.id.clone(), (n.clone(), endpoints(state, n).collect())));
        Self { networks: networks.collect(), clients: clients(state) }
    }
}

/// Returns the containers of this node, each with its networks in the order of attachment.
fn clients(state: &State) -> Vec<Client> {
    let attached = state.endpoints.values().filter(|endpoint| endpoint.phase == EndpointPhase::Attached);
    let mut containers: BTreeMap<(u64, u64), Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in attached {
        containers.entry(identity(&endpoint.netns)).or_default().push(endpoint);
    }
    let client = |mut endpoints: Vec<&Endpoint>| {
        endpoints.sort_by_key(|endpoint| (endpoint.created_at, &endpoint.id));
        let mut networks: Vec<String> = Vec::new();
        for network in endpoints.iter().filter_map(|endpoint| state.view.networks.get(&endpoint.network)) {
            let name = network.name.to_string();
            if !networks.contains(&name) {
                networks.push(name);
            }
        }
        Client { addresses: endpoints.iter().flat_map(|endpoint| endpoint.addresses()).collect(), networks }
    };
    containers.into_values().map(client).collect()
}

/// Returns the identity of a container (see [`NetnsRef::is_same`]).
fn identity(netns: &NetnsRef) -> (u64, u64) {
    (netns.inode, netns.cookie)
}

fn endpoints(state: &State, network: &Network) -> impl Iterator<Item = mesh_dns::Endpoint> {
    let own = state
        .endpoints
        .values()
        .filter(|endpoint| endpoint.network == network.id && endpoint.phase == EndpointPhase::Attached)
        .map(|endpoint| mesh_dns::Endpoint {
            name: endpoint.name.to_string(),
            aliases: endpoint.aliases.iter().map(ToString::to_string).collect(),
            ipv4: endpoint.ipv4,
            ipv6: endpoint.ipv6,
            healthy: matches!(state.soft.health_of(&state.view, endpoint), "healthy" | "none"),
        });
    let others = state.soft.endpoints_of(&network.id).map(|endpoint| mesh_dns::Endpoint {
        name: endpoint.name.to_string(),
        aliases: endpoint.aliases.iter().map(ToString::to_string).collect(),
        ipv4: endpoint.ipv4,
        ipv6: endpoint.ipv6,
        healthy: !endpoint.unhealthy,
    });
    own.chain(others)
}

/// The services' names as last generated. Of ten thousand services, only those that may have
/// changed are generated again.
#[derive(Default)]
pub(super) struct Named {
    seen: Option<Inputs>,
    parts: Vec<Services>,
}

/// The names of one part of all services, by network.
type Services = BTreeMap<NetworkId, OfNetwork>;

/// The names of one network, each at the position of its id.
#[derive(Default, PartialEq, Eq)]
struct OfNetwork {
    ids: Vec<ServiceId>,
    names: Arc<Vec<mesh_dns::Service>>,
}

impl Named {
    /// Returns the current zones. Unchanged parts are the same `Arc` as before.
    pub(super) fn zones(&mut self, seen: Inputs, node: &NodeId, networks: Networks, before: &Zones) -> Zones {
        self.follow(seen, node);
        let zone = |(id, (network, endpoints)): (NetworkId, (Network, Vec<mesh_dns::Endpoint>))| {
            let name = network.name.to_string();
            let known = before.networks.get(&name);
            let endpoints = List::from(endpoints);
            let same = known.map(|known| &known.endpoints).filter(|known| **known == endpoints);
            let endpoints = same.cloned().unwrap_or(endpoints);
            let zone = zone(&network, endpoints, self.services(&id));
            let zone = known.filter(|known| ***known == zone).cloned().unwrap_or_else(|| Arc::new(zone));
            (name, zone)
        };
        let clients = Zones::clients_of(networks.clients);
        let clients =
            if *before.clients == clients { Arc::clone(&before.clients) } else { Arc::new(clients) };
        Zones { networks: networks.networks.into_iter().map(zone).collect(), clients }
    }

    fn services(&self, network: &NetworkId) -> List<mesh_dns::Service> {
        List::of_parts(self.parts.iter().filter_map(|part| part.get(network)).map(|of| Arc::clone(&of.names)))
    }

    fn follow(&mut self, seen: Inputs, node: &NodeId) {
        let parts = seen.services.parts();
        self.parts.resize_with(parts.len(), Services::default);
        let facts = seen.facts(node);
        let changed = match self.seen.as_ref().map_or(Scope::All, |before| seen.changed_since(before)) {
            Scope::All => None,
            Scope::Some(changed) => Some(changed),
        };
        let indexes: BTreeSet<usize> = match &changed {
            None => (0..parts.len()).collect(),
            Some(changed) => changed.iter().map(|id| parts::index(*id)).collect(),
        };
        for index in indexes {
            let former = &self.parts[index];
            let known = |network: &NetworkId, id: &ServiceId| {
                let stays = changed.as_ref().is_some_and(|changed| !changed.contains(id));
                let former = former.get(network).filter(|_| stays)?;
                Some(former.names[former.ids.binary_search(id).ok()?].clone())
            };
            let mut made = services(&parts[index], &facts, known);
            for (network, services) in &mut made {
                if let Some(known) = former.get(network).filter(|known| *known == services) {
                    services.names = Arc::clone(&known.names);
                }
            }
            self.parts[index] = made;
        }
        self.seen = Some(seen);
    }
}

fn zone(network: &Network, endpoints: List<mesh_dns::Endpoint>, services: List<mesh_dns::Service>) -> Zone {
    let subnets = network
        .subnets
        .iter()
        .filter_map(|subnet| IpNetwork::new(subnet.subnet.first(), subnet.subnet.len()).ok());
    Zone {
        gateways: network.subnets.iter().map(|subnet| subnet.gateway).collect(),
        subnets: subnets.collect(),
        internal: network.internal,
        endpoints,
        services,
    }
}

/// Returns the names of a part; `known` are the names that are unchanged.
fn services(
    part: &BTreeMap<ServiceId, Arc<Records>>,
    facts: &Facts<'_>,
    known: impl Fn(&NetworkId, &ServiceId) -> Option<mesh_dns::Service>,
) -> Services {
    let mut made: BTreeMap<NetworkId, (Vec<ServiceId>, Vec<mesh_dns::Service>)> = BTreeMap::new();
    for (id, records) in part {
        let network = &records.service.network;
        let (ids, names) = made.entry(network.clone()).or_default();
        ids.push(id.clone());
        names.push(known(network, id).unwrap_or_else(|| service(records, facts)));
    }
    made.into_iter()
        .map(|(network, (ids, names))| (network, OfNetwork { ids, names: Arc::new(names) }))
        .collect()
}

fn service(records: &Records, facts: &Facts<'_>) -> mesh_dns::Service {
    let service = &records.service;
    let usable = records.usable(facts);
    let backends = usable.iter().filter_map(|id| records.backends.get(id));
    mesh_dns::Service {
        name: service.name.to_string(),
        aliases: service.aliases.iter().map(ToString::to_string).collect(),
        mode: match service.endpoint_mode {
            EndpointMode::Vip => mesh_dns::EndpointMode::Vip { ipv4: service.vip, ipv6: service.vip6 },
            EndpointMode::Dnsrr => mesh_dns::EndpointMode::RoundRobin,
        },
        // Balancing by addresses uses the same set of usable backends.
        backends: backends
            .map(|backend| mesh_dns::Backend { ipv4: backend.ipv4, ipv6: backend.ipv6, healthy: true })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_model::NodeState;
    use mesh_state::fake::{agent_with, backend, node, numbered_node, service, view};
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Change {
        Put(u32, u32),
        Remove(u32),
        Health(u32),
        Down(u8),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            3 => (0u32..30, 0u32..4).prop_map(|(n, backends)| Change::Put(n, backends)),
            1 => (0u32..30).prop_map(Change::Remove),
            2 => (1u32..90).prop_map(Change::Health),
            1 => (1u8..4).prop_map(Change::Down),
        ]
    }

    fn apply_change(state: &mut State, change: Change) {
        let services = &mut state.view.services;
        match change {
            Change::Put(n, backends) => {
                services.put_service(service(n));
                for b in 0..3 {
                    services.remove_backend((1 + n * 3 + b).try_into().unwrap());
                }
                for b in 0..backends.min(3) {
                    services.put_backend(backend(&service(n), 1 + n * 3 + b)).unwrap();
                }
            }
            Change::Remove(n) => services.remove_service(&service(n).id),
            Change::Health(b) => {
                let healthy = !state.soft.healthy().contains(&b.try_into().unwrap());
                let entry = mesh_proto::v1::BackendHealthEntry { backend: b, healthy, ..Default::default() };
                let put = vec![entry];
                let health = mesh_proto::v1::BackendHealth { put, all: false, unheard: Vec::new() };
                state.soft.receive_health(&state.view, &health);
            }
            Change::Down(n) => {
                let id = numbered_node(n).id;
                if state.node_states.remove(&id).is_none() {
                    state.node_states.insert(id, NodeState::Down);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Unchanged names are the same allocation, so that they need not be compared again.
        #[test]
        fn incrementally_updated_names_equal_newly_generated_ones(
            changes in prop::collection::vec(change(), 1..40),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut begin = view();
            begin.nodes.extend((2..4).map(|n| (numbered_node(n).id, numbered_node(n))));
            let agent = agent_with(dir.path(), begin);
            let (mut named, mut zones) = (Named::default(), Zones::default());
            for change in changes {
                let (seen, networks, other) = agent.update(|state| {
                    apply_change(state, change);
                    let networks = || Networks::of(state, &node().id);
                    (Inputs::of(state, &node().id), networks(), networks())
                });
                let former = std::mem::take(&mut zones);
                let anew = Named::default().zones(seen.clone(), &node().id, other, &Zones::default());
                zones = named.zones(seen, &node().id, networks, &former);
                prop_assert_eq!(&zones, &anew);
                let (Some(before), Some(now)) = (former.networks.get("app"), zones.networks.get("app")) else { continue };
                prop_assert_eq!(Arc::ptr_eq(before, now), before == now);
                for part in now.services.parts() {
                    let same = before.services.parts().iter().find(|before| *before == part);
                    prop_assert!(same.is_none_or(|same| Arc::ptr_eq(same, part)));
                }
            }
        }
    }
}
