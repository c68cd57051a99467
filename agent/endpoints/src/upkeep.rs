//! What this node's endpoints need without a call: blocks ahead of need, and a detach when their
//! namespaces are gone.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::v1;
use mesh_proto::v1::control_client::ControlClient;
use mesh_session::Managers;
use mesh_state::{Agent, now};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::endpoints::Endpoints;

/// How often it is seen to it that blocks are leased ahead of need, and given back.
const TEND: Duration = Duration::from_secs(1);
/// A subnet that had no block to spare is not asked for again for so long.
const TEND_AGAIN: Duration = Duration::from_secs(30);

/// Detaches endpoints whose namespaces are gone.
pub async fn detach_lost(agent: Arc<Agent>, endpoints: Arc<Endpoints>) {
    let mut reconciliations = agent.reconciliations();
    while reconciliations.changed().await.is_ok() {
        let lost = reconciliations.borrow_and_update().lost.clone();
        if !lost.is_empty() {
            endpoints.remove_lost(&lost).await;
        }
    }
}

/// Leases blocks ahead of need, and releases idle ones.
pub async fn lease_ahead(agent: Arc<Agent>, managers: Arc<Managers>, endpoints: Arc<Endpoints>) {
    let mut ticks = interval(TEND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut not_before = Instant::now();
    loop {
        ticks.tick().await;
        if !managers.reachable() {
            continue;
        }
        if Instant::now() >= not_before && !endpoints.lease_ahead().await.is_empty() {
            not_before = Instant::now() + TEND_AGAIN;
        }
        agent.update(|state| state.pools.release_idle(now()));
        let released_leases = agent.read(|state| state.pools.released_leases());
        if released_leases.is_empty() {
            continue;
        }
        // After a restart the node must not use what it has reported as free.
        let saving = agent.clone();
        let saved = tokio::task::spawn_blocking(move || saving.save_everything()).await;
        if !matches!(saved, Ok(Ok(()))) {
            continue;
        }
        let Ok(connected) = managers.connected().await else { continue };
        for lease in released_leases {
            let request = v1::ReleaseLeaseRequest {
                network: lease.network.to_string(),
                prefix: lease.prefix.to_string(),
                revision: lease.revision,
            };
            if let Err(status) = ControlClient::new(connected.channel.clone()).release_lease(request).await {
                tracing::debug!(prefix = %lease.prefix, %status, "a block could not be given back yet");
            }
        }
    }
}
