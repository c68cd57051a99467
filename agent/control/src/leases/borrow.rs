//! Borrows: the owner is asked in its session, and what it answers is written.

use mesh_ipam::CedeAnswer;
use mesh_model::{Lease, LeaseState, NetworkId, NodeId, NodeState, Prefix};
use tokio::time::sleep;

use super::subnet::{LeaseSet, change_op, is_pending_from};
use crate::core::Core;
use crate::limits;
use crate::records::{RecordError, Tries};

/// How a borrow ended.
pub(super) enum Outcome {
    /// There is a lease of the prefix, written after the borrow.
    Written(Lease),
    /// The lease is gone.
    Removed,
    /// Nobody has answered in time; the borrow was withdrawn.
    Unanswered,
}

impl Outcome {
    /// The lease, if it is this node's to use.
    pub(super) fn lease_of(&self, node: &NodeId) -> Option<&Lease> {
        match self {
            Self::Written(lease) if lease.node == *node && lease.state == LeaseState::Active => Some(lease),
            _ => None,
        }
    }
}

/// Waits until the borrow from that node that was written at `revision` is settled; withdraws it
/// when that takes too long.
pub(super) async fn outcome(
    core: &Core,
    network: &NetworkId,
    (prefix, from): (Prefix, &NodeId),
    revision: u64,
) -> Result<Outcome, RecordError> {
    let down = async {
        // The sender lives as long as the core.
        let _ = core.states().wait_for(|states| states.get(from) == Some(&NodeState::Down)).await;
    };
    tokio::select! {
        outcome = settled(core, network, prefix, revision) => return Ok(outcome),
        () = down => {}
        () = sleep(limits::CEDE) => {}
    }
    settle(core, network, prefix, revision, None, CedeAnswer::Refused).await?;
    // The answer may have come at the last moment.
    let Some(set) = LeaseSet::read(core, network).await? else { return Ok(Outcome::Removed) };
    Ok(match set.find(&prefix) {
        Some(lease) if lease.revision != revision => Outcome::Written(lease.clone()),
        _ => Outcome::Unanswered,
    })
}

async fn settled(core: &Core, network: &NetworkId, prefix: Prefix, revision: u64) -> Outcome {
    let mut revisions = core.feed.revisions();
    loop {
        {
            let view = core.feed.view();
            if view.revision >= revision {
                match view.leases.get(network).and_then(|leases| leases.get(&prefix)) {
                    None => return Outcome::Removed,
                    Some(lease) if lease.revision != revision => return Outcome::Written(lease.clone()),
                    Some(_) => {}
                }
            }
        }
        // The sender lives as long as the core.
        let _ = revisions.changed().await;
    }
}

/// Writes what an answer to the borrow that was written at `revision` changes. `owner`: only if it
/// is this node's to answer.
pub(super) async fn settle(
    core: &Core,
    network: &NetworkId,
    prefix: Prefix,
    revision: u64,
    owner: Option<&NodeId>,
    answer: CedeAnswer,
) -> Result<(), RecordError> {
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let _turn = core.leases.turn(network).await;
        let Some(set) = LeaseSet::read(core, network).await? else { return Ok(()) };
        let Some(lease) = set.find(&prefix) else { return Ok(()) };
        if owner.is_some_and(|owner| !is_pending_from(lease, owner)) {
            return Ok(());
        }
        let Some(change) = set.leases_around(&prefix).settle(&prefix, revision, answer) else {
            return Ok(());
        };
        if set.commit(core, None, [change_op(network, change)]).await?.is_some() {
            return Ok(());
        }
    }
}
