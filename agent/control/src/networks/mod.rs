//! Networks: creation, listing and removal.

mod create;
mod remove;
mod request;
mod update;

use std::collections::BTreeSet;

use mesh_model::{EndpointId, Network, NetworkId};
use mesh_proto::Problem;
use mesh_proto::v1::{self, InspectNetworkResponse, ListEndpointsRequest};

use crate::core::Core;
use crate::resolve::{resolve_network, resolve_node};
use crate::services::health_text;
use crate::view::View;

pub(crate) use create::{Taken, create, proposed};
pub(crate) use remove::{check_removal, prune, remove};
pub(crate) use update::{check as check_update, update};

/// Returns every network, sorted by name.
pub(crate) async fn list(core: &Core) -> Result<Vec<v1::Network>, Problem> {
    let mut networks: Vec<Network> =
        core.records.networks().await?.into_iter().map(|network| network.value).collect();
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(networks.iter().map(Into::into).collect())
}

/// Returns a network with its endpoints and leases.
pub(crate) async fn inspect(core: &Core, text: &str) -> Result<InspectNetworkResponse, Problem> {
    let network = resolve_network(core, text).await?.value;
    let leases = core.records.leases_of(&network.id).await?;
    Ok(InspectNetworkResponse {
        endpoints: endpoints(core, Some(&network.id)),
        leases: leases.iter().map(Into::into).collect(),
        network: Some((&network).into()),
    })
}

/// Returns the endpoints of a network and of a node, or all.
pub(crate) async fn list_endpoints(
    core: &Core,
    request: &ListEndpointsRequest,
) -> Result<v1::ListEndpointsResponse, Problem> {
    core.first_reports().await;
    let network = match request.network.as_str() {
        "" => None,
        text => Some(resolve_network(core, text).await?.value.id),
    };
    let node = match request.node.as_str() {
        "" => None,
        text => Some(resolve_node(core, text).await?.value.id),
    };
    let mut endpoints = endpoints(core, network.as_ref());
    endpoints.retain(|endpoint| node.as_ref().is_none_or(|node| endpoint.node_id == node.as_str()));
    let unheard = core.nodes_without_report();
    let view = core.feed.view();
    let asked = unheard.iter().filter(|id| node.as_ref().is_none_or(|node| node == *id));
    let names = asked.filter_map(|id| view.nodes.get(id)).map(|node| node.name.to_string());
    Ok(v1::ListEndpointsResponse { endpoints, unheard: names.collect() })
}

/// Returns the reported endpoints, with the current names of their networks and nodes.
fn endpoints(core: &Core, network: Option<&NetworkId>) -> Vec<v1::Endpoint> {
    let mut endpoints = core.endpoints.list(network);
    let view = core.feed.view();
    for endpoint in &mut endpoints {
        if let Some(node) = endpoint.node_id.parse().ok().and_then(|id| view.nodes.get(&id)) {
            endpoint.node_name = node.name.to_string();
        }
        if let Some(network) = endpoint.network_id.parse().ok().and_then(|id| view.networks.get(&id)) {
            endpoint.network_name = network.name.to_string();
        }
        if let Ok(id) = endpoint.id.parse() {
            serve(core, &view, &id, endpoint);
        }
    }
    drop(view);
    endpoints.sort_by(|a, b| (&a.network_name, &a.name, &a.id).cmp(&(&b.network_name, &b.name, &b.id)));
    endpoints
}

/// Adds the services of which the endpoint is a backend, and its health in them.
fn serve(core: &Core, view: &View, id: &EndpointId, endpoint: &mut v1::Endpoint) {
    let mut services: Vec<&str> = Vec::new();
    let mut healths = BTreeSet::new();
    for backend in view.services.backends_at(id).filter(|backend| backend.node.as_str() == endpoint.node_id) {
        if let Some(service) = view.services.get(&backend.service) {
            services.push(service.name.as_str());
            // For a host that is down, its last report is outdated.
            let health = core.health.get(backend.id).filter(|_| !core.is_down(&backend.node));
            healths.insert(health_text(service, health));
        }
    }
    services.sort_unstable();
    endpoint.service = services.join(",");
    // The worst of the known states.
    let worst = ["unhealthy", "unknown", "healthy"].into_iter().find(|health| healths.contains(health));
    worst.unwrap_or("none").clone_into(&mut endpoint.health);
}
