//! Endpoints as managers and users see them.

use mesh_model::{Endpoint, EndpointPhase};
use mesh_proto::v1;

use crate::state::State;

/// Returns an endpoint as managers and users receive it.
pub fn endpoint_message(state: &State, endpoint: &Endpoint) -> v1::Endpoint {
    let text = |value: Option<String>| value.unwrap_or_default();
    v1::Endpoint {
        id: endpoint.id.to_string(),
        name: endpoint.name.to_string(),
        network_id: endpoint.network.to_string(),
        network_name: text(
            state.view.networks.get(&endpoint.network).map(|network| network.name.to_string()),
        ),
        node_id: endpoint.node.to_string(),
        node_name: text(state.view.nodes.get(&endpoint.node).map(|node| node.name.to_string())),
        ipv4: text(endpoint.ipv4.map(|ip| ip.to_string())),
        ipv6: text(endpoint.ipv6.map(|ip| ip.to_string())),
        mac: endpoint.mac.to_string(),
        ifname: endpoint.ifname.to_string(),
        service: text(endpoint.service.as_ref().map(ToString::to_string)),
        aliases: endpoint.aliases.iter().map(ToString::to_string).collect(),
        health: state.soft.health_of(&state.view, endpoint).to_owned(),
        created_at: endpoint.created_at.to_string(),
        dns: client_settings(state, endpoint),
        owner: endpoint.owner.as_ref().map(Into::into),
        warnings: Vec::new(),
    }
}

/// What an endpoint's container should write into its resolv.conf: one server, which answers for
/// all of the container's networks. There is no search domain, since the server answers bare names;
/// with one, a resolver would look for a bare name that does not exist in the public domain of the
/// network's name.
fn client_settings(state: &State, endpoint: &Endpoint) -> Option<v1::Dns> {
    let server = server_of(state, endpoint);
    let network = state.view.networks.get(&server.network)?;
    let gateways = || network.subnets.iter().map(|subnet| subnet.gateway);
    let gateway = gateways().find(|gateway| server.addresses().any(|own| own.is_ipv4() == gateway.is_ipv4()));
    Some(v1::Dns {
        nameservers: gateway.or_else(|| gateways().next()).iter().map(ToString::to_string).collect(),
        search: Vec::new(),
        options: vec!["ndots:0".to_owned()],
    })
}

/// The endpoint by whose network the endpoint's container reaches its name server: the first that
/// it was attached to. One server answers for all of a container's networks.
fn server_of<'a>(state: &'a State, endpoint: &'a Endpoint) -> &'a Endpoint {
    let same = state
        .endpoints
        .values()
        .filter(|other| other.phase == EndpointPhase::Attached && other.netns.is_same(&endpoint.netns));
    same.chain([endpoint]).min_by_key(|one| (one.created_at, &one.id)).unwrap_or(endpoint)
}
