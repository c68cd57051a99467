//! The status of the WireGuard engine.

use std::time::Duration;

use jiff::Timestamp;
use mesh_model::NodeId;
use mesh_proto::v1;
use mesh_reconciler::Tunnels;
use mesh_wireguard::PeerStatus;

use crate::member::Member;

/// Fills in the engine, what it dropped, and its peers, sorted by name; what is wrong with it is
/// among the problems.
pub(super) async fn fill_in(response: &mut v1::StatusResponse, member: &Member) {
    response.problems.extend(member.agent.read(|state| state.key_problem.clone()));
    let encryption = member.encryption.clone();
    let known = match tokio::task::spawn_blocking(move || encryption.status()).await {
        Ok(Ok(known)) => known,
        Ok(Err(problem)) => {
            response.problems.push(problem.message);
            None
        }
        Err(_) => None,
    };
    let Some(Tunnels { engine, reason, peers, drops }) = known else { return };
    engine.name().clone_into(&mut response.wireguard_engine);
    response.wireguard_engine_reason = reason;
    let now = Timestamp::now();
    let mut peers: Vec<_> = peers.into_iter().map(|(id, status)| peer(member, &id, &status, now)).collect();
    peers.sort_by(|a, b| (&a.node_name, &a.node_id).cmp(&(&b.node_name, &b.node_id)));
    response.wireguard_peers = peers;
    let drops = drops.into_iter();
    response.wireguard_drops = drops
        .map(|(reason, packets)| v1::WireguardDrops { reason: reason.name().to_owned(), packets })
        .collect();
}

fn peer(member: &Member, id: &NodeId, status: &PeerStatus, now: Timestamp) -> v1::WireguardPeer {
    let name = member.agent.read(|state| state.view.nodes.get(id).map(|node| node.name.to_string()));
    v1::WireguardPeer {
        node_id: id.to_string(),
        node_name: name.unwrap_or_default(),
        endpoint: status.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        last_handshake: status.last_handshake.and_then(|age| before(now, age)).unwrap_or_default(),
        received_bytes: status.rx_bytes,
        sent_bytes: status.tx_bytes,
        generation: status.generations.map(|(_, theirs)| theirs).unwrap_or_default(),
    }
}

/// The time so long ago, to the second.
fn before(now: Timestamp, age: Duration) -> Option<String> {
    let seconds = i64::try_from(age.as_secs()).ok()?;
    Some(Timestamp::from_second(now.as_second().checked_sub(seconds)?).ok()?.to_string())
}
