//! Whether other hosts' datapaths answer, agent or no agent: which distinguishes a dead host from a
//! dead agent.
//!
//! Probes leave by an ordinary socket. The other side's underlay program sends each back, and our
//! own notes when it came: neither host's firewall sees it, and no user space is involved but for
//! the sending.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_control::{Standing, probe_targets};
use mesh_ebpf_types::Address;
use mesh_host::SharedKernel;
use mesh_model::{Node, NodeId, NodeState, Role};
use mesh_state::{Agent, Probes, State};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::probe::{open, packet};

/// Interval between probes of a node.
const INTERVAL: Duration = Duration::from_millis(200);
/// Time that a probe's answer may take. A later answer counts for the next probe.
const GRACE: Duration = Duration::from_millis(50);
/// So many probes in a row without an answer: the datapath is silent.
const MISSES: u32 = 4;
/// What is known of one probed node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Target {
    last_reply: Option<Duration>,
    missed: u32,
    answering: Option<bool>,
}

/// The probed nodes and the results of their probes.
#[derive(Debug, Default)]
struct Targets(BTreeMap<NodeId, (IpAddr, Target)>);

impl Targets {
    /// Probes these nodes from now on; what is known of those that stay is kept.
    fn retarget(&mut self, nodes: BTreeMap<NodeId, IpAddr>) {
        let mut before = std::mem::take(&mut self.0);
        let keep = |(id, address)| {
            let known = before.remove(&id).filter(|(was, _)| *was == address);
            (id, (address, known.map(|(_, target)| target).unwrap_or_default()))
        };
        self.0 = nodes.into_iter().map(keep).collect();
    }

    /// Takes account of when each address last answered, after one more probe of each was sent.
    fn judge(&mut self, replies: &BTreeMap<IpAddr, Duration>) {
        for (address, target) in self.0.values_mut() {
            let reply = replies.get(address).copied();
            if reply > target.last_reply {
                *target = Target { last_reply: reply, missed: 0, answering: Some(true) };
            } else {
                target.missed = target.missed.saturating_add(1);
                if target.missed >= MISSES {
                    target.answering = Some(false);
                }
            }
        }
    }

    /// Those about which something is known.
    fn results(&self) -> Probes {
        let known = self.0.iter().filter_map(|(id, (_, target))| Some((id.clone(), target.answering?)));
        known.collect()
    }
}

/// The nodes that this one probes, with their addresses. A node whose state is not known yet counts
/// as in session.
fn chosen(state: &State, own: &NodeId) -> BTreeMap<NodeId, IpAddr> {
    let standing = |(id, node): (&NodeId, &Node)| {
        let is_live = state.node_states.get(id).is_none_or(|state| *state == NodeState::Ready);
        (id.clone(), Standing { is_live, is_manager: node.role == Role::Manager })
    };
    let standings = state.view.nodes.iter().map(standing).collect();
    let address = |id: NodeId| Some((id.clone(), state.view.nodes.get(&id)?.data_path_addr));
    probe_targets(&standings, own).into_iter().filter_map(address).collect()
}

/// Probes until it is cancelled, and reports the results.
pub async fn run(agent: Arc<Agent>, kernel: SharedKernel, results: watch::Sender<Probes>) {
    let mut targets = Targets::default();
    let mut members = BTreeSet::new();
    let mut socket: Option<(IpAddr, UdpSocket)> = None;
    let mut nonce = 0;
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let own = agent.node();
        let (nodes, chosen, port) = agent.read(|state| {
            let address = |(id, node): (&NodeId, &mesh_model::Node)| (id.clone(), node.data_path_addr);
            let nodes: BTreeMap<_, _> = state.view.nodes.iter().map(address).collect();
            (nodes, chosen(state, &own.id), state.view.cluster.data_path_port)
        });
        targets.retarget(chosen);
        if targets.0.is_empty() {
            results.send_if_modified(|before| !std::mem::take(before).is_empty());
            continue;
        }
        if socket.as_ref().is_none_or(|(address, _)| *address != own.data_path_addr) {
            socket = open(own.data_path_addr).await.ok().map(|socket| (own.data_path_addr, socket));
        }
        if let Some((_, open)) = &socket {
            nonce += 1;
            let sent = send(open, &targets, port, nonce).await;
            if sent.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable) {
                socket = None;
            }
        }
        sleep(GRACE).await;
        let addresses: BTreeSet<Address> = nodes.values().map(|ip| Address::from(*ip)).collect();
        let forget = (addresses != members).then(|| addresses.clone());
        members = addresses;
        if let Some(replies) = replies(&kernel, forget).await {
            targets.judge(&replies);
            let seen = targets.results();
            results.send_if_modified(|before| {
                let changed = *before != seen;
                *before = seen;
                changed
            });
        }
    }
}

/// Sends one probe to each target. An error about one of them, such as no route to it, is what the
/// probes are to find out; the last is returned for what it may say of the socket.
async fn send(socket: &UdpSocket, targets: &Targets, port: u16, nonce: u64) -> io::Result<()> {
    let mut result = Ok(());
    for (address, _) in targets.0.values() {
        let to = SocketAddr::new(*address, port);
        if let Err(error) = socket.send_to(&packet(nonce, false), to).await {
            result = Err(error);
        }
    }
    result
}

/// When each address last answered; `None` while the programs cannot be asked.
async fn replies(
    kernel: &SharedKernel,
    forget_others: Option<BTreeSet<Address>>,
) -> Option<BTreeMap<IpAddr, Duration>> {
    let replies = kernel
        .call(move |kernel| {
            if let Some(members) = forget_others {
                kernel.programs().retain_probe_replies(&members)?;
            }
            kernel.programs().probe_replies()
        })
        .await
        .ok()?;
    Some(replies.into_iter().map(|(address, at)| (address.to_ip(), at)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> NodeId {
        format!("{n:024x}").parse().unwrap()
    }

    fn nodes(numbers: &[u8]) -> BTreeMap<NodeId, IpAddr> {
        numbers.iter().map(|n| (id(*n), [192, 0, 2, *n].into())).collect()
    }

    #[test]
    fn a_node_is_silent_after_four_probes_without_an_answer_and_back_at_the_next_answer() {
        let mut targets = Targets::default();
        targets.retarget(nodes(&[2]));
        let at = |ms| BTreeMap::from([(IpAddr::from([192, 0, 2, 2]), Duration::from_millis(ms))]);
        assert!(targets.results().is_empty());
        targets.judge(&at(10));
        assert_eq!(targets.results(), BTreeMap::from([(id(2), true)]));
        for _ in 0..3 {
            targets.judge(&at(10));
        }
        assert_eq!(targets.results(), BTreeMap::from([(id(2), true)]));
        targets.judge(&at(10));
        assert_eq!(targets.results(), BTreeMap::from([(id(2), false)]));
        targets.judge(&at(900));
        assert_eq!(targets.results(), BTreeMap::from([(id(2), true)]));
    }

    #[test]
    fn a_node_that_never_answered_is_silent_and_one_with_a_new_address_is_not_known() {
        let mut targets = Targets::default();
        targets.retarget(nodes(&[2]));
        for _ in 0..4 {
            targets.judge(&BTreeMap::new());
        }
        assert_eq!(targets.results(), BTreeMap::from([(id(2), false)]));
        targets.retarget(BTreeMap::from([(id(2), [192, 0, 2, 9].into())]));
        assert!(targets.results().is_empty());
    }
}
