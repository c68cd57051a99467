//! Sends records to agents: a snapshot, then each revision's changes, without a gap.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_model::{Lease, LeaseState, NetworkId, Node, NodeId, NodeState};
use mesh_proto::v1::{
    Cede, Delta, EndpointsTaken, ManagerMessage, NodeStateEntry, NodeStates, Ping, PortCheck, ReportProblems,
    Snapshot, manager_message::Kind,
};
use mesh_proto::{Problem, ProblemKind};
use tokio::sync::{broadcast, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Status;

use crate::access::{Caller, removed};
use crate::core::Core;
use crate::feed::News;
use crate::sessions::registry::Session;
use crate::view::{Batch, Level, NetworkRecords, RecordChange, View};
use crate::{clock, limits};

/// Sends everything until the session ends, and returns the reason.
pub(super) async fn run(
    core: &Core,
    caller: &Caller,
    session: &Session,
    questions: mpsc::UnboundedReceiver<PortCheck>,
    outbound: &mpsc::Sender<Result<ManagerMessage, Status>>,
) -> Problem {
    let known = BTreeMap::new();
    let mut writer = Writer { core, node: caller.id(), session, questions, outbound, known };
    loop {
        match writer.send_changes().await {
            // The session fell too far behind: the next snapshot contains what it missed.
            Ok(()) => {}
            Err(problem) => return problem,
        }
    }
}

pub(super) struct Writer<'a> {
    pub(super) core: &'a Core,
    pub(super) node: &'a NodeId,
    session: &'a Session,
    questions: mpsc::UnboundedReceiver<PortCheck>,
    outbound: &'a mpsc::Sender<Result<ManagerMessage, Status>>,
    /// The networks that the agent knows, with the level of each.
    pub(super) known: BTreeMap<NetworkId, Level>,
}

impl Writer<'_> {
    /// Sends a snapshot, and the changes after it until there is a gap.
    async fn send_changes(&mut self) -> Result<(), Problem> {
        let mut states = self.core.states();
        let mut reported = self.session.reported();
        // Subscribe before the full list is sent, so that nothing is missed in between.
        let (mut health, mut endpoints) = (self.core.health.subscribe(), self.core.endpoints.subscribe());
        let (known, mut news) = self.core.feed.subscribe(|view| Known::of(view, self.node));
        // Build the messages without the lock on the view.
        let mut snapshot = snapshot(known);
        // A removal before the subscription is not among the news.
        if self.core.records.node(self.node).await?.is_none() {
            return Err(removed(self.node));
        }
        snapshot.message.cluster = Some(self.core.cluster().into());
        self.known = snapshot.known;
        let (mut sent, mut known) = (snapshot.message.revision, snapshot.message.revision);
        self.send(Kind::Snapshot(snapshot.message)).await?;
        let now = states.borrow_and_update().clone();
        self.send(Kind::States(states_message(&now))).await?;
        for lease in &snapshot.asked {
            self.send(Kind::Cede(cede(lease))).await?;
        }
        self.send_all_soft().await?;
        let mut refused = self.core.endpoints.refused(self.node);
        if !refused.is_empty() {
            let (number, refused) = (*reported.borrow(), refused.clone());
            self.send(Kind::EndpointsTaken(EndpointsTaken { number, refused })).await?;
        }
        let mut faults = self.core.faults.changes();
        let mut problems = Vec::new();
        faults.mark_changed();
        let mut beat = interval(limits::HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Revisions first, so that calls that wait for them return soonest.
                biased;
                batch = news.recv() => match batch {
                    Ok(News::Batch(batch)) => {
                        known = batch.revision;
                        if self.send_batch(&batch).await? {
                            sent = known;
                        }
                    }
                    Ok(News::Gap) | Err(broadcast::error::RecvError::Lagged(_)) => return Ok(()),
                    Err(broadcast::error::RecvError::Closed) => {
                        return Err(Problem::new(ProblemKind::Unreachable, "the manager is ending"));
                    }
                },
                Some(check) = self.questions.recv() => self.send(Kind::PortCheck(check)).await?,
                news = health.recv() => self.send_health(news).await?,
                news = endpoints.recv() => {
                    self.send_endpoints(news).await?;
                    // Another node's endpoint may have released a name that one of this node's
                    // waits for.
                    let now = self.core.endpoints.refused(self.node);
                    if now != refused {
                        refused.clone_from(&now);
                        let number = *reported.borrow();
                        self.send(Kind::EndpointsTaken(EndpointsTaken { number, refused: now })).await?;
                    }
                }
                changed = states.changed() => {
                    if changed.is_err() {
                        return Err(Problem::new(ProblemKind::Unreachable, "the manager is ending"));
                    }
                    let now = states.borrow_and_update().clone();
                    self.send(Kind::States(states_message(&now))).await?;
                }
                Ok(()) = reported.changed() => {
                    let number = *reported.borrow_and_update();
                    refused = self.core.endpoints.refused(self.node);
                    let refused = refused.clone();
                    self.send(Kind::EndpointsTaken(EndpointsTaken { number, refused })).await?;
                }
                Ok(()) = faults.changed() => {
                    faults.mark_unchanged();
                    let now = self.core.faults.of(self.node);
                    if now != problems {
                        problems.clone_from(&now);
                        self.send(Kind::ReportProblems(ReportProblems { problems: now })).await?;
                    }
                }
                _ = beat.tick() => {
                    if known > sent {
                        // Send revisions that do not concern the agent as one.
                        self.send(Kind::Delta(Delta { revision: known, changes: Vec::new() })).await?;
                        sent = known;
                    } else {
                        self.send(Kind::Ping(Ping { unix_ms: clock::unix_ms() })).await?;
                    }
                }
            }
        }
    }

    /// Sends the changes of a revision for the agent; returns false if there are none.
    async fn send_batch(&mut self, batch: &Batch) -> Result<bool, Problem> {
        let is_removed =
            |change: &RecordChange| matches!(change, RecordChange::RemoveNode(id) if id == self.node);
        if batch.changes.iter().any(is_removed) {
            return Err(removed(self.node));
        }
        let with_lease = batch.changes_interest().then(|| self.networks_with_lease());
        let changes = batch.changes_for(self.node, &mut self.known);
        if !changes.is_empty() {
            self.send(Kind::Delta(Delta { revision: batch.revision, changes: changes.clone() })).await?;
            self.send_health_of_new(&changes).await?;
            if let Some(with_lease) = with_lease {
                let gained = self.networks_with_lease().difference(&with_lease).cloned().collect();
                self.send_network_endpoints(&gained).await?;
            }
        }
        for change in &batch.changes {
            match change {
                RecordChange::PutLease(lease) if awaits_answer(lease, self.node) => {
                    self.send(Kind::Cede(cede(lease))).await?;
                }
                RecordChange::Generation(generation) => self.send_generation(*generation).await?,
                _ => {}
            }
        }
        Ok(!changes.is_empty())
    }

    /// An agent that accepts nothing for too long loses its session, so that its queue is bounded.
    pub(super) async fn send(&self, kind: Kind) -> Result<(), Problem> {
        let message = ManagerMessage { kind: Some(kind) };
        match timeout(limits::SESSION_STALL, self.outbound.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Problem::new(ProblemKind::Unreachable, "the agent ended it")),
            Err(_) => Err(Problem::new(ProblemKind::Unreachable, "the agent does not read messages")),
        }
    }
}

struct AgentSnapshot {
    message: Snapshot,
    known: BTreeMap<NetworkId, Level>,
    /// The borrows that wait for this agent's answer. An earlier manager may have asked it already.
    asked: Vec<Lease>,
}

/// The part of a view that an agent receives.
struct Known {
    revision: u64,
    nodes: Vec<Node>,
    networks: Vec<(Level, NetworkRecords)>,
    asked: Vec<Lease>,
}

impl Known {
    fn of(view: &View, node: &NodeId) -> Self {
        let all = view.leases.values().flat_map(BTreeMap::values);
        Self {
            revision: view.revision,
            nodes: view.nodes.values().cloned().collect(),
            networks: view.networks_of(node).collect(),
            asked: all.filter(|lease| awaits_answer(lease, node)).cloned().collect(),
        }
    }
}

fn snapshot(known: Known) -> AgentSnapshot {
    let Known { revision, nodes, networks, asked } = known;
    let leases = || networks.iter().flat_map(|(_, records)| &records.leases);
    let services = || networks.iter().flat_map(|(_, records)| &records.services);
    AgentSnapshot {
        message: Snapshot {
            revision,
            cluster: None,
            nodes: nodes.iter().map(Into::into).collect(),
            networks: networks.iter().map(|(_, records)| (&records.network).into()).collect(),
            leases: leases().map(Into::into).collect(),
            managers: crate::enroll::manager_addresses(nodes.iter()),
            services: services().map(|records| (&*records.service).into()).collect(),
            backends: services().flat_map(|records| &records.backends).map(|b| (&**b).into()).collect(),
        },
        known: networks.iter().map(|(level, records)| (records.network.id.clone(), *level)).collect(),
        asked,
    }
}

fn awaits_answer(lease: &Lease, node: &NodeId) -> bool {
    matches!(&lease.state, LeaseState::Pending { from, .. } if from == node)
}

fn cede(lease: &Lease) -> Cede {
    Cede {
        network: lease.network.to_string(),
        address: lease.prefix.first().to_string(),
        revision: lease.revision,
    }
}

fn states_message(states: &Arc<BTreeMap<NodeId, NodeState>>) -> NodeStates {
    let entry = |(node, state): (&NodeId, &NodeState)| NodeStateEntry {
        node: node.to_string(),
        state: mesh_proto::v1::NodeState::from(*state).into(),
    };
    NodeStates { nodes: states.iter().map(entry).collect() }
}
