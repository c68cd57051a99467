//! Whether this node reaches the nodes that it has something to do with, by VXLAN and by WireGuard.
//!
//! Managers learn by other probes which hosts are alive. This is about paths: a firewall between
//! two hosts interrupts theirs, while both are alive and reach everybody else. Backends behind an
//! interrupted path are not chosen here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_host::SharedKernel;
use mesh_model::NodeId;
use mesh_state::paths::{AT_ONCE, End, INTERVAL, Path, Paths};
use mesh_state::{Agent, DesiredTunnels, State};
use nix::time::{ClockId, clock_gettime};
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::probe::{open, packet};

/// Time that a probe's answer may take. A later answer counts for the next probe.
const GRACE: Duration = Duration::from_millis(50);
/// Interval between derivations of the paths from the cluster's records.
const RETARGET: Duration = Duration::from_secs(1);

/// Probes the paths of this node until it is cancelled.
pub async fn run(agent: Arc<Agent>, kernel: SharedKernel) {
    let mut paths = Paths::default();
    let mut retarget_at = Instant::now();
    let mut position = 0;
    let mut nonce = 0;
    let mut socket: Option<(IpAddr, UdpSocket)> = None;
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if Instant::now() >= retarget_at {
            paths.retarget(agent.read(|state| wanted(state, agent.id())));
            retarget_at = Instant::now() + RETARGET;
        }
        let probed = paths.some(position, AT_ONCE);
        if !probed.is_empty() {
            position = (position + probed.len()) % paths.count();
            let own = agent.node().data_path_addr;
            if socket.as_ref().is_none_or(|(address, _)| *address != own) {
                socket = open(own).await.ok().map(|socket| (own, socket));
            }
            if let Some((_, open)) = &socket {
                nonce += 1;
                let sent = send(open, &paths, &probed, nonce).await;
                if sent.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable) {
                    socket = None;
                }
            }
            sleep(GRACE).await;
            let arrived = kernel.call(|kernel| kernel.programs().paths()).await;
            // Without the programs nothing is known.
            let (Ok(arrived), Ok(now)) = (arrived, clock_gettime(ClockId::CLOCK_MONOTONIC)) else { continue };
            paths.judge(&probed, &arrived, now.into());
        }
        if agent.read(|state| state.paths.differ(&paths)) {
            report(&agent, &paths);
        }
    }
}

/// Publishes what has changed, and logs it.
fn report(agent: &Agent, paths: &Paths) {
    let before = agent.update(|state| std::mem::replace(&mut *state.paths, paths.clone()));
    let (before, now) = (before.unreachable(), paths.unreachable());
    for (path, before, now) in
        [("VXLAN", &before.clear, &now.clear), ("WireGuard", &before.encrypted, &now.encrypted)]
    {
        for node in now.difference(before) {
            tracing::warn!(%node, path, "the path to a node is interrupted");
        }
        for node in before.difference(now) {
            tracing::info!(%node, path, "the path to a node works again, or is not needed any more");
        }
    }
}

/// The paths that matter to this node: to nodes that have leases in its networks, or backends of
/// services that it knows; and to all, if it has backends of published ports itself.
fn wanted(state: &State, own: &NodeId) -> BTreeMap<Path, End> {
    let view = &state.view;
    let mut nodes: BTreeSet<&NodeId> = view.leases.values().map(|lease| &lease.node).collect();
    for (_, records) in view.services.iter() {
        nodes.extend(records.backends.values().map(|backend| &backend.node));
    }
    let has_published = view.services.published().any(|r| r.backends.values().any(|b| b.node == *own));
    if has_published {
        nodes.extend(view.nodes.keys());
    }
    let address = |node: &NodeId| Some(view.nodes.get(node)?.data_path_addr);
    let mut paths = BTreeMap::new();
    for node in nodes.into_iter().filter(|node| *node != own) {
        if let Some(address) = address(node) {
            let end = End { address, port: view.cluster.data_path_port };
            paths.insert(Path { node: node.clone(), encrypted: false }, end);
        }
    }
    let port = |node: &NodeId| Some(view.nodes.get(node)?.wireguard.as_ref()?.port);
    let peers = DesiredTunnels::of(view, own).map(|tunnels| tunnels.nodes).unwrap_or_default();
    for node in peers.into_values() {
        // The programs answer to the port that the probe came to.
        if let (Some(address), Some(theirs)) = (address(&node), port(&node))
            && port(own) == Some(theirs)
        {
            paths.insert(Path { node, encrypted: true }, End { address, port: theirs });
        }
    }
    paths
}

/// Sends one probe on each path. An error about one of them is what probes are to find out; the
/// last is returned for what it may say of the socket.
async fn send(socket: &UdpSocket, paths: &Paths, probed: &[(Path, End)], nonce: u64) -> io::Result<()> {
    let mut result = Ok(());
    for (path, End { address, port }) in probed {
        let probe = packet(nonce, paths.is_unanswered(path));
        if let Err(error) = socket.send_to(&probe, SocketAddr::new(*address, *port)).await {
            result = Err(error);
        }
    }
    result
}
