//! Leases: the blocks of addresses from which each node allocates.

mod borrow;
mod decide;
pub(crate) mod desk;
mod quota;
mod request;
mod subnet;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_ipam::{CedeAnswer, Family};
use mesh_model::{Lease, Network, NetworkId, NodeId, Prefix, Role};
use mesh_proto::convert::{parse, parse_optional};
use mesh_proto::v1::{self, LeaseRequest, LeaseResponse, ReleaseLeaseRequest, ReleaseLeaseResponse};
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{Compare, Op};
use tracing::{info, warn};

use crate::access::Caller;
use crate::core::Core;
use crate::errors::usage;
use crate::records::{RecordError, Tries, Versioned};
use crate::resolve::resolve_network;
use crate::{keys, limits};

use self::request::{RequestedLease, Requester};
use self::subnet::{LeaseSet, change_op};

/// Grants the caller a lease, and returns once every live agent of the network can reach its
/// addresses.
pub(crate) async fn lease(
    core: &Arc<Core>,
    caller: &Caller,
    request: &LeaseRequest,
) -> Result<LeaseResponse, Problem> {
    let wanted = match parse_optional("address", &request.address).map_err(|e| usage(&e))? {
        Some(address) => RequestedLease::Address(address),
        None => RequestedLease::Any(family(request.family)?),
    };
    let network = resolve_network(core, &request.network).await?.value;
    let requester = Requester { node: caller.id().clone(), is_bounded: caller.role() != Role::Manager };
    let core = core.clone();
    // The task continues if the caller disconnects: a started borrow must be settled or withdrawn.
    let task = tokio::spawn(async move {
        let granted = decide::grant(&core, &network.id, &requester, wanted).await?;
        wait_applied(&core, &granted.network, &granted.others, granted.revision).await;
        Ok::<_, Problem>(LeaseResponse {
            network: Some((&granted.network).into()),
            lease: Some((&granted.lease).into()),
            revision: granted.revision,
        })
    });
    task.await.map_err(|error| {
        Problem::new(ProblemKind::Failed, format!("the lease request was aborted: {error}"))
    })?
}

fn family(number: u32) -> Result<Family, Problem> {
    match number {
        4 => Ok(Family::Ipv4),
        6 => Ok(Family::Ipv6),
        other => Err(Problem::new(
            ProblemKind::Usage,
            format!("address family {other} does not exist: use 4 or 6"),
        )),
    }
}

/// Waits until the other agents of the network have applied a revision. A late agent must not delay
/// the others for long. Until it has caught up, it drops packets to unknown addresses and counts
/// them.
async fn wait_applied(core: &Core, network: &Network, others: &[NodeId], revision: u64) {
    let late = core.sessions.wait_applied(others.iter().cloned(), revision, limits::APPLIED).await;
    if !late.is_empty() {
        warn!(network = %network.name, revision, ?late, "nodes have not applied a lease in time");
    }
}

/// Releases a lease of the caller, unless a newer lease of the same prefix has replaced it.
pub(crate) async fn release(
    core: &Core,
    caller: &Caller,
    request: &ReleaseLeaseRequest,
) -> Result<ReleaseLeaseResponse, Problem> {
    let network: NetworkId = parse("network", &request.network).map_err(|e| usage(&e))?;
    let prefix: Prefix = parse("prefix", &request.prefix).map_err(|e| usage(&e))?;
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let _turn = core.leases.turn(&network).await;
        // A removed network has no leases.
        let Some(set) = LeaseSet::read(core, &network).await? else { return Ok(ReleaseLeaseResponse {}) };
        let meant = set.find(&prefix).filter(|lease| lease.revision == request.revision);
        let Some(meant) = meant else { return Ok(ReleaseLeaseResponse {}) };
        if meant.node != *caller.id() {
            return Err(Problem::new(
                ProblemKind::Denied,
                format!("lease {prefix} of network {} belongs to another node", set.network().name),
            ));
        }
        let change = set.leases_around(&prefix).give_back(caller.id(), &prefix, request.revision);
        let Some(change) = change else { return Ok(ReleaseLeaseResponse {}) };
        if set.commit(core, None, [change_op(&network, change)]).await?.is_some() {
            core.leases.released(&network, prefix);
            return Ok(ReleaseLeaseResponse {});
        }
    }
}

/// Settles a borrow with its owner's answer. An answer to a settled borrow changes nothing.
pub(crate) async fn answered(core: &Core, owner: &NodeId, answer: &v1::CedeAnswer) -> Result<(), Problem> {
    let network: NetworkId = parse("network", &answer.network).map_err(|e| usage(&e))?;
    let address: IpAddr = parse("address", &answer.address).map_err(|e| usage(&e))?;
    let verdict = if answer.accepted { CedeAnswer::Ceded } else { CedeAnswer::Refused };
    info!(%owner, %network, %address, accepted = answer.accepted, "a borrow was answered");
    borrow::settle(core, &network, Prefix::single(address), answer.revision, Some(owner), verdict).await?;
    Ok(())
}

/// Returns the operations that delete all leases of a node, and the conditions under which they are
/// complete: no network was created and no lease taken meanwhile.
pub(crate) async fn forget_node(core: &Core, node: &NodeId) -> Result<(Vec<Compare>, Vec<Op>), RecordError> {
    let mut first =
        core.records.read([Op::get_range(keys::networks()), Op::get(keys::address_fence())]).await?;
    let networks: Vec<Versioned<Network>> = first.all()?;
    let mut compares = vec![first.fence(keys::address_fence()).unchanged()];
    let fences: Vec<_> = networks.iter().map(|network| keys::lease_fence(&network.value.id)).collect();
    let mut reads = vec![Op::get_range(keys::leases())];
    reads.extend(fences.iter().cloned().map(Op::get));
    let mut read = core.records.read(reads).await?;
    let leases = read.leases()?;
    // A fence must not be written for a removed network.
    compares.extend(networks.iter().map(|network| Compare::present(keys::network(&network.value.id))));
    let mut ops = Vec::new();
    let is_gone = |lease: &&Lease| lease.node == *node || subnet::is_pending_from(lease, node);
    let touched: BTreeSet<&NetworkId> = leases.iter().filter(is_gone).map(|lease| &lease.network).collect();
    for (network, key) in networks.iter().zip(fences) {
        let fence = read.fence(key);
        compares.push(fence.unchanged());
        if touched.contains(&network.value.id) {
            ops.push(fence.advance());
        }
    }
    ops.extend(
        leases.iter().filter(is_gone).map(|lease| Op::delete(keys::lease(&lease.network, &lease.prefix))),
    );
    Ok((compares, ops))
}
