//! The agent's session with a manager: receives records, and reports this node's state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_control::clock;
use mesh_control::limits::{HEARTBEAT, SESSION_TIMEOUT};
use mesh_control::session_client::control_client;
use mesh_host::{Backoff, Host, kernel_problem, taken_ports};
use mesh_model::{
    BackendId, Endpoint, EndpointId, EndpointPhase, Finding, NetworkId, NodeId, NodeState, PublishedPort,
};
use mesh_proto::convert::{InvalidMessage, parse};
use mesh_proto::v1::session_client::SessionClient;
use mesh_proto::v1::{self, agent_message, manager_message};
use mesh_proto::{MAX_MESSAGE, Problem};
use mesh_state::{Agent, ClusterView, Probes, Refusal, State, Unreadable, ViewError, endpoint_message};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::host_facts::{self, HostFacts};
use crate::managers::Managers;
use crate::reported::Reported;

/// Pauses between attempts to reach a manager.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// Interval between reports of the probes' results.
const PROBE_REPORT: Duration = Duration::from_secs(1);
/// Messages that may wait for the manager to take them.
const QUEUE: usize = 16;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{0}")]
    Manager(Problem),
    #[error("the manager was silent for {} seconds", SESSION_TIMEOUT.as_secs())]
    Silent,
    #[error("the manager ended the session")]
    Ended,
    #[error(transparent)]
    View(#[from] ViewError),
    #[error("the manager sent a change before a snapshot")]
    NoSnapshot,
    #[error("the saved records of the cluster were lost; a new session reports everything again")]
    ViewRegained,
    #[error("the MTU of the data path has changed; a new session reports it")]
    MtuChanged,
    #[error("the host no longer has the address of the session")]
    AddressChanged,
}

/// Keeps a session with a manager, for ever.
pub async fn run(
    agent: Arc<Agent>,
    managers: Arc<Managers>,
    host: Arc<dyn Host>,
    probes: watch::Receiver<Probes>,
) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
    let mut last_reason = String::new();
    loop {
        let reconnects = managers.reconnects();
        let error = match managers.connected().await {
            Ok(connected) => {
                let mut session = Session {
                    agent: &agent,
                    host: &host,
                    address: &connected.address,
                    probes: probes.clone(),
                    reconnects,
                    reported: Reported::default(),
                    hello_count: 0,
                    snapshot_seen: false,
                    reported_applied: None,
                    reported_health: None,
                    answers: mpsc::channel(QUEUE),
                    answering: JoinSet::new(),
                };
                let client = SessionClient::new(connected.channel.clone());
                let error = match restore_lost(&agent, connected.channel.clone()).await {
                    Ok(()) => session.run(client).await,
                    Err(problem) => SessionError::Manager(problem),
                };
                if session.snapshot_seen {
                    backoff.reset();
                    last_reason.clear();
                }
                managers.forget(&connected.address);
                error
            }
            Err(problem) => SessionError::Manager(problem),
        };
        let reason = error.to_string();
        agent.update(|state| {
            state.manager.clear();
            state.session_problem.clone_from(&reason);
        });
        if reason != last_reason {
            tracing::warn!(%reason, "no session with a manager");
            last_reason = reason;
        }
        sleep(backoff.pause()).await;
    }
}

/// Rebuilds records of endpoints that were lost together with the records of the networks.
async fn restore_lost(agent: &Agent, channel: Channel) -> Result<(), Problem> {
    if agent.has_lost() {
        let answer = control_client(channel).list_networks(v1::ListNetworksRequest {}).await?.into_inner();
        let networks = answer.networks.into_iter().filter_map(|network| network.try_into().ok());
        agent.restore_lost(networks.collect());
    }
    Ok(())
}

struct Session<'a> {
    agent: &'a Arc<Agent>,
    host: &'a Arc<dyn Host>,
    address: &'a str,
    probes: watch::Receiver<Probes>,
    reconnects: watch::Receiver<u64>,
    /// The endpoints as last reported to the manager.
    reported: Reported,
    /// How many changes of endpoints the session began with.
    hello_count: u64,
    snapshot_seen: bool,
    reported_applied: Option<u64>,
    /// The health of this node's backends as last reported; `None` before the first report.
    reported_health: Option<BTreeMap<BackendId, Finding>>,
    /// Answers that take time, from the tasks that find them: nothing may delay a heartbeat.
    answers: (mpsc::Sender<agent_message::Kind>, mpsc::Receiver<agent_message::Kind>),
    /// These tasks, which end with the session.
    answering: JoinSet<()>,
}

impl Session<'_> {
    async fn run(&mut self, client: SessionClient<tonic::transport::Channel>) -> SessionError {
        match self.converse(client).await {
            Ok(()) => SessionError::Ended,
            Err(error) => error,
        }
    }

    async fn converse(
        &mut self,
        client: SessionClient<tonic::transport::Channel>,
    ) -> Result<(), SessionError> {
        let manager = |status: tonic::Status| SessionError::Manager(status.into());
        let mut client = client.max_decoding_message_size(MAX_MESSAGE);
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let mut reconciliations = self.agent.reconciliations();
        let observed = reconciliations.borrow_and_update().underlay_mtu;
        // Before the first reconciliation the record's value is used. If it is wrong, a new session
        // corrects it.
        let mtu = if observed == 0 { self.agent.node().data_path_mtu.get() } else { observed };
        let mut endpoints = self.agent.endpoint_changes();
        // The count first: what changes in between is reported again, and not missed.
        self.hello_count = *endpoints.borrow_and_update();
        self.reported = Reported::all(self.hello_count, self.agent.read(reportable));
        let facts = HostFacts::read(self.host).await;
        let hello = v1::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            data_path_mtu: mtu,
            endpoints: self.agent.read(|state| {
                self.reported.endpoints().map(|endpoint| endpoint_message(state, endpoint)).collect()
            }),
            routes: facts.routes.clone(),
            addresses: facts.addresses.clone(),
        };
        self.answering.spawn(host_facts::follow(self.host.clone(), facts, self.answers.0.clone()));
        send(&outgoing, agent_message::Kind::Hello(hello)).await?;
        let mut incoming = client.open(ReceiverStream::new(queue)).await.map_err(manager)?.into_inner();
        let mut applied = self.agent.applied();
        let mut health = self.agent.health_changes();
        self.report_health(&outgoing).await?;
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report = interval(PROBE_REPORT);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent_at = Instant::now() + SESSION_TIMEOUT;
        loop {
            tokio::select! {
                received = timeout_at(silent_at, incoming.message()) => {
                    let received = received.map_err(|_| SessionError::Silent)?.map_err(manager)?;
                    let Some(message) = received else { return Ok(()) };
                    silent_at = Instant::now() + SESSION_TIMEOUT;
                    if let Some(kind) = message.kind {
                        self.take(kind)?;
                    }
                    // The kernel may already have the revision of a snapshot, and then no
                    // reconciliation reports it.
                    let revision = *applied.borrow_and_update();
                    self.report_applied(revision, &outgoing).await?;
                }
                Ok(()) = self.reconnects.changed() => return Err(SessionError::AddressChanged),
                Some(answer) = self.answers.1.recv() => send(&outgoing, answer).await?,
                Some(_) = self.answering.join_next() => {}
                changed = applied.changed() => {
                    changed.map_err(|_| SessionError::Ended)?;
                    let revision = *applied.borrow_and_update();
                    self.report_applied(revision, &outgoing).await?;
                }
                changed = endpoints.changed() => {
                    changed.map_err(|_| SessionError::Ended)?;
                    self.report_endpoints(&outgoing).await?;
                }
                changed = health.changed() => {
                    changed.map_err(|_| SessionError::Ended)?;
                    self.report_health(&outgoing).await?;
                }
                changed = reconciliations.changed() => {
                    changed.map_err(|_| SessionError::Ended)?;
                    let now = reconciliations.borrow_and_update().underlay_mtu;
                    if now != 0 && now != mtu {
                        return Err(SessionError::MtuChanged);
                    }
                }
                Ok(()) = self.probes.changed() => self.report_probes(&outgoing).await?,
                _ = report.tick() => self.report_probes(&outgoing).await?,
                _ = heartbeat.tick() => send(&outgoing, agent_message::Kind::Heartbeat(v1::Heartbeat {
                    unix_ms: clock::unix_ms(),
                })).await?,
            }
        }
    }

    fn take(&mut self, kind: manager_message::Kind) -> Result<(), SessionError> {
        match kind {
            manager_message::Kind::Snapshot(snapshot) => {
                let view = ClusterView::from_snapshot(snapshot)?;
                let was_lost = self.agent.read(State::is_view_lost);
                // First, since the view wakes those who then ask whether there is a manager.
                self.agent.update(|state| {
                    self.address.clone_into(&mut state.manager);
                    state.session_problem.clear();
                });
                self.agent.set_view(view, None);
                if !self.snapshot_seen {
                    tracing::info!(manager = self.address, "in session");
                }
                if !self.snapshot_seen {
                    // Refusals of this session are yet to come.
                    self.agent.update(|state| {
                        state.refused.clear();
                        state.report_problems.clear();
                        state.unreadable = Unreadable::default();
                    });
                    self.agent.set_endpoints_received(self.hello_count);
                }
                self.snapshot_seen = true;
                self.reported_applied = None;
                if was_lost {
                    return Err(SessionError::ViewRegained);
                }
            }
            manager_message::Kind::Delta(_) if !self.snapshot_seen => return Err(SessionError::NoSnapshot),
            manager_message::Kind::Delta(delta) => {
                let changed = changed_networks(&delta);
                let view = self.agent.read(|state| state.view.with_delta(delta))?;
                self.agent.set_view(view, Some(&changed));
            }
            manager_message::Kind::States(states) => {
                let read = |entry: &v1::NodeStateEntry| -> Result<(NodeId, NodeState), InvalidMessage> {
                    Ok((parse("node", &entry.node)?, entry.state().try_into()?))
                };
                self.agent.update(|state| {
                    let entries = states.nodes.iter();
                    let states = entries
                        .filter_map(|entry| state.unreadable.read("state of node", &entry.node, read(entry)));
                    *state.node_states = states.collect();
                });
            }
            manager_message::Kind::Cede(cede) => self.answer(cede),
            manager_message::Kind::RotateKeys(call) => self.agent.call_for_key(call.number),
            manager_message::Kind::EndpointsTaken(taken) => {
                let refused = taken.refused.into_iter().filter_map(|refused| {
                    let refusal = Refusal { why: refused.why, name_taken: refused.name_taken };
                    Some((refused.endpoint.parse().ok()?, refusal))
                });
                let refused = refused.collect();
                // Before those are woken that waited for it.
                self.agent.update(|state| state.refused = refused);
                self.agent.set_endpoints_received(taken.number);
            }
            manager_message::Kind::BackendHealth(health) => {
                self.agent.update(|state| state.soft.receive_health(&state.view, &health));
            }
            manager_message::Kind::Endpoints(endpoints) => {
                self.agent.receive_endpoints(&endpoints);
            }
            manager_message::Kind::PortCheck(check) => self.check_ports(check),
            manager_message::Kind::ReportProblems(report) => {
                self.agent.update(|state| state.report_problems = report.problems);
            }
            manager_message::Kind::Ping(v1::Ping { unix_ms: 0 }) => {}
            manager_message::Kind::Ping(v1::Ping { unix_ms }) => {
                let ahead = unix_ms.saturating_sub(clock::unix_ms());
                self.agent.update(|state| state.manager_clock_ms = Some(ahead));
            }
        }
        Ok(())
    }

    /// Decides about another node's borrow. An acceptance is durable before it is sent: after a
    /// restart, this node must not allocate an address that is the other's by then.
    fn answer(&mut self, cede: v1::Cede) {
        let read = || -> Result<(NetworkId, IpAddr), InvalidMessage> {
            Ok((parse("network", &cede.network)?, parse("address", &cede.address)?))
        };
        let read = read();
        let read =
            self.agent.update(|state| state.unreadable.read("request for address", &cede.address, read));
        let Some((network, address)) = read else { return };
        let accepted = self.agent.update(|state| state.pools.cede(&network, address, cede.revision));
        let (agent, answers) = (self.agent.clone(), self.answers.0.clone());
        self.answering.spawn(async move {
            let mut answer = v1::CedeAnswer {
                network: cede.network,
                address: cede.address,
                accepted,
                revision: cede.revision,
            };
            if accepted {
                let saved = tokio::task::spawn_blocking(move || agent.save_everything()).await;
                if let Ok(Err(error)) = saved {
                    tracing::error!(%error, %address, "a borrow is refused, because it cannot be written down");
                    answer.accepted = false;
                }
            }
            // The session may have ended meanwhile.
            let _ = answers.send(agent_message::Kind::Cede(answer)).await;
        });
    }

    /// Answers which ports sockets of this host have, or why that is not known.
    fn check_ports(&mut self, check: v1::PortCheck) {
        let number = check.number;
        let ports = check.ports.into_iter().map(PublishedPort::try_from);
        let ports: Result<Vec<_>, _> = ports.collect();
        let (host, answers) = (self.host.clone(), self.answers.0.clone());
        self.answering.spawn(async move {
            let found = match ports {
                Ok(ports) => taken_ports(host, ports).await.map_err(|error| kernel_problem(&error).message),
                Err(error) => Err(format!("the question cannot be read: {error}")),
            };
            let (taken, failure) = match found {
                Ok(taken) => (taken.iter().map(v1::PublishedPort::from).collect(), String::new()),
                Err(failure) => (Vec::new(), failure),
            };
            let answer = v1::PortCheckAnswer { number, taken, failure };
            // The session may have ended meanwhile.
            let _ = answers.send(agent_message::Kind::PortCheck(answer)).await;
        });
    }

    /// Reports the health of this node's backends: all of them first, then changes.
    async fn report_health(&mut self, outgoing: &mpsc::Sender<v1::AgentMessage>) -> Result<(), SessionError> {
        let now = self.agent.read(|state| state.soft.found().clone());
        let entry = |(id, finding): (&BackendId, &Finding)| v1::BackendHealthEntry {
            backend: id.get(),
            healthy: finding.healthy == Some(true),
            unknown: finding.healthy.is_none(),
            error: finding.error.clone(),
        };
        let report = match &self.reported_health {
            // A backend that is checked no more cannot be taken back but by saying all.
            Some(said) if said.keys().all(|id| now.contains_key(id)) => v1::HealthReport {
                put: now.iter().filter(|(id, finding)| said.get(id) != Some(finding)).map(entry).collect(),
                all: false,
            },
            _ => v1::HealthReport { put: now.iter().map(entry).collect(), all: true },
        };
        self.reported_health = Some(now);
        if report.put.is_empty() && !report.all {
            return Ok(());
        }
        send(outgoing, agent_message::Kind::Health(report)).await
    }

    /// Reports the applied revision, after the endpoints: a manager that removes a network relies
    /// on having received all endpoints that were attached before.
    async fn report_applied(
        &mut self,
        revision: u64,
        outgoing: &mpsc::Sender<v1::AgentMessage>,
    ) -> Result<(), SessionError> {
        // What was applied before this session's snapshot may be of a store that has been replaced
        // since.
        let known = self.agent.read(|state| state.view.revision);
        if !self.snapshot_seen || revision > known || self.reported_applied == Some(revision) {
            return Ok(());
        }
        self.reported_applied = Some(revision);
        self.report_endpoints(outgoing).await?;
        send(outgoing, agent_message::Kind::Applied(v1::Applied { revision })).await
    }

    async fn report_endpoints(
        &mut self,
        outgoing: &mpsc::Sender<v1::AgentMessage>,
    ) -> Result<(), SessionError> {
        let count = *self.agent.endpoint_changes().borrow();
        let Some(news) = self.reported.news(count, || self.agent.read(reportable)) else { return Ok(()) };
        let report = v1::EndpointReport {
            put: self
                .agent
                .read(|state| news.put.iter().map(|endpoint| endpoint_message(state, endpoint)).collect()),
            removed: news.removed.iter().map(ToString::to_string).collect(),
            number: count,
        };
        send(outgoing, agent_message::Kind::Endpoints(report)).await
    }

    async fn report_probes(&mut self, outgoing: &mpsc::Sender<v1::AgentMessage>) -> Result<(), SessionError> {
        let probes: Vec<v1::Probe> = self
            .probes
            .borrow_and_update()
            .iter()
            .map(|(node, answering)| v1::Probe { node: node.to_string(), answering: *answering })
            .collect();
        let unreachable = self.agent.read(|state| {
            let broken = state.paths.all().filter(|(_, works)| !works);
            broken
                .map(|(path, _)| v1::UnreachablePeer {
                    node: path.node.to_string(),
                    encrypted: path.encrypted,
                })
                .collect()
        });
        send(outgoing, agent_message::Kind::Probes(v1::ProbeReport { probes, unreachable })).await
    }
}

async fn send(
    outgoing: &mpsc::Sender<v1::AgentMessage>,
    kind: agent_message::Kind,
) -> Result<(), SessionError> {
    let message = v1::AgentMessage { kind: Some(kind) };
    match tokio::time::timeout(SESSION_TIMEOUT, outgoing.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(SessionError::Ended),
        Err(_) => Err(SessionError::Silent),
    }
}

/// Returns the endpoints that managers receive. Those that are attaching are included: so the
/// report runs while the kernel creates the device, and of two endpoints with one name the second
/// is refused before its attach returns. But a network that is being removed gets no more of them:
/// such an attach is about to fail.
fn reportable(state: &State) -> BTreeMap<EndpointId, Endpoint> {
    let stays = |endpoint: &&Endpoint| {
        let removing = state.view.networks.get(&endpoint.network).is_some_and(|network| network.removing);
        endpoint.phase == EndpointPhase::Attached || !removing
    };
    let attached = |endpoint: &Endpoint| Endpoint { phase: EndpointPhase::Attached, ..endpoint.clone() };
    state.endpoints.values().filter(stays).map(|endpoint| (endpoint.id.clone(), attached(endpoint))).collect()
}

/// The networks whose own records or leases a delta changes; those that cannot be read are skipped.
fn changed_networks(delta: &v1::Delta) -> BTreeSet<NetworkId> {
    use v1::change::Kind;
    let kinds = delta.changes.iter().filter_map(|change| change.kind.as_ref());
    let networks = kinds.filter_map(|kind| match kind {
        Kind::PutNetwork(network) => Some(&network.id),
        Kind::RemoveNetwork(id) => Some(id),
        Kind::PutLease(lease) | Kind::RemoveLease(lease) => Some(&lease.network),
        Kind::PutNode(_)
        | Kind::RemoveNode(_)
        | Kind::PutService(_)
        | Kind::RemoveService(_)
        | Kind::PutBackend(_)
        | Kind::RemoveBackend(_) => None,
    });
    networks.filter_map(|id| id.parse().ok()).collect()
}
