//! The state of nodes from what is heard of their agents and of their datapaths. Pure: time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mesh_model::{NodeId, NodeState};

use crate::limits::{PROBE_REPORT, SESSION_TIMEOUT, SILENT};

/// Each node probes so many others.
const PROBED: usize = 3;
/// So many probers without an answer, or all that there are, make a node down.
const WITNESSES: usize = 2;

/// The nodes that `prober` probes: the three that follow it in the ring of all nodes, which is sorted by id.
pub fn probe_targets<'a>(
    nodes: &'a BTreeSet<NodeId>,
    prober: &'a NodeId,
) -> impl Iterator<Item = &'a NodeId> {
    use std::ops::Bound::{Excluded, Unbounded};
    let after = nodes.range::<NodeId, _>((Excluded(prober), Unbounded));
    after.chain(nodes.range(..prober)).take(PROBED)
}

/// The nodes that probe `target`.
fn probers<'a>(nodes: &'a BTreeSet<NodeId>, target: &'a NodeId) -> impl Iterator<Item = &'a NodeId> {
    use std::ops::Bound::{Excluded, Unbounded};
    let after = nodes.range::<NodeId, _>((Excluded(target), Unbounded));
    nodes.range(..target).rev().chain(after.rev()).take(PROBED)
}

#[derive(Debug, Clone, Copy)]
struct Report {
    answering: bool,
    at: Instant,
}

/// What a manager has heard, when.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    nodes: BTreeSet<NodeId>,
    /// When the agent was last heard in its session, while it has one.
    sessions: BTreeMap<NodeId, Instant>,
    /// By target, then by prober.
    reports: BTreeMap<NodeId, BTreeMap<NodeId, Report>>,
}

impl Liveness {
    /// The members, now.
    pub(crate) fn set_nodes(&mut self, nodes: BTreeSet<NodeId>) {
        self.sessions.retain(|node, _| nodes.contains(node));
        self.reports.retain(|target, _| nodes.contains(target));
        for reports in self.reports.values_mut() {
            reports.retain(|prober, _| nodes.contains(prober));
        }
        self.nodes = nodes;
    }

    /// A message came in the node's session, which may be new. True when the node was silent before.
    pub(crate) fn heard(&mut self, node: &NodeId, now: Instant) -> bool {
        let before = self.sessions.insert(node.clone(), now);
        before.is_none_or(|before| now.saturating_duration_since(before) >= SILENT)
    }

    /// The node's session has ended.
    pub(crate) fn closed(&mut self, node: &NodeId) {
        self.sessions.remove(node);
        for reports in self.reports.values_mut() {
            reports.remove(node);
        }
    }

    /// A prober said whether a node's datapath answers it.
    pub(crate) fn probed(&mut self, prober: &NodeId, target: &NodeId, answering: bool, now: Instant) {
        if self.nodes.contains(target) {
            self.reports
                .entry(target.clone())
                .or_default()
                .insert(prober.clone(), Report { answering, at: now });
        }
    }

    /// The state of every node.
    pub(crate) fn states(&self, now: Instant) -> BTreeMap<NodeId, NodeState> {
        self.nodes.iter().map(|node| (node.clone(), self.state(node, now))).collect()
    }

    /// *Ready*: its agent speaks. *Down*: its agent does not speak, and of the probers that do, two (or all, if fewer) get
    /// no answer and none gets one. *Unknown*: its agent has no session, and nobody knows worse.
    fn state(&self, node: &NodeId, now: Instant) -> NodeState {
        if self.silence(node, now).is_some_and(|silence| silence < SILENT) {
            NodeState::Ready
        } else if self.is_unanswered(node, now) {
            NodeState::Down
        } else if self.silence(node, now).is_some_and(|silence| silence < SESSION_TIMEOUT) {
            NodeState::Ready
        } else {
            NodeState::Unknown
        }
    }

    fn silence(&self, node: &NodeId, now: Instant) -> Option<std::time::Duration> {
        self.sessions.get(node).map(|&heard| now.saturating_duration_since(heard))
    }

    fn is_unanswered(&self, target: &NodeId, now: Instant) -> bool {
        let reports = self.reports.get(target);
        let (mut eligible, mut unanswered) = (0, 0);
        for prober in probers(&self.nodes, target) {
            // A prober that is silent itself may be the one that is cut off.
            if self.silence(prober, now).is_none_or(|silence| silence >= SILENT) {
                continue;
            }
            eligible += 1;
            match reports.and_then(|reports| reports.get(prober)) {
                Some(report) if now.saturating_duration_since(report.at) >= PROBE_REPORT => {}
                Some(Report { answering: true, .. }) => return false,
                Some(Report { answering: false, .. }) => unanswered += 1,
                None => {}
            }
        }
        eligible > 0 && unanswered >= WITNESSES.min(eligible)
    }
}
