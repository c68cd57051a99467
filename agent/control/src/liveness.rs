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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn nodes(count: usize) -> Vec<NodeId> {
        (0..count).map(|n| format!("{n:024x}").parse().unwrap()).collect()
    }

    /// Nodes whose agents were all heard at `now`.
    fn all_ready(count: usize, now: Instant) -> (Vec<NodeId>, Liveness) {
        let nodes = nodes(count);
        let mut liveness = Liveness::default();
        liveness.set_nodes(nodes.iter().cloned().collect());
        for node in &nodes {
            liveness.heard(node, now);
        }
        (nodes, liveness)
    }

    #[test]
    fn each_node_is_probed_by_those_whose_target_it_is() {
        for count in 1..8 {
            let nodes: BTreeSet<NodeId> = nodes(count).into_iter().collect();
            for target in &nodes {
                let by_target: BTreeSet<_> = probers(&nodes, target).collect();
                let by_prober: BTreeSet<_> = nodes
                    .iter()
                    .filter(|prober| probe_targets(&nodes, prober).any(|t| t == target))
                    .collect();
                assert_eq!(by_target, by_prober);
                assert_eq!(by_target.len(), PROBED.min(count - 1));
                assert!(!by_target.contains(target));
            }
        }
    }

    #[test]
    fn a_node_whose_session_ended_is_unknown_until_probers_agree() {
        let now = Instant::now();
        let (nodes, mut liveness) = all_ready(3, now);
        liveness.closed(&nodes[2]);
        assert_eq!(liveness.states(now)[&nodes[2]], NodeState::Unknown);
        liveness.probed(&nodes[0], &nodes[2], false, now);
        assert_eq!(liveness.states(now)[&nodes[2]], NodeState::Unknown, "one of two probers has not spoken");
        liveness.probed(&nodes[1], &nodes[2], true, now);
        assert_eq!(liveness.states(now)[&nodes[2]], NodeState::Unknown, "one gets an answer");
        liveness.probed(&nodes[1], &nodes[2], false, now);
        assert_eq!(liveness.states(now)[&nodes[2]], NodeState::Down);
        liveness.heard(&nodes[2], now);
        assert_eq!(liveness.states(now)[&nodes[2]], NodeState::Ready);
    }

    #[test]
    fn an_agent_that_speaks_is_ready_whatever_probers_say() {
        let now = Instant::now();
        let (nodes, mut liveness) = all_ready(3, now);
        liveness.probed(&nodes[0], &nodes[2], false, now);
        liveness.probed(&nodes[1], &nodes[2], false, now);
        assert_eq!(liveness.states(now)[&nodes[2]], NodeState::Ready);
        for prober in &nodes[..2] {
            liveness.heard(prober, now + SILENT);
        }
        assert_eq!(liveness.states(now + SILENT)[&nodes[2]], NodeState::Down, "it is silent now");
    }

    #[test]
    fn a_prober_that_is_silent_itself_does_not_count() {
        let now = Instant::now();
        let (nodes, mut liveness) = all_ready(3, now);
        // Two hosts are unplugged at once: the last one's word is enough, and nobody's old word holds it up.
        liveness.probed(&nodes[1], &nodes[2], true, now);
        let later = now + SILENT;
        liveness.heard(&nodes[0], later);
        liveness.probed(&nodes[0], &nodes[2], false, later);
        assert_eq!(liveness.states(later)[&nodes[2]], NodeState::Down);
        assert_eq!(
            liveness.states(later)[&nodes[1]],
            NodeState::Ready,
            "nobody has said that it does not answer"
        );
    }

    #[test]
    fn a_report_does_not_count_for_ever() {
        let now = Instant::now();
        let (nodes, mut liveness) = all_ready(3, now);
        liveness.closed(&nodes[2]);
        liveness.probed(&nodes[0], &nodes[2], false, now);
        liveness.probed(&nodes[1], &nodes[2], false, now);
        let later = now + PROBE_REPORT;
        liveness.heard(&nodes[0], later);
        liveness.heard(&nodes[1], later);
        assert_eq!(liveness.states(later)[&nodes[2]], NodeState::Unknown);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Heard(usize),
        Closed(usize),
        Probed(usize, usize, bool),
        Pass(u64),
    }

    fn step(count: usize) -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..count).prop_map(Step::Heard),
            (0..count).prop_map(Step::Closed),
            (0..count, 0..count, any::<bool>()).prop_map(|(a, b, answering)| Step::Probed(a, b, answering)),
            (0u64..900).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn states_agree_with_what_was_heard(
            count in 1usize..6,
            steps in prop::collection::vec(step(5), 0..60),
        ) {
            let start = Instant::now();
            let nodes = nodes(count);
            let members: BTreeSet<NodeId> = nodes.iter().cloned().collect();
            let mut liveness = Liveness::default();
            liveness.set_nodes(members.clone());
            let mut now = start;
            let mut heard: BTreeMap<usize, Instant> = BTreeMap::new();
            let mut said: BTreeMap<(usize, usize), (bool, Instant)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Heard(node) if node < count => {
                        liveness.heard(&nodes[node], now);
                        heard.insert(node, now);
                    }
                    Step::Closed(node) if node < count => {
                        liveness.closed(&nodes[node]);
                        heard.remove(&node);
                        said.retain(|(prober, _), _| *prober != node);
                    }
                    Step::Probed(prober, target, answering) if prober < count && target < count => {
                        liveness.probed(&nodes[prober], &nodes[target], answering, now);
                        said.insert((prober, target), (answering, now));
                    }
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                    _ => {}
                }
                let states = liveness.states(now);
                prop_assert_eq!(states.len(), count);
                let speaks = |node: usize| heard.get(&node).is_some_and(|&at| now - at < SILENT);
                for (index, node) in nodes.iter().enumerate() {
                    let witnesses: Vec<usize> = (0..count)
                        .filter(|&prober| speaks(prober))
                        .filter(|&prober| probe_targets(&members, &nodes[prober]).any(|target| target == node))
                        .collect();
                    let fresh = |prober: usize| {
                        said.get(&(prober, index)).filter(|(_, at)| now - *at < PROBE_REPORT).map(|(answer, _)| *answer)
                    };
                    let answered = witnesses.iter().filter(|&&p| fresh(p) == Some(true)).count();
                    let unanswered = witnesses.iter().filter(|&&p| fresh(p) == Some(false)).count();
                    let has_session = heard.get(&index).is_some_and(|&at| now - at < SESSION_TIMEOUT);
                    let expected = if speaks(index) {
                        NodeState::Ready
                    } else if answered == 0 && unanswered > 0 && (unanswered >= 2 || unanswered == witnesses.len()) {
                        NodeState::Down
                    } else if has_session {
                        NodeState::Ready
                    } else {
                        NodeState::Unknown
                    };
                    prop_assert_eq!(states[node], expected);
                }
            }
        }
    }
}
