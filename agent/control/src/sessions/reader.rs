//! What agents say.

use std::sync::Arc;

use mesh_model::BackendId;
use mesh_proto::v1::{AgentMessage, EndpointReport, HealthReport, ProbeReport, agent_message::Kind};
use mesh_proto::{Problem, ProblemKind};
use tokio::time::timeout;
use tonic::Streaming;
use tracing::warn;

use super::registry::Session;
use crate::access::Caller;
use crate::core::Core;
use crate::{leases, limits, services};

/// Listens until the session ends, and returns why.
pub(super) async fn run(
    core: &Arc<Core>,
    caller: &Caller,
    session: &Session,
    mut inbound: Streaming<AgentMessage>,
) -> Problem {
    loop {
        let message = match timeout(limits::SESSION_TIMEOUT, inbound.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Problem::new(ProblemKind::Unreachable, "the agent ended it"),
            Ok(Err(status)) => {
                return Problem::new(
                    ProblemKind::Unreachable,
                    format!("the connection broke: {}", status.message()),
                );
            }
            Err(_) => return Problem::new(ProblemKind::Unreachable, "the agent was silent for too long"),
        };
        core.heard(caller.id());
        match message.kind {
            Some(Kind::Applied(applied)) => session.set_applied(applied.revision),
            Some(Kind::Endpoints(report)) => reported(core, caller, session, report),
            Some(Kind::Health(report)) => checked(core, caller, &report),
            Some(Kind::PortCheck(answer)) => session.answered(answer),
            Some(Kind::Probes(report)) => probed(core, caller, &report),
            Some(Kind::Cede(answer)) => {
                if let Err(problem) = leases::answered(core, caller.id(), &answer).await {
                    warn!(node = %caller.node().name, address = answer.address, %problem, "cannot settle a borrow");
                }
            }
            Some(Kind::Heartbeat(_)) | None => {}
            Some(Kind::Hello(_)) => return Problem::new(ProblemKind::Usage, "a session has one Hello"),
        }
    }
}

fn reported(core: &Arc<Core>, caller: &Caller, session: &Session, report: EndpointReport) {
    core.endpoints.update(caller.id(), report.put, &report.removed);
    session.set_reported(report.number);
    let removed: Vec<_> = report.removed.iter().filter_map(|id| id.parse().ok()).collect();
    services::follow_removals(core, caller.id(), removed);
}

/// A node speaks for its own backends only.
fn checked(core: &Core, caller: &Caller, report: &HealthReport) {
    let view = core.feed.view();
    let own = report.put.iter().filter_map(|entry| {
        let id = BackendId::try_from(entry.backend).ok()?;
        let backend = view.services.backend_by_number(id)?;
        (backend.node == *caller.id()).then_some((id, entry.healthy))
    });
    let own = own.collect();
    drop(view);
    core.health.report(caller.id(), own, report.all);
}

fn probed(core: &Core, caller: &Caller, report: &ProbeReport) {
    let probes = report.probes.iter().filter_map(|probe| Some((probe.node.parse().ok()?, probe.answering)));
    core.probed(caller.id(), probes);
}
