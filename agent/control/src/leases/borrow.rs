//! Borrows: asks the owner in its session, and writes the result.

use mesh_ipam::CedeAnswer;
use mesh_model::{Lease, LeaseState, NetworkId, NodeId, NodeState, Prefix};
use tokio::time::sleep;

use super::subnet::{LeaseSet, change_op, is_pending_from};
use crate::core::Core;
use crate::limits;
use crate::records::{RecordError, Tries};

/// The result of a borrow.
pub(super) enum Outcome {
    /// There is a lease of the prefix, written after the borrow.
    Written(Lease),
    /// The lease is gone.
    Removed,
    /// No answer arrived in time; the borrow was withdrawn.
    Unanswered,
}

impl Outcome {
    /// Returns the lease, if this node may use it.
    pub(super) fn lease_of(&self, node: &NodeId) -> Option<&Lease> {
        match self {
            Self::Written(lease) if lease.node == *node && lease.state == LeaseState::Active => Some(lease),
            _ => None,
        }
    }
}

/// Waits until the borrow from that node, written at `revision`, is settled. Withdraws it after a
/// timeout.
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
    // The answer may have arrived at the last moment.
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

/// Writes the result of an answer to the borrow that was written at `revision`. `owner`: only if
/// this node is the one to answer.
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
