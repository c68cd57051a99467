//! What names the networks have.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use mesh_dns::{Zone, Zones};
use mesh_model::{EndpointMode, EndpointPhase, Name, Network, NetworkId, NodeId};
use mesh_planner::services::{Facts, Records};
use serde::{Deserialize, Serialize};

use crate::agent::State;

/// Another node's endpoint, as far as names go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedEndpoint {
    /// The node that it is on.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Further names.
    pub aliases: Vec<Name>,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Whether it is known not to pass the checks of a service that it is a backend of.
    pub unhealthy: bool,
}

/// The networks whose names are served here: those in which this node has a lease. What did not change stays the same `Arc`.
pub(super) fn zones(state: &State, facts: &Facts<'_>, before: &Zones) -> Zones {
    let local = state.view.local_networks(facts.node);
    let mut services: BTreeMap<&NetworkId, Vec<&Records>> = BTreeMap::new();
    for records in state.view.services.values() {
        services.entry(&records.service.network).or_default().push(records);
    }
    let zone = |network: &Network| {
        let name = network.name.to_string();
        let of_network = services.get(&network.id).map(Vec::as_slice).unwrap_or_default();
        let zone = zone(state, facts, network, of_network);
        let zone = match before.networks.get(&name) {
            Some(known) if **known == zone => Arc::clone(known),
            _ => Arc::new(zone),
        };
        (name, zone)
    };
    Zones { networks: local.into_values().map(zone).collect() }
}

fn zone(state: &State, facts: &Facts<'_>, network: &Network, services: &[&Records]) -> Zone {
    let subnets = network
        .subnets
        .iter()
        .filter_map(|subnet| IpNetwork::new(subnet.subnet.first(), subnet.subnet.len()).ok());
    let own = state
        .endpoints
        .values()
        .filter(|endpoint| endpoint.network == network.id && endpoint.phase == EndpointPhase::Attached)
        .map(|endpoint| mesh_dns::Endpoint {
            name: endpoint.name.to_string(),
            aliases: endpoint.aliases.iter().map(ToString::to_string).collect(),
            ipv4: endpoint.ipv4,
            ipv6: endpoint.ipv6,
            healthy: state.soft.health_of(&state.view, endpoint) != "unhealthy",
        });
    let others = state.soft.names.get(&network.id).into_iter().flat_map(BTreeMap::values);
    let others = others.map(|endpoint| mesh_dns::Endpoint {
        name: endpoint.name.to_string(),
        aliases: endpoint.aliases.iter().map(ToString::to_string).collect(),
        ipv4: endpoint.ipv4,
        ipv6: endpoint.ipv6,
        healthy: !endpoint.unhealthy,
    });
    Zone {
        gateways: network.subnets.iter().map(|subnet| subnet.gateway).collect(),
        subnets: subnets.collect(),
        internal: network.internal,
        endpoints: own.chain(others).collect(),
        services: services.iter().map(|records| service(records, facts)).collect(),
    }
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
        // Usable is what balances by addresses go by, too.
        backends: backends
            .map(|backend| mesh_dns::Backend { ipv4: backend.ipv4, ipv6: backend.ipv6, healthy: true })
            .collect(),
    }
}
