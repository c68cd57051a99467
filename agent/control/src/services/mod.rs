//! Services: creation, changes, listing and removal, and their backends.

mod backends;
mod create;
mod decoys;
pub(crate) mod desk;
mod names;
mod ports;
mod removals;
mod remove;
mod request;
mod status;
mod update;
mod vips;

use mesh_model::{NodeId, Service};
use mesh_proto::v1::{ListServicesRequest, ServiceStatus};
use mesh_proto::{Problem, ProblemKind};
use tracing::warn;

use self::status::{backend_status, network_name, node_name, status, statuses};

use crate::core::Core;
use crate::limits;
use crate::resolve::{resolve_network, resolve_service};
use crate::view::ServiceRecords;

pub(crate) use backends::{add, remove as remove_backend, set_state};
pub(crate) use create::{create, proposed as proposed_service};
pub(crate) use names::shared as shared_names;
pub(crate) use ports::check_host_ports;
pub(crate) use removals::{follow_hello, follow_removals, forget_node, sweep};
pub(crate) use remove::remove;
pub(crate) use status::health_text;
pub(crate) use update::{proposed as proposed_update, update};

/// Returns the services of a network, or all, in order of network and name.
pub(crate) async fn list(core: &Core, request: &ListServicesRequest) -> Result<Vec<ServiceStatus>, Problem> {
    let network = match request.network.as_str() {
        "" => None,
        text => Some(resolve_network(core, text).await?.value.id),
    };
    core.catch_up().await?;
    let records: Vec<ServiceRecords> = {
        // Hold the view only briefly: build the messages afterwards.
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

/// Returns one service with its backends.
pub(crate) async fn inspect(core: &Core, text: &str) -> Result<ServiceStatus, Problem> {
    let service = resolve_service(core, text).await?;
    Ok(status(core, &service))
}

/// Returns the error if other calls have chosen all free values.
fn contended() -> Problem {
    Problem::new(ProblemKind::Exhausted, "all free values are being allocated by other calls")
        .hint("try again")
}

/// Waits until the view and the live agents of these nodes have a revision. A late agent must not
/// delay the others for long: it catches up later.
async fn wait_applied(core: &Core, what: &Service, revision: u64, interested: Vec<NodeId>) {
    core.feed.reached(revision).await;
    let late = core.sessions.wait_applied(interested, revision, limits::APPLIED).await;
    if !late.is_empty() {
        warn!(service = %what.name, revision, ?late, "nodes have not applied a change of a service in time");
    }
}
