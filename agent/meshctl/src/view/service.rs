//! Services and their backends as scripts see them.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_model::{
    Affinity, Availability, BackendState, EndpointMode, HealthCheck, NodeState, PublishedPort,
    WhenAllUnhealthy,
};
use mesh_proto::convert::required;
use mesh_proto::{Problem, v1};
use serde::Serialize;

use super::{present, unusable};

/// A service and its backends.
#[derive(Debug, Serialize)]
pub(crate) struct Service {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) network: String,
    pub(crate) vip: Option<String>,
    pub(crate) vip6: Option<String>,
    pub(crate) endpoint_mode: EndpointMode,
    pub(crate) ports: Vec<PublishedPort>,
    pub(crate) affinity: Affinity,
    pub(crate) health: Option<Health>,
    pub(crate) when_all_unhealthy: WhenAllUnhealthy,
    pub(crate) aliases: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) created_at: String,
    /// In order of their names.
    pub(crate) endpoints: Vec<Backend>,
}

/// How backends are checked.
#[derive(Debug, Serialize)]
pub(crate) struct Health {
    /// `tcp PORT` or `http PORT/PATH`, with ` at LOOPBACK` and ` as HOST` where the check has them.
    pub(crate) check: String,
    /// Milliseconds.
    pub(crate) interval_ms: u64,
    pub(crate) retries: u32,
    /// Milliseconds that one try may take.
    pub(crate) timeout_ms: u64,
    /// Milliseconds after the first try in which failures do not count; 0 without a start period.
    pub(crate) start_period_ms: u64,
    /// Milliseconds from one try to the next in the start period; null: as usual.
    pub(crate) start_interval_ms: Option<u64>,
}

/// An endpoint as a service's backend.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Backend {
    /// The endpoint's.
    pub(crate) id: String,
    /// The endpoint's.
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) ipv4: Option<String>,
    pub(crate) ipv6: Option<String>,
    pub(crate) state: BackendState,
    /// `healthy`, `unhealthy`, `unknown`, or `none` without a check.
    pub(crate) health: String,
    pub(crate) node_state: NodeState,
    /// None: the node is no member any more.
    pub(crate) node_availability: Option<Availability>,
    /// Whether it gets new connections.
    pub(crate) receives_traffic: bool,
    /// Why it gets none, or why it gets them although it does not pass its check.
    pub(crate) traffic_reason: Option<String>,
    /// Why its last check failed; none after a success.
    pub(crate) health_error: Option<String>,
    /// The service's name, and its network's; none in the answer to `service backend`.
    pub(crate) service: String,
    pub(crate) network: String,
    /// Its number in the cluster.
    #[serde(rename = "backend")]
    pub(crate) number: u32,
}

impl TryFrom<v1::ServiceStatus> for Service {
    type Error = Problem;

    fn try_from(status: v1::ServiceStatus) -> Result<Self, Problem> {
        let service = required("service", status.service).map_err(|e| unusable(&e))?;
        let service = mesh_model::Service::try_from(service).map_err(|e| unusable(&e))?;
        let mut endpoints: Vec<Backend> =
            status.backends.into_iter().map(Backend::try_from).collect::<Result<_, _>>()?;
        for endpoint in &mut endpoints {
            endpoint.service = service.name.to_string();
            endpoint.network.clone_from(&status.network_name);
        }
        endpoints.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(Self {
            id: service.id.to_string(),
            name: service.name.into(),
            network: status.network_name,
            vip: service.vip.map(|vip| vip.to_string()),
            vip6: service.vip6.map(|vip| vip.to_string()),
            endpoint_mode: service.endpoint_mode,
            ports: service.ports,
            affinity: service.affinity,
            health: service.health.map(Into::into),
            when_all_unhealthy: service.when_all_unhealthy,
            aliases: service.aliases.into_iter().map(Into::into).collect(),
            labels: service.labels,
            created_at: service.created_at.to_string(),
            endpoints,
        })
    }
}

impl From<HealthCheck> for Health {
    fn from(check: HealthCheck) -> Self {
        // At most a day.
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            check: check.to_string(),
            interval_ms: millis(check.interval),
            retries: check.retries,
            timeout_ms: millis(check.timeout()),
            start_period_ms: millis(check.start_period),
            start_interval_ms: check.start_interval.map(millis),
        }
    }
}

impl TryFrom<v1::BackendStatus> for Backend {
    type Error = Problem;

    fn try_from(status: v1::BackendStatus) -> Result<Self, Problem> {
        let node_state = status.node_state().try_into().map_err(|e| unusable(&e))?;
        let node_availability = status.node_availability().try_into().ok();
        let backend = required("backend", status.backend).map_err(|e| unusable(&e))?;
        Ok(Self {
            state: backend.state().try_into().map_err(|e| unusable(&e))?,
            id: backend.endpoint,
            name: backend.name,
            node: status.node_name,
            ipv4: present(backend.ipv4),
            ipv6: present(backend.ipv6),
            health: status.health,
            node_state,
            node_availability,
            receives_traffic: status.receives_traffic,
            traffic_reason: present(status.traffic_reason),
            health_error: present(status.health_error),
            service: String::new(),
            network: String::new(),
            number: backend.id,
        })
    }
}
