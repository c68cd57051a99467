//! Sessions of nodes with this manager, and the revisions that their kernels have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use mesh_model::{NodeId, PublishedPort};
use mesh_proto::v1::{PortCheck, PortCheckAnswer};
use mesh_proto::{Problem, ProblemKind};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::limits;

/// One live session.
#[derive(Debug)]
pub(crate) struct Session {
    node: NodeId,
    /// Distinguishes it from other sessions of the same node.
    number: u64,
    applied: watch::Sender<u64>,
    /// The newest revision for which a wait timed out.
    late: AtomicU64,
    reported: watch::Sender<u64>,
    end: watch::Sender<Option<Problem>>,
    questions: mpsc::UnboundedSender<PortCheck>,
    /// Port checks that wait for their answers, by number.
    asked: Mutex<BTreeMap<u64, oneshot::Sender<PortCheckAnswer>>>,
}

impl Session {
    /// Records that the agent's kernel has everything up to this revision.
    pub(crate) fn set_applied(&self, revision: u64) {
        self.applied.send_if_modified(|applied| {
            let is_later = revision > *applied;
            *applied = revision.max(*applied);
            is_later
        });
    }

    /// Returns whether its agent still has not applied a revision for which a wait timed out.
    fn is_late(&self) -> bool {
        *self.applied.borrow() < self.late.load(Ordering::Relaxed)
    }

    /// Records that the agent's report with this number was processed.
    pub(super) fn set_reported(&self, number: u64) {
        self.reported.send_replace(number);
    }

    /// Follows [`Session::set_reported`].
    pub(super) fn reported(&self) -> watch::Receiver<u64> {
        self.reported.subscribe()
    }

    /// Passes on the agent's answer to a port check.
    pub(super) fn answered(&self, answer: PortCheckAnswer) {
        let asked = self.asked.lock().remove(&answer.number);
        // The waiting call may be gone.
        let _: Option<Result<_, _>> = asked.map(|asked| asked.send(answer));
    }

    /// Returns the answer about these ports; `None` if the session ends first.
    async fn check_ports(&self, number: u64, ports: &[PublishedPort]) -> Option<PortCheckAnswer> {
        let (answer, answered) = oneshot::channel();
        self.asked.lock().insert(number, answer);
        let ports = ports.iter().map(Into::into).collect();
        self.questions.send(PortCheck { number, ports }).ok()?;
        tokio::select! {
            answer = answered => answer.ok(),
            _ = self.ended() => None,
        }
    }

    fn forget_question(&self, number: u64) {
        self.asked.lock().remove(&number);
    }

    /// Waits until another task ends the session.
    pub(super) async fn ended(&self) -> Problem {
        let mut end = self.end.subscribe();
        let reason = end.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| Problem::new(ProblemKind::Unreachable, "the manager is ending"))
    }

    fn finish(&self, problem: Problem) {
        self.end.send_replace(Some(problem));
    }
}

/// All live sessions of this manager: at most one for each node.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    live: Mutex<BTreeMap<NodeId, Arc<Session>>>,
    seen: Mutex<BTreeMap<NodeId, Timestamp>>,
    /// By how many milliseconds the clocks of nodes in session are ahead of this host's.
    clocks: Mutex<BTreeMap<NodeId, i64>>,
    /// Counts the started sessions.
    begun: watch::Sender<u64>,
    numbers: AtomicU64,
    questions: AtomicU64,
}

/// An agent's answer about its host's sockets.
#[derive(Debug)]
pub(crate) enum PortAnswer {
    /// The ports that they use.
    Taken(Vec<PublishedPort>),
    /// The agent cannot list them, with the reason.
    Failed(String),
    /// The agent has a session, but did not answer in time.
    Silent,
    /// The agent has no session.
    Away,
}

impl Sessions {
    /// Begins the session of a node, and ends an older one. Returns the port checks to send to the
    /// agent.
    pub(super) fn begin(&self, node: &NodeId) -> (Arc<Session>, mpsc::UnboundedReceiver<PortCheck>) {
        let (ask, questions) = mpsc::unbounded_channel();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Session {
            node: node.clone(),
            number,
            applied: watch::Sender::new(0),
            late: AtomicU64::new(0),
            reported: watch::Sender::new(0),
            end: watch::Sender::new(None),
            questions: ask,
            asked: Mutex::default(),
        });
        if let Some(old) = self.live().insert(node.clone(), session.clone()) {
            old.finish(Problem::new(ProblemKind::Conflict, "a newer session of the same node began"));
        }
        self.begun.send_modify(|begun| *begun += 1);
        (session, questions)
    }

    /// Ends a session; returns false if another one has replaced it.
    pub(super) fn end(&self, session: &Session) -> bool {
        let mut live = self.live();
        let is_current = live.get(&session.node).is_some_and(|current| current.number == session.number);
        if is_current {
            live.remove(&session.node);
            self.clocks().remove(&session.node);
            // Ends all waits for its agent.
            session.finish(Problem::new(ProblemKind::Unreachable, "the session is over"));
        }
        is_current
    }

    /// Ends all sessions.
    pub(crate) fn end_all(&self) {
        for session in self.live().values() {
            session.finish(
                Problem::new(ProblemKind::Unreachable, "the manager is ending").hint("connect again later"),
            );
        }
    }

    /// Asks the agents of these nodes which of these ports sockets of their hosts use.
    pub(crate) async fn check_ports(
        &self,
        nodes: Vec<NodeId>,
        ports: &[PublishedPort],
        within: Duration,
    ) -> Vec<(NodeId, PortAnswer)> {
        let number = self.questions.fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + within;
        let asks = nodes.into_iter().map(|node| async move {
            let answer = self.request_port_check(&node, number, ports, deadline).await;
            (node, answer)
        });
        join_all(asks).await
    }

    /// Asks one agent. If its session ends meanwhile, the node does not count as away: its agent
    /// may reconnect at once.
    async fn request_port_check(
        &self,
        node: &NodeId,
        number: u64,
        ports: &[PublishedPort],
        deadline: Instant,
    ) -> PortAnswer {
        let mut begun = self.begun.subscribe();
        let mut away_at = None;
        loop {
            begun.mark_unchanged();
            let session = self.live().get(node).cloned();
            let Some(session) = session else {
                match away_at {
                    Some(at) if timeout_at(at, begun.changed()).await.is_ok() => continue,
                    _ => return PortAnswer::Away,
                }
            };
            let answer = timeout_at(deadline, session.check_ports(number, ports)).await;
            session.forget_question(number);
            match answer {
                Err(_) => return PortAnswer::Silent,
                Ok(None) => away_at = Some(deadline.min(Instant::now() + limits::RESUME)),
                Ok(Some(answer)) if !answer.failure.is_empty() => return PortAnswer::Failed(answer.failure),
                Ok(Some(answer)) => {
                    let taken = answer.taken.into_iter().map(PublishedPort::try_from);
                    return taken.collect::<Result<_, _>>().map_or_else(
                        |error| PortAnswer::Failed(format!("its answer is not valid: {error}")),
                        PortAnswer::Taken,
                    );
                }
            }
        }
    }

    /// Returns whether the node has a session.
    pub(crate) fn is_live(&self, node: &NodeId) -> bool {
        self.live().contains_key(node)
    }

    /// Returns whether the node has a session and its kernel has this revision.
    pub(crate) fn has_applied(&self, node: &NodeId, revision: u64) -> bool {
        self.live().get(node).is_some_and(|session| *session.applied.borrow() >= revision)
    }

    /// Waits until each of these nodes has this revision in its kernel or has no session. Returns
    /// those that have neither when the time is up. Later calls do not wait for them until they
    /// have caught up, so a hanging agent delays only one change.
    pub(crate) async fn wait_applied(
        &self,
        nodes: impl IntoIterator<Item = NodeId>,
        revision: u64,
        within: Duration,
    ) -> Vec<NodeId> {
        let deadline = Instant::now() + within;
        let waits = nodes
            .into_iter()
            .map(|node| async move { (!self.applied(&node, revision, deadline).await).then_some(node) });
        join_all(waits).await.into_iter().flatten().collect()
    }

    /// Returns true once the node has the revision or has no session, false if it is late.
    async fn applied(&self, node: &NodeId, revision: u64, deadline: Instant) -> bool {
        loop {
            let Some(session) = self.live().get(node).cloned() else { return true };
            if session.is_late() {
                return false;
            }
            let mut applied = session.applied.subscribe();
            tokio::select! {
                _ = applied.wait_for(|applied| *applied >= revision) => return true,
                // The node may have a new session.
                _ = session.ended() => {}
                () = sleep_until(deadline) => {
                    session.late.fetch_max(revision, Ordering::Relaxed);
                    return false;
                }
            }
        }
    }

    /// Records that a message of the node's agent has arrived.
    pub(crate) fn record_seen(&self, node: &NodeId) {
        self.seen.lock().insert(node.clone(), Timestamp::now());
    }

    /// Returns when the last message of the node's agent arrived, since this manager started.
    pub(crate) fn last_seen(&self, node: &NodeId) -> Option<Timestamp> {
        self.seen.lock().get(node).copied()
    }

    /// Records by how many milliseconds a node's clock is ahead of this host's.
    pub(super) fn set_clock(&self, node: &NodeId, ahead_ms: i64) {
        self.clocks().insert(node.clone(), ahead_ms);
    }

    /// Returns how far the clocks of the nodes in session are ahead of this host's, in
    /// milliseconds.
    pub(crate) fn clocks_ahead(&self) -> BTreeMap<NodeId, i64> {
        self.clocks().clone()
    }

    fn clocks(&self) -> MutexGuard<'_, BTreeMap<NodeId, i64>> {
        self.clocks.lock()
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Session>>> {
        self.live.lock()
    }
}
