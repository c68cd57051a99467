//! Agents' sessions: which are live, which revision each agent has applied, and what each receives.

mod host;
mod reader;
pub(crate) mod registry;
mod soft;
mod taken;
mod writer;

use std::sync::Arc;

use mesh_proto::v1::{AgentMessage, Hello, ManagerMessage, agent_message};
use mesh_proto::{Problem, ProblemKind};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use self::host::{follow_addresses, follow_host, follow_routes};
use crate::access::Caller;
use crate::core::Core;
use crate::{limits, reports, services};

pub(crate) use taken::follow_taken;

/// The messages to an agent.
pub(crate) type Outbound = ReceiverStream<Result<ManagerMessage, Status>>;

/// Begins a session. It ends with its stream, after too long without a message, when a newer
/// session of the same node begins, or when the node is removed.
pub(crate) fn open(core: Arc<Core>, caller: Caller, inbound: Streaming<AgentMessage>) -> Outbound {
    let (outbound, messages) = mpsc::channel(limits::SESSION_QUEUE);
    tokio::spawn(async move {
        let problem = run(&core, &caller, inbound, &outbound).await;
        info!(node = %caller.node().name, reason = %problem, "a session ended");
        // If the queue is full, the agent does not read anyway.
        let _ = outbound.try_send(Err(problem.into()));
    });
    ReceiverStream::new(messages)
}

async fn run(
    core: &Arc<Core>,
    caller: &Caller,
    mut inbound: Streaming<AgentMessage>,
    outbound: &mpsc::Sender<Result<ManagerMessage, Status>>,
) -> Problem {
    let mut hello = match hello(&mut inbound).await {
        Ok(hello) => hello,
        Err(problem) => return problem,
    };
    // Catch up, so that a node that has only just joined is known to all parts.
    let caught_up = timeout(limits::HELLO, core.feed.catch_up(&**core.records.store())).await;
    if !matches!(caught_up, Ok(Ok(()))) {
        return Problem::new(ProblemKind::Unreachable, "the manager cannot follow its store");
    }
    let name = &caller.node().name;
    info!(node = %name, version = reports::shown(&hello.version), "a session began");
    // Begin first, so that an older session of the node reports nothing after this one.
    let (session, questions) = core.sessions.begin(caller.id());
    core.faults.begin(caller.id());
    follow_routes(core, caller, &hello.routes);
    let endpoints = std::mem::take(&mut hello.endpoints);
    let taken = core.checked(caller.id(), |checker| core.endpoints.replace(checker, endpoints));
    follow_taken(core, caller.id(), taken);
    services::follow_hello(core, caller.id());
    core.message_received(caller.id());
    if let Err(error) = follow_host(core, caller.node(), &hello).await {
        warn!(node = %caller.node().name, %error, "cannot update the node's record");
    }
    follow_addresses(core, caller, &hello.addresses).await;
    let problem = tokio::select! {
        problem = reader::run(core, caller, &session, inbound) => problem,
        problem = writer::run(core, caller, &session, questions, outbound) => problem,
        problem = session.ended() => problem,
    };
    if core.sessions.end(&session) {
        core.session_ended(caller.id());
    }
    problem
}

async fn hello(inbound: &mut Streaming<AgentMessage>) -> Result<Hello, Problem> {
    let usage = |message| Problem::new(ProblemKind::Usage, message);
    let first = timeout(limits::HELLO, inbound.message()).await;
    let first = first.map_err(|_| usage("the first message of the session did not arrive"))??;
    match first.and_then(|message| message.kind) {
        Some(agent_message::Kind::Hello(hello)) => Ok(hello),
        _ => Err(usage("the first message of the session must be Hello")),
    }
}
