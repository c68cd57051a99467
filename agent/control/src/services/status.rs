//! The status of services and backends, and which backends get new connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::traffic::{Exclusion, excluded, usable};
use mesh_model::{Availability, Backend, BackendId, NetworkId, Node, NodeId, NodeState, Service};
use mesh_proto::v1::{self, BackendStatus, ServiceStatus};

use crate::core::Core;
use crate::view::{ServiceRecords, View};

/// The explanation for a backend that fails its check, or has not passed it, and still gets
/// connections.
const FALLBACK: &str = "no backend passes its check; all are used";

/// Returns a service with its current status.
pub(super) fn status(core: &Core, service: &Arc<Service>) -> ServiceStatus {
    let backends = core.feed.view().services.backends_of(&service.id);
    let records = ServiceRecords { service: service.clone(), backends };
    statuses(core, std::slice::from_ref(&records)).pop().unwrap_or_default()
}

/// Returns one backend, which may just have been removed or changed, with its current status.
pub(super) fn backend_status(core: &Core, service: &Service, backend: &Backend) -> BackendStatus {
    let mut backends = core.feed.view().services.backends_of(&service.id);
    backends.retain(|other| other.id != backend.id);
    backends.push(Arc::new(backend.clone()));
    let records = ServiceRecords { service: Arc::new(service.clone()), backends };
    let status = statuses(core, std::slice::from_ref(&records)).pop().unwrap_or_default();
    status.backends.into_iter().next_back().unwrap_or_default()
}

/// Returns services with their current status.
pub(super) fn statuses(core: &Core, records: &[ServiceRecords]) -> Vec<ServiceStatus> {
    let facts = Facts::of(core, records);
    let one = |ServiceRecords { service, backends }: &ServiceRecords| ServiceStatus {
        service: Some((&**service).into()),
        network_name: facts.networks.get(&service.network).cloned().unwrap_or_default(),
        backends: facts.backends(core, service, backends),
        unchecked_nodes: Vec::new(),
        warnings: Vec::new(),
    };
    records.iter().map(one).collect()
}

/// Formats the health for people.
pub(crate) fn health_text(service: &Service, is_healthy: Option<bool>) -> &'static str {
    match is_healthy {
        _ if service.health.is_none() => "none",
        None => "unknown",
        Some(true) => "healthy",
        Some(false) => "unhealthy",
    }
}

/// The state of the nodes and networks of some services.
struct Facts {
    nodes: BTreeMap<NodeId, (String, Availability)>,
    networks: BTreeMap<NetworkId, String>,
    states: crate::core::NodeStates,
}

impl Facts {
    fn of(core: &Core, records: &[ServiceRecords]) -> Self {
        let view = core.feed.view();
        let backends = records.iter().flat_map(|records| &records.backends);
        let nodes: BTreeSet<&NodeId> = backends.map(|backend| &backend.node).collect();
        let node = |node: &Node| (node.id.clone(), (node.name.to_string(), node.availability));
        let networks: BTreeSet<&NetworkId> = records.iter().map(|records| &records.service.network).collect();
        let network = |id: &NetworkId| Some((id.clone(), view.networks.get(id)?.name.to_string()));
        Self {
            nodes: nodes.into_iter().filter_map(|id| view.nodes.get(id)).map(node).collect(),
            networks: networks.into_iter().filter_map(network).collect(),
            states: core.states().borrow().clone(),
        }
    }

    fn backends(&self, core: &Core, service: &Service, backends: &[Arc<Backend>]) -> Vec<BackendStatus> {
        let healths: Vec<Option<bool>> = backends.iter().map(|one| self.health(core, one)).collect();
        let exclusions: Vec<Option<Exclusion>> = backends.iter().map(|one| self.excluded(one)).collect();
        let ids = |is_one: &dyn Fn(usize) -> bool| -> BTreeSet<BackendId> {
            let numbered = backends.iter().enumerate().filter(|(index, _)| is_one(*index));
            numbered.map(|(_, backend)| backend.id).collect()
        };
        let candidates = ids(&|index| exclusions[index].is_none());
        let usable = usable(service, candidates, &ids(&|index| healths[index] == Some(true)));
        let one = |((backend, health), exclusion): ((&Arc<Backend>, &Option<bool>), &Option<Exclusion>)| {
            let receives = usable.contains(&backend.id);
            let passes = service.health.is_none() || *health == Some(true);
            let failing = if *health == Some(false) { Exclusion::Unhealthy } else { Exclusion::NotPassedYet };
            let why = match exclusion {
                Some(exclusion) => exclusion.as_str(),
                None if receives && passes => "",
                None if receives => FALLBACK,
                None => failing.as_str(),
            };
            BackendStatus {
                receives_traffic: receives,
                traffic_reason: why.to_owned(),
                ..self.backend(core, service, backend, *health)
            }
        };
        backends.iter().zip(&healths).zip(&exclusions).map(one).collect()
    }

    fn backend(
        &self,
        core: &Core,
        service: &Service,
        backend: &Backend,
        health: Option<bool>,
    ) -> BackendStatus {
        let node = self.nodes.get(&backend.node);
        let availability =
            node.map_or(v1::Availability::Unspecified, |(_, availability)| (*availability).into());
        BackendStatus {
            backend: Some(backend.into()),
            node_name: node.map_or_else(|| backend.node.to_string(), |(name, _)| name.clone()),
            health: health_text(service, health).to_owned(),
            node_state: v1::NodeState::from(self.state(&backend.node)).into(),
            health_error: service.health.as_ref().map(|_| core.health.error(backend.id)).unwrap_or_default(),
            node_availability: availability.into(),
            receives_traffic: false,
            traffic_reason: String::new(),
        }
    }

    fn state(&self, node: &NodeId) -> NodeState {
        self.states.get(node).copied().unwrap_or(NodeState::Unknown)
    }

    /// Returns a backend's health if known; it is unknown if the host is down.
    fn health(&self, core: &Core, backend: &Backend) -> Option<bool> {
        core.health.get(backend.id).filter(|_| self.state(&backend.node) != NodeState::Down)
    }

    fn excluded(&self, backend: &Backend) -> Option<Exclusion> {
        let availability = self.nodes.get(&backend.node).map(|(_, availability)| *availability);
        excluded(backend, availability, self.state(&backend.node) == NodeState::Down)
    }
}

pub(super) fn node_name(view: &View, node: &NodeId) -> String {
    view.nodes.get(node).map_or_else(|| node.to_string(), |node| node.name.to_string())
}

pub(super) fn network_name(view: &View, network: &NetworkId) -> String {
    view.networks.get(network).map_or_else(|| network.to_string(), |network| network.name.to_string())
}
