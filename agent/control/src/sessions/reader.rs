//! Reads the messages of agents.

use std::sync::Arc;

use mesh_model::{BackendId, Finding};
use mesh_proto::v1::{AgentMessage, EndpointReport, HealthReport, ProbeReport, agent_message::Kind};
use mesh_proto::{Problem, ProblemKind, v1};
use tokio::time::timeout;
use tonic::Streaming;
use tracing::warn;

use super::host::{follow_addresses, follow_routes};
use super::registry::Session;
use super::taken::follow_taken;
use crate::access::Caller;
use crate::core::Core;
use crate::{clock, leases, limits};

/// Reads until the session ends, and returns the reason.
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
                    format!("the connection failed: {}", status.message()),
                );
            }
            Err(_) => {
                return Problem::new(ProblemKind::Unreachable, "no message from the agent for too long");
            }
        };
        core.message_received(caller.id());
        match message.kind {
            // No agent can have applied a revision that is not written yet.
            Some(Kind::Applied(applied)) => {
                session.set_applied(applied.revision.min(core.feed.view().revision));
            }
            Some(Kind::Endpoints(report)) => reported(core, caller, session, report),
            Some(Kind::Health(report)) => checked(core, caller, &report),
            Some(Kind::PortCheck(answer)) => session.answered(answer),
            Some(Kind::Probes(report)) => probed(core, caller, &report),
            Some(Kind::Cede(answer)) => {
                if let Err(problem) = leases::answered(core, caller.id(), &answer).await {
                    warn!(node = %caller.node().name, address = answer.address, %problem, "cannot settle a borrow");
                }
            }
            // An agent of an earlier version does not report its clock.
            Some(Kind::Heartbeat(v1::Heartbeat { unix_ms })) if unix_ms != 0 => {
                core.sessions.set_clock(caller.id(), unix_ms.saturating_sub(clock::unix_ms()));
            }
            Some(Kind::Heartbeat(_)) | None => {}
            Some(Kind::Host(report)) => {
                follow_routes(core, caller, &report.routes);
                follow_addresses(core, caller, &report.addresses).await;
            }
            Some(Kind::Hello(_)) => {
                return Problem::new(ProblemKind::Usage, "a session must have only one Hello");
            }
        }
    }
}

fn reported(core: &Arc<Core>, caller: &Caller, session: &Session, report: EndpointReport) {
    let taken =
        core.checked(caller.id(), |checker| core.endpoints.update(checker, report.put, &report.removed));
    session.set_reported(report.number);
    follow_taken(core, caller.id(), taken);
}

/// Checks that a node reports only its own backends.
fn checked(core: &Core, caller: &Caller, report: &HealthReport) {
    let view = core.feed.view();
    let own = report.put.iter().filter_map(|entry| {
        let id = BackendId::try_from(entry.backend).ok()?;
        let backend = view.services.backend_by_number(id)?;
        let healthy = (!entry.unknown).then_some(entry.healthy);
        (backend.node == *caller.id()).then(|| (id, Finding::new(healthy, &entry.error)))
    });
    let own = own.collect();
    drop(view);
    core.health.report(caller.id(), own, report.all);
}

fn probed(core: &Core, caller: &Caller, report: &ProbeReport) {
    let probes = report.probes.iter().filter_map(|probe| Some((probe.node.parse().ok()?, probe.answering)));
    core.probed(caller.id(), probes);
    core.paths.report(caller.id(), &report.unreachable, &core.feed.view().nodes);
}
