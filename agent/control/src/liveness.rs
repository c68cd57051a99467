//! The states of nodes, derived from messages of their agents and probes of their datapaths. Pure:
//! the time is a parameter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mesh_model::{NodeId, NodeState};

use crate::limits::{MESSAGE_GAP, PROBE_REPORT_VALIDITY, SESSION_TIMEOUT};

/// Number of other nodes that each node probes.
const PROBED: usize = 3;
/// A node is down if this many probers get no answer, or all of them if there are fewer.
const WITNESSES: usize = 2;

/// The inputs to the choice of probers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its agent is in session, so it can probe and report.
    pub is_live: bool,
    /// It is a manager's host.
    pub is_manager: bool,
}

/// Returns the nodes that `prober` probes: its successors in the ring of all nodes, sorted by id,
/// up to the third whose agent is in session. So each node is probed by the three preceding nodes
/// that can report, however many between them cannot. A manager's host also probes every node whose
/// agent is not in session.
pub fn probe_targets(nodes: &BTreeMap<NodeId, Standing>, prober: &NodeId) -> BTreeSet<NodeId> {
    use std::ops::Bound::{Excluded, Unbounded};
    let after = nodes.range::<NodeId, _>((Excluded(prober), Unbounded));
    let mut targets = BTreeSet::new();
    let mut live = 0;
    for (node, standing) in after.chain(nodes.range(..prober)) {
        if live == PROBED {
            break;
        }
        live += usize::from(standing.is_live);
        targets.insert(node.clone());
    }
    if nodes.get(prober).is_some_and(|prober| prober.is_manager) {
        let silent = nodes.iter().filter(|(node, standing)| !standing.is_live && *node != prober);
        targets.extend(silent.map(|(node, _)| node.clone()));
    }
    targets
}

/// Returns the nodes that can report about `target`, which is not in session: the three preceding
/// nodes in session in the ring, and the managers in session.
fn probers<'a>(
    nodes: &'a BTreeSet<NodeId>,
    managers: &'a BTreeSet<NodeId>,
    target: &'a NodeId,
    is_live: impl Fn(&NodeId) -> bool + Copy + 'a,
) -> BTreeSet<&'a NodeId> {
    use std::ops::Bound::{Excluded, Unbounded};
    let after = nodes.range::<NodeId, _>((Excluded(target), Unbounded));
    let ring = nodes.range(..target).rev().chain(after.rev());
    let managers = managers.iter().filter(|manager| *manager != target);
    ring.filter(|node| is_live(node)).take(PROBED).chain(managers.filter(|node| is_live(node))).collect()
}

#[derive(Debug, Clone, Copy)]
struct Report {
    answering: bool,
    at: Instant,
}

/// The messages and probes that a manager has received, with their times.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    nodes: BTreeSet<NodeId>,
    /// The managers among them.
    managers: BTreeSet<NodeId>,
    /// When the last message of the agent arrived, while it has a session.
    sessions: BTreeMap<NodeId, Instant>,
    /// By target, then by prober.
    reports: BTreeMap<NodeId, BTreeMap<NodeId, Report>>,
}

impl Liveness {
    /// Sets the current members, and which of them are managers.
    pub(crate) fn set_nodes(&mut self, nodes: BTreeSet<NodeId>, managers: BTreeSet<NodeId>) {
        self.managers = managers;
        self.sessions.retain(|node, _| nodes.contains(node));
        self.reports.retain(|target, _| nodes.contains(target));
        for reports in self.reports.values_mut() {
            reports.retain(|prober, _| nodes.contains(prober));
        }
        self.nodes = nodes;
    }

    /// Records a message in the node's session, which may be new. Returns true if the node was
    /// silent before.
    pub(crate) fn message_received(&mut self, node: &NodeId, now: Instant) -> bool {
        let before = self.sessions.insert(node.clone(), now);
        before.is_none_or(|before| now.saturating_duration_since(before) >= MESSAGE_GAP)
    }

    /// Records the end of the node's session.
    pub(crate) fn closed(&mut self, node: &NodeId) {
        self.sessions.remove(node);
        for reports in self.reports.values_mut() {
            reports.remove(node);
        }
    }

    /// Records a prober's report whether a node's datapath answers it.
    pub(crate) fn probed(&mut self, prober: &NodeId, target: &NodeId, answering: bool, now: Instant) {
        if self.nodes.contains(target) {
            self.reports
                .entry(target.clone())
                .or_default()
                .insert(prober.clone(), Report { answering, at: now });
        }
    }

    /// Returns the state of every node.
    pub(crate) fn states(&self, now: Instant) -> BTreeMap<NodeId, NodeState> {
        self.nodes.iter().map(|node| (node.clone(), self.state(node, now))).collect()
    }

    /// *Ready*: its agent is in session. *Down*: its agent is silent, and its probers get no
    /// answer. This requires two probers, or all if there are fewer, and no manager's host that
    /// gets an answer. *Unknown*: its agent has no session, and it is not known to be down.
    fn state(&self, node: &NodeId, now: Instant) -> NodeState {
        if self.silence(node, now).is_some_and(|silence| silence < MESSAGE_GAP) {
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
        // A silent prober may itself be disconnected.
        let is_live = |node: &NodeId| self.silence(node, now).is_some_and(|silence| silence < MESSAGE_GAP);
        let probers = probers(&self.nodes, &self.managers, target, is_live);
        let reports = self.reports.get(target);
        let (mut answered, mut unanswered) = (0, 0);
        for prober in &probers {
            let report = reports.and_then(|reports| reports.get(*prober));
            match report.filter(|report| now.saturating_duration_since(report.at) < PROBE_REPORT_VALIDITY) {
                // A worker's report may be false; a manager's host is trusted.
                Some(Report { answering: true, .. }) if self.managers.contains(*prober) => return false,
                Some(Report { answering: true, .. }) => answered += 1,
                Some(Report { answering: false, .. }) => unanswered += 1,
                None => {}
            }
        }
        unanswered > answered && unanswered >= WITNESSES.min(probers.len())
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

    /// Returns nodes whose agents have all sent a message at `now`.
    fn all_ready(count: usize, now: Instant) -> (Vec<NodeId>, Liveness) {
        let nodes = nodes(count);
        let mut liveness = Liveness::default();
        liveness.set_nodes(nodes.iter().cloned().collect(), nodes.iter().take(1).cloned().collect());
        for node in &nodes {
            liveness.message_received(node, now);
        }
        (nodes, liveness)
    }

    fn standings(live: &[bool], manager: usize) -> BTreeMap<NodeId, Standing> {
        let standing = |(index, &is_live): (usize, &bool)| Standing { is_live, is_manager: index == manager };
        nodes(live.len()).into_iter().zip(live.iter().enumerate().map(standing)).collect()
    }

    proptest! {
        /// For any set of nodes in session, each node has the maximum number of probers that can
        /// report, and they are those from which the manager expects reports.
        #[test]
        fn each_node_is_probed_by_three_that_can_report(
            live in prop::collection::vec(any::<bool>(), 1..80),
            manager in 0usize..80,
        ) {
            let manager = manager % live.len();
            let standings = standings(&live, manager);
            let all: BTreeSet<NodeId> = standings.keys().cloned().collect();
            let managers = BTreeSet::from([nodes(live.len())[manager].clone()]);
            for target in &all {
                let is_live = |node: &NodeId| standings[node].is_live;
                let by_prober: BTreeSet<&NodeId> = all
                    .iter()
                    .filter(|prober| is_live(prober) && probe_targets(&standings, prober).contains(target))
                    .collect();
                let expected = probers(&all, &managers, target, is_live);
                // A manager's host does not probe a node in session.
                let by_target = expected.iter().filter(|prober| by_prober.contains(*prober)).count();
                prop_assert_eq!(by_target, by_prober.len());
                let others = all.iter().filter(|node| *node != target && is_live(node)).count();
                prop_assert!(by_prober.len() >= PROBED.min(others), "{:?} of {}", by_prober, others);
                prop_assert!(!by_prober.contains(target));
                if !is_live(target) {
                    prop_assert_eq!(by_prober, expected);
                }
            }
        }
    }

    #[test]
    fn consecutive_hosts_that_are_all_unplugged_are_all_down() {
        let start = Instant::now();
        let (nodes, mut liveness) = all_ready(7, start);
        let mut now = start;
        // Each remaining host probes as its agent does, by the states that the manager sends; the
        // first is the manager.
        let is_gone = |index: usize| (2..6).contains(&index);
        for _ in 0..40 {
            now += Duration::from_millis(100);
            let states = liveness.states(now);
            let standing = |(node, state): (&NodeId, &NodeState)| {
                let standing =
                    Standing { is_live: *state == NodeState::Ready, is_manager: *node == nodes[0] };
                (node.clone(), standing)
            };
            let standings: BTreeMap<NodeId, Standing> = states.iter().map(standing).collect();
            for (_, node) in nodes.iter().enumerate().filter(|(index, _)| !is_gone(*index)) {
                liveness.message_received(node, now);
                for target in probe_targets(&standings, node) {
                    let target_index = nodes.iter().position(|other| *other == target).unwrap();
                    liveness.probed(node, &target, !is_gone(target_index), now);
                }
            }
        }
        let states = liveness.states(now);
        for (index, node) in nodes.iter().enumerate() {
            let expected = if is_gone(index) { NodeState::Down } else { NodeState::Ready };
            assert_eq!(states[node], expected, "host {index}");
        }
    }

    #[test]
    fn the_managers_own_host_suffices_if_no_other_prober_is_left() {
        let now = Instant::now();
        let (nodes, mut liveness) = all_ready(5, now);
        for node in &nodes[1..] {
            liveness.closed(node);
        }
        liveness.probed(&nodes[0], &nodes[3], false, now);
        assert_eq!(liveness.states(now)[&nodes[3]], NodeState::Down);
        assert_eq!(liveness.states(now)[&nodes[2]], NodeState::Unknown, "it has not been asked yet");
    }

    #[test]
    fn one_false_report_decides_nothing() {
        let now = Instant::now();
        let (nodes, mut liveness) = all_ready(5, now);
        liveness.closed(&nodes[3]);
        // The host answers: a single worker cannot make it count as down.
        liveness.probed(&nodes[1], &nodes[3], false, now);
        liveness.probed(&nodes[2], &nodes[3], true, now);
        liveness.probed(&nodes[0], &nodes[3], true, now);
        assert_eq!(liveness.states(now)[&nodes[3]], NodeState::Unknown);
        // The host does not answer: a single worker cannot make it count as alive.
        liveness.probed(&nodes[1], &nodes[3], true, now);
        liveness.probed(&nodes[2], &nodes[3], false, now);
        liveness.probed(&nodes[0], &nodes[3], false, now);
        assert_eq!(liveness.states(now)[&nodes[3]], NodeState::Down);
        // Two false reports do not outweigh the manager's own host.
        liveness.probed(&nodes[1], &nodes[3], false, now);
        liveness.probed(&nodes[0], &nodes[3], true, now);
        assert_eq!(liveness.states(now)[&nodes[3]], NodeState::Unknown);
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
        liveness.message_received(&nodes[2], now);
        assert_eq!(liveness.states(now)[&nodes[2]], NodeState::Ready);
    }

    #[test]
    fn an_agent_that_sends_messages_is_ready_whatever_probers_report() {
        let now = Instant::now();
        let (nodes, mut liveness) = all_ready(3, now);
        liveness.probed(&nodes[0], &nodes[2], false, now);
        liveness.probed(&nodes[1], &nodes[2], false, now);
        assert_eq!(liveness.states(now)[&nodes[2]], NodeState::Ready);
        for prober in &nodes[..2] {
            liveness.message_received(prober, now + MESSAGE_GAP);
        }
        assert_eq!(liveness.states(now + MESSAGE_GAP)[&nodes[2]], NodeState::Down, "it is silent now");
    }

    #[test]
    fn a_prober_that_is_silent_itself_does_not_count() {
        let now = Instant::now();
        let (nodes, mut liveness) = all_ready(3, now);
        // Two hosts are unplugged at once: the last one's report suffices, and no outdated report
        // contradicts it.
        liveness.probed(&nodes[1], &nodes[2], true, now);
        let later = now + MESSAGE_GAP;
        liveness.message_received(&nodes[0], later);
        liveness.probed(&nodes[0], &nodes[2], false, later);
        assert_eq!(liveness.states(later)[&nodes[2]], NodeState::Down);
        assert_eq!(
            liveness.states(later)[&nodes[1]],
            NodeState::Ready,
            "nobody has said that it does not answer"
        );
    }

    #[test]
    fn a_report_expires() {
        let now = Instant::now();
        let (nodes, mut liveness) = all_ready(3, now);
        liveness.closed(&nodes[2]);
        liveness.probed(&nodes[0], &nodes[2], false, now);
        liveness.probed(&nodes[1], &nodes[2], false, now);
        let later = now + PROBE_REPORT_VALIDITY;
        liveness.message_received(&nodes[0], later);
        liveness.message_received(&nodes[1], later);
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
        fn states_agree_with_the_received_messages(
            count in 1usize..6,
            steps in prop::collection::vec(step(5), 0..60),
        ) {
            let start = Instant::now();
            let nodes = nodes(count);
            let members: BTreeSet<NodeId> = nodes.iter().cloned().collect();
            let mut liveness = Liveness::default();
            let managers = BTreeSet::from([nodes[0].clone()]);
            liveness.set_nodes(members.clone(), managers.clone());
            let mut now = start;
            let mut heard: BTreeMap<usize, Instant> = BTreeMap::new();
            let mut said: BTreeMap<(usize, usize), (bool, Instant)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Heard(node) if node < count => {
                        liveness.message_received(&nodes[node], now);
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
                let speaks = |node: usize| heard.get(&node).is_some_and(|&at| now - at < MESSAGE_GAP);
                for (index, node) in nodes.iter().enumerate() {
                    let is_live = |node: &NodeId| speaks(nodes.iter().position(|other| other == node).unwrap());
                    let chosen = probers(&members, &managers, node, is_live);
                    let witnesses: Vec<usize> =
                        (0..count).filter(|&prober| chosen.contains(&nodes[prober])).collect();
                    let fresh = |prober: usize| {
                        said.get(&(prober, index)).filter(|(_, at)| now - *at < PROBE_REPORT_VALIDITY).map(|(answer, _)| *answer)
                    };
                    let answered = witnesses.iter().filter(|&&p| fresh(p) == Some(true)).count();
                    let unanswered = witnesses.iter().filter(|&&p| fresh(p) == Some(false)).count();
                    let has_session = heard.get(&index).is_some_and(|&at| now - at < SESSION_TIMEOUT);
                    let expected = if speaks(index) {
                        NodeState::Ready
                    } else if unanswered > answered
                        && (unanswered >= 2 || unanswered == witnesses.len())
                        && !(witnesses.contains(&0) && fresh(0) == Some(true))
                    {
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
