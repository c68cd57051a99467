//! What this node knows of its paths to other nodes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use mesh_ebpf_types::{Address, PROBE_REQUEST, PROBE_UNANSWERED, PROBED_BY_WIREGUARD, PathKey};
use mesh_model::NodeId;
use mesh_planner::services::Unreachable;

/// Interval between probes of a path, while there are no more than [`AT_ONCE`].
pub const INTERVAL: Duration = Duration::from_millis(300);
/// Paths that are probed in one interval. Of more, each is probed less often.
pub const AT_ONCE: usize = 32;
/// So many probes in a row without an answer mean that the path is interrupted.
const MISSES: u32 = 4;
/// A node whose own probes arrived within this time reaches this node; longer where paths are
/// probed in turn.
const ASKS: Duration = Duration::from_secs(1);

/// One way to another node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    /// The other node.
    pub node: NodeId,
    /// By WireGuard; else by VXLAN.
    pub encrypted: bool,
}

/// Where a path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Data-path address of the other node.
    pub address: IpAddr,
    /// UDP port there.
    pub port: u16,
}

impl Path {
    /// Key of what arrives by this path: answers (0), or the other node's own probes.
    fn key(&self, end: End, what: u32) -> PathKey {
        let by = if self.encrypted { PROBED_BY_WIREGUARD } else { 0 };
        PathKey { member: Address::from(end.address), kind: by | what }
    }
}

/// What is known of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PathState {
    end: End,
    last_answer: Option<Duration>,
    missed: u32,
    /// `None` before an answer or enough misses.
    reachable: Option<bool>,
    /// The other node's probes arrive here.
    asks: bool,
    /// They say that they are not answered.
    unanswered: bool,
}

impl PathState {
    fn is_broken(&self) -> bool {
        self.reachable == Some(false) || self.unanswered
    }
}

/// All paths of a node that matter to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths(BTreeMap<Path, PathState>);

impl Paths {
    /// Looks after these paths from now on. What is known of those that stay is kept.
    pub fn retarget(&mut self, wanted: BTreeMap<Path, End>) {
        let mut before = std::mem::take(&mut self.0);
        let keep = |(path, end)| {
            let known = before.remove(&path).filter(|known| known.end == end).unwrap_or(PathState {
                end,
                last_answer: None,
                missed: 0,
                reachable: None,
                asks: false,
                unanswered: false,
            });
            (path, known)
        };
        self.0 = wanted.into_iter().map(keep).collect();
    }

    /// Returns the number of paths.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// So many paths, from that position on, around the end.
    pub fn some(&self, from: usize, count: usize) -> Vec<(Path, End)> {
        let all = self.0.iter().cycle().skip(from).take(count.min(self.0.len()));
        all.map(|(path, known)| (path.clone(), known.end)).collect()
    }

    /// Whether this node's probes on a path are not answered.
    pub fn is_unanswered(&self, path: &Path) -> bool {
        self.0.get(path).is_some_and(|known| known.reachable == Some(false))
    }

    /// Takes account of what has arrived, after one more probe was sent on each of `probed`.
    pub fn judge(&mut self, probed: &[(Path, End)], arrived: &BTreeMap<PathKey, Duration>, now: Duration) {
        let turns = u32::try_from(self.count().div_ceil(AT_ONCE)).unwrap_or(u32::MAX);
        let fresh = ASKS.max(INTERVAL.saturating_mul(turns).saturating_mul(3));
        for (path, end) in probed {
            let Some(known) = self.0.get_mut(path) else { continue };
            let answer = arrived.get(&path.key(*end, 0)).copied();
            let lately = |what| {
                let arrived = arrived.get(&path.key(*end, what));
                arrived.is_some_and(|arrived| now.saturating_sub(*arrived) < fresh)
            };
            known.asks = lately(PROBE_REQUEST);
            known.unanswered = lately(PROBE_REQUEST | PROBE_UNANSWERED);
            if answer > known.last_answer {
                (known.last_answer, known.missed, known.reachable) = (answer, 0, Some(true));
            } else {
                known.missed = known.missed.saturating_add(1);
                if known.missed >= MISSES {
                    known.reachable = Some(false);
                }
            }
        }
    }

    /// Every path and whether it works. One of which nothing is known yet counts as one that does.
    pub fn all(&self) -> impl Iterator<Item = (&Path, bool)> {
        self.0.iter().map(|(path, known)| (path, !known.is_broken()))
    }

    /// The nodes that cannot be reached.
    pub fn unreachable(&self) -> Unreachable {
        let by = |encrypted: bool| -> BTreeSet<NodeId> {
            let broken = self.all().filter(|(path, works)| path.encrypted == encrypted && !works);
            broken.map(|(path, _)| path.node.clone()).collect()
        };
        Unreachable { clear: by(false), encrypted: by(true) }
    }

    /// Whether anything differs that others act on.
    pub fn differ(&self, other: &Self) -> bool {
        let visible = |known: &PathState| (known.reachable == Some(false), known.asks, known.unanswered);
        self.0.len() != other.0.len()
            || self.0.iter().zip(&other.0).any(|(a, b)| {
                a.0 != b.0
                    || a.1.reachable.is_none() != b.1.reachable.is_none()
                    || visible(a.1) != visible(b.1)
            })
    }

    /// What people have to know, a line each: of every interrupted path, but to nodes that are down
    /// themselves.
    pub fn problems(
        &self,
        is_down: impl Fn(&NodeId) -> bool,
        name: impl Fn(&NodeId) -> String,
    ) -> Vec<String> {
        let broken = self.0.iter().filter(|(path, known)| known.is_broken() && !is_down(&path.node));
        broken.map(|(path, known)| problem(path, *known, &name(&path.node))).collect()
    }
}

/// What is wrong with a path, the likely cause, and what to do.
fn problem(path: &Path, known: PathState, name: &str) -> String {
    let End { address, port } = known.end;
    let what = if path.encrypted { "encrypted networks, WireGuard" } else { "VXLAN" };
    if known.reachable != Some(false) {
        return format!(
            "node {name} ({address}) gets no answer from this node on UDP port {port} ({what}), although its packets \
             arrive: a firewall of this host drops them probably: allow UDP port {port} from {address}"
        );
    }
    let direction = if known.asks {
        format!("packets from this node do not arrive at {name}, those from {name} do")
    } else {
        format!("packets from {name}, or in both directions, are lost")
    };
    format!(
        "node {name} ({address}) cannot be reached on UDP port {port} ({what}): {direction}; a firewall drops them \
         probably: allow UDP port {port} between {address} and this node in both directions"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> NodeId {
        format!("{n:024x}").parse().unwrap()
    }

    fn end(n: u8) -> End {
        End { address: [192, 0, 2, n].into(), port: 4789 }
    }

    fn path(n: u8) -> Path {
        Path { node: id(n), encrypted: false }
    }

    fn paths(numbers: &[u8]) -> Paths {
        let mut paths = Paths::default();
        paths.retarget(numbers.iter().map(|n| (path(*n), end(*n))).collect());
        paths
    }

    fn arrived(n: u8, asked: bool, at: u64) -> (PathKey, Duration) {
        let what = if asked { PROBE_REQUEST } else { 0 };
        (path(n).key(end(n), what), Duration::from_millis(at))
    }

    #[test]
    fn a_node_whose_firewall_drops_what_arrives_hears_of_it_from_the_others() {
        let mut paths = paths(&[2]);
        let probed = paths.some(0, 1);
        let unanswered = path(2).key(end(2), PROBE_REQUEST | PROBE_UNANSWERED);
        let at = Duration::from_millis;
        let complaint = BTreeMap::from([arrived(2, false, 9), (unanswered, at(9))]);
        paths.judge(&probed, &complaint, at(10));
        assert_eq!(paths.unreachable().clear, [id(2)].into());
        assert!(!paths.is_unanswered(&path(2)), "this node has no reason to complain in turn");
        let problem = paths.problems(|_| false, |_| "h2".into()).remove(0);
        assert!(problem.contains("a firewall of this host"), "{problem}");
        paths.judge(&probed, &BTreeMap::from([arrived(2, false, 2000), (unanswered, at(9))]), at(2000));
        assert_eq!(paths.unreachable(), Unreachable::default());
    }

    #[test]
    fn a_path_is_interrupted_after_four_probes_without_an_answer_and_works_at_the_next_answer() {
        let mut paths = paths(&[2, 3]);
        let probed = paths.some(0, 2);
        for (round, broken) in [(1, false), (2, false), (3, false), (4, true), (5, true)] {
            let arrived = BTreeMap::from([arrived(3, false, round), arrived(2, true, 0)]);
            paths.judge(&probed, &arrived, Duration::from_millis(round));
            assert_eq!(paths.unreachable().clear.contains(&id(2)), broken, "after {round}");
        }
        assert_eq!(paths.unreachable().clear, [id(2)].into());
        let problems =
            paths.problems(|_| false, |node| if *node == id(2) { "h2".into() } else { "h3".into() });
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("h2 (192.0.2.2)") && problems[0].contains("4789"), "{problems:?}");
        assert!(problems[0].contains("packets from this node do not arrive at h2"), "{problems:?}");
        assert_eq!(paths.problems(|node| *node == id(2), |_| String::new()), Vec::<String>::new());
        paths.judge(&probed, &BTreeMap::from([arrived(2, false, 9)]), Duration::from_secs(9));
        assert_eq!(paths.unreachable(), Unreachable::default());
    }

    #[test]
    fn the_direction_is_told_by_whether_the_other_nodes_probes_arrive() {
        let mut paths = paths(&[2]);
        let probed = paths.some(0, 9);
        assert_eq!(probed.len(), 1);
        for _ in 0..4 {
            paths.judge(&probed, &BTreeMap::from([arrived(2, true, 0)]), Duration::from_mins(1));
        }
        let problem = paths.problems(|_| false, |_| "h2".into()).remove(0);
        assert!(problem.contains("packets from h2, or in both directions"), "{problem}");
    }

    #[test]
    fn of_many_paths_some_are_probed_each_time_and_all_in_turn() {
        let paths = paths(&[1, 2, 3, 4, 5]);
        let nodes = |from, count| -> Vec<NodeId> {
            paths.some(from, count).into_iter().map(|(path, _)| path.node).collect()
        };
        assert_eq!(nodes(0, 2), [id(1), id(2)]);
        assert_eq!(nodes(4, 3), [id(5), id(1), id(2)]);
        assert_eq!(nodes(0, 100).len(), 5);
    }
}
