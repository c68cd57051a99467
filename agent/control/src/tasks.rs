//! Background tasks of a manager.

use std::sync::Arc;

use mesh_model::cluster::Cluster;
use mesh_model::{Network, NetworkId};
use mesh_store::{Compare, Revision, Txn};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tracing::warn;

use crate::core::Core;
use crate::feed::{Feed, News};
use crate::identity::{CertificateAuthority, PeerIdentity};
use crate::records::{RecordError, Records, Versioned, put};
use crate::sessions::follow_taken;
use crate::{keys, limits, services};

/// Prepares the state of a manager, and starts its tasks.
pub(crate) async fn start(
    records: Records,
    authority: CertificateAuthority,
    cluster: Cluster,
    own: PeerIdentity,
    tasks: &mut JoinSet<()>,
) -> Result<Arc<Core>, RecordError> {
    unmark_removals(&records).await?;
    let feed = Feed::start(&**records.store()).await?;
    let core = Arc::new(Core::new(records, feed, authority, cluster, own));
    let feeding = core.clone();
    tasks.spawn(async move { feeding.feed.run(feeding.records.store().clone()).await });
    let sweeping = core.clone();
    tasks.spawn(async move {
        if let Err(error) = services::sweep(&sweeping).await {
            warn!(%error, "cannot remove the backends of nodes that are gone");
        }
    });
    let watching = core.clone();
    tasks.spawn(async move { watch_nodes(&watching).await });
    let checking = core.clone();
    tasks.spawn(async move { follow_leases(&checking).await });
    let compacting = core.clone();
    tasks.spawn(async move { compact(&compacting).await });
    Ok(core)
}

/// Checks reported endpoints again whenever the leases of their network change: if an address moved
/// to another node, its former owner must not keep reporting an endpoint with it.
async fn follow_leases(core: &Arc<Core>) {
    let ((), mut news) = core.feed.subscribe(|_| ());
    loop {
        match news.recv().await {
            Ok(News::Batch(batch)) => {
                for network in batch.leased_networks() {
                    check_endpoints(core, Some(network));
                }
            }
            Ok(News::Gap) | Err(RecvError::Lagged(_)) => check_endpoints(core, None),
            Err(RecvError::Closed) => return,
        }
    }
}

fn check_endpoints(core: &Arc<Core>, network: Option<&NetworkId>) {
    for node in core.endpoints.reporters(network) {
        let taken = core.checked(&node, |checker| core.endpoints.check_again(checker, network));
        follow_taken(core, &node, taken);
    }
}

/// Derives the states of nodes at each event, and periodically.
async fn watch_nodes(core: &Core) {
    let mut revisions = core.feed.revisions();
    loop {
        tokio::select! {
            changed = revisions.changed() => {
                if changed.is_err() {
                    return;
                }
                core.follow_members();
            }
            () = core.liveness_changed.notified() => {}
            () = tokio::time::sleep(limits::LIVENESS_TICK) => {}
        }
        core.derive_states();
    }
}

/// Compacts the store's history, except for the last minutes, which watches may still need.
async fn compact(core: &Core) {
    let mut before = core.feed.view().revision;
    loop {
        tokio::time::sleep(limits::COMPACT_EVERY).await;
        if let Err(error) = core.records.store().compact(Revision(before)).await {
            warn!(%error, "cannot compact the store");
        }
        before = core.feed.view().revision;
    }
}

/// Removes the marks of networks whose removal an earlier manager did not complete. The removal
/// must be requested again.
async fn unmark_removals(records: &Records) -> Result<(), RecordError> {
    for Versioned { value, revision } in records.networks().await? {
        if value.removing {
            let key = keys::network(&value.id);
            let unchanged = Compare::mod_revision(key.clone(), revision);
            let txn = Txn::when([unchanged]).then([put(key, &Network { removing: false, ..value })]);
            // If the network was changed meanwhile, the mark belongs to that change.
            records.commit(txn).await?;
        }
    }
    Ok(())
}
