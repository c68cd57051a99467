//! Services: making, changing, listing and removing them, and their backends.

mod backends;
mod create;
mod decoys;
mod desk;
mod ports;
mod removals;
mod remove;
mod request;
mod update;
mod vips;

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_model::{Backend, NetworkId, NodeId, NodeState, Service};
use mesh_proto::v1::{BackendStatus, ListServicesRequest, ServiceStatus};
use mesh_proto::{Problem, ProblemKind};
use tracing::warn;

use crate::core::Core;
use crate::limits;
use crate::resolve::{resolve_network, resolve_service};
use crate::view::{ServiceRecords, View};

pub(crate) use backends::{add, remove as remove_backend, set_state};
pub(crate) use create::{create, proposed as proposed_service};
pub(crate) use desk::ServiceDesk;
pub(crate) use ports::ask_hosts;
pub(crate) use removals::{follow_hello, follow_removals, forget_node, sweep};
pub(crate) use remove::remove;
pub(crate) use update::{proposed as proposed_update, update};

/// The services of a network, or all, in order of network and name.
pub(crate) async fn list(core: &Core, request: &ListServicesRequest) -> Result<Vec<ServiceStatus>, Problem> {
    let network = match request.network.as_str() {
        "" => None,
        text => Some(resolve_network(core, text).await?.value.id),
    };
    core.catch_up().await?;
    let records: Vec<ServiceRecords> = {
        // The view is held for a moment only: the messages are made afterwards.
        let view = core.feed.view();
        match &network {
            Some(network) => {
                view.services.in_network(network).filter_map(|id| view.services.records(id)).collect()
            }
            None => view.services.all().filter_map(|service| view.services.records(&service.id)).collect(),
        }
    };
    let mut services: Vec<ServiceStatus> = statuses(core, &records);
    services.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
    Ok(services)
}

fn sort_key(status: &ServiceStatus) -> (&str, &str) {
    (&status.network_name, status.service.as_ref().map_or("", |service| &service.name))
}

/// One service with its backends.
pub(crate) async fn inspect(core: &Core, text: &str) -> Result<ServiceStatus, Problem> {
    let service = resolve_service(core, text).await?;
    Ok(status(core, &service))
}

/// A service with what is known of it now.
fn status(core: &Core, service: &Arc<Service>) -> ServiceStatus {
    let backends = core.feed.view().services.backends_of(&service.id);
    let records = ServiceRecords { service: service.clone(), backends };
    statuses(core, std::slice::from_ref(&records)).pop().unwrap_or_default()
}

fn statuses(core: &Core, records: &[ServiceRecords]) -> Vec<ServiceStatus> {
    let names = Names::of(&core.feed.view(), records);
    let states = core.states().borrow().clone();
    let backend = |service: &Service, backend: &Backend| {
        let state = states.get(&backend.node).copied().unwrap_or(NodeState::Unknown);
        BackendStatus {
            backend: Some(backend.into()),
            node_name: names.node(&backend.node),
            health: health_text(service, core.health.get(backend.id)).to_owned(),
            node_state: mesh_proto::v1::NodeState::from(state).into(),
            health_error: health_error(core, service, backend),
        }
    };
    let one = |ServiceRecords { service, backends }: &ServiceRecords| ServiceStatus {
        service: Some((&**service).into()),
        network_name: names.network(&service.network),
        backends: backends.iter().map(|found| backend(service, found)).collect(),
        unchecked_nodes: Vec::new(),
    };
    records.iter().map(one).collect()
}

/// One backend with what is known of it now.
fn backend_status(core: &Core, service: &Service, backend: &Backend) -> BackendStatus {
    let state = core.states().borrow().get(&backend.node).copied().unwrap_or(NodeState::Unknown);
    BackendStatus {
        backend: Some(backend.into()),
        node_name: node_name(&core.feed.view(), &backend.node),
        health: health_text(service, core.health.get(backend.id)).to_owned(),
        node_state: mesh_proto::v1::NodeState::from(state).into(),
        health_error: health_error(core, service, backend),
    }
}

/// Why the backend's last check failed; empty without a check.
fn health_error(core: &Core, service: &Service, backend: &Backend) -> String {
    service.health.as_ref().map(|_| core.health.error(backend.id)).unwrap_or_default()
}

/// As people see it.
pub(crate) fn health_text(service: &Service, is_healthy: Option<bool>) -> &'static str {
    match is_healthy {
        _ if service.health.is_none() => "none",
        None => "unknown",
        Some(true) => "healthy",
        Some(false) => "unhealthy",
    }
}

/// The names of nodes and networks.
struct Names {
    nodes: BTreeMap<NodeId, String>,
    networks: BTreeMap<NetworkId, String>,
}

impl Names {
    /// Those that the records name.
    fn of(view: &View, records: &[ServiceRecords]) -> Self {
        let mut names = Self { nodes: BTreeMap::new(), networks: BTreeMap::new() };
        for ServiceRecords { service, backends } in records {
            if let Some(network) = view.networks.get(&service.network)
                && !names.networks.contains_key(&network.id)
            {
                names.networks.insert(network.id.clone(), network.name.to_string());
            }
            for backend in backends {
                if let Some(node) = view.nodes.get(&backend.node)
                    && !names.nodes.contains_key(&node.id)
                {
                    names.nodes.insert(node.id.clone(), node.name.to_string());
                }
            }
        }
        names
    }

    fn node(&self, id: &NodeId) -> String {
        self.nodes.get(id).cloned().unwrap_or_default()
    }

    fn network(&self, id: &NetworkId) -> String {
        self.networks.get(id).cloned().unwrap_or_default()
    }
}

/// Other calls have chosen all that is free.
fn contended() -> Problem {
    Problem::new(ProblemKind::Exhausted, "all that is free is being taken by other calls").hint("try again")
}

fn node_name(view: &View, node: &NodeId) -> String {
    view.nodes.get(node).map_or_else(|| node.to_string(), |node| node.name.to_string())
}

fn network_name(view: &View, network: &NetworkId) -> String {
    view.networks.get(network).map_or_else(|| network.to_string(), |network| network.name.to_string())
}

/// Waits until the view and the live agents of these nodes have a revision. An agent that is late must not hold up the
/// rest for long: it catches up by itself.
async fn wait_applied(core: &Core, what: &Service, revision: u64, interested: Vec<NodeId>) {
    core.feed.reached(revision).await;
    let late = core.sessions.wait_applied(interested, revision, limits::APPLIED).await;
    if !late.is_empty() {
        warn!(service = %what.name, revision, ?late, "nodes have not applied a change of a service in time");
    }
}
