//! Removing a network: only if no node has an endpoint in it, and so that none can get one
//! meanwhile.
//!
//! The network is marked first. An agent that has applied the mark attaches no more endpoints to
//! it, and has reported all that it attached before. So once all agents have applied it, the
//! reports are complete.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_model::{Network, NodeId};
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_store::{Compare, KeyValue, Op, Revision, Txn};
use tracing::{info, warn};

use super::endpoints;
use crate::core::Core;
use crate::errors::being_removed;
use crate::records::{RecordError, Versioned, put};
use crate::resolve::{check_removable, resolve_network};
use crate::{keys, limits};

/// Maximum number of endpoints or nodes that a message names.
const NAMED: usize = 3;
/// If there are more services than this, they are not counted.
const MAX_COUNTED: usize = 1000;

/// Removes a network.
pub(crate) async fn remove(core: &Arc<Core>, text: &str) -> Result<Network, Problem> {
    let network = resolve_network(core, text).await?;
    check_removable("network", text, &network.value.name)?;
    let core = core.clone();
    // The task continues if the caller disconnects: a network must not stay marked.
    let task = tokio::spawn(async move { remove_one(&core, network).await });
    task.await
        .map_err(|error| Problem::new(ProblemKind::Failed, format!("the removal was aborted: {error}")))?
}

/// Removes every network that has no endpoint. Keeps those that turn out to have one.
pub(crate) async fn prune(core: &Arc<Core>) -> Result<Vec<Network>, Problem> {
    let mut removed = Vec::new();
    for network in core.records.networks().await? {
        match remove(core, network.value.id.as_str()).await {
            Ok(network) => removed.push(network),
            Err(problem) if matches!(problem.kind, ProblemKind::Conflict | ProblemKind::NotFound) => {
                info!(network = %network.value.name, %problem, "prune kept a network");
            }
            Err(problem) => return Err(problem),
        }
    }
    Ok(removed)
}

async fn remove_one(core: &Core, network: Versioned<Network>) -> Result<Network, Problem> {
    let Versioned { value: network, revision } = network;
    let name = &network.name;
    if network.removing {
        return Err(being_removed(name));
    }
    // Most refusals need no request to other nodes.
    check_unused(core, &network)?;
    check_no_services(core, &network).await?;
    check_holders_live(core, &network, &holders(core, &network).await?)?;
    let Some(marked) = mark(core, &network, revision).await? else {
        return Err(Problem::new(ProblemKind::Conflict, format!("network {name} was changed meanwhile"))
            .hint("try again"));
    };
    let removed = remove_marked(core, &network, marked).await;
    if removed.is_err()
        && let Err(error) = unmark(core, &network, marked).await
    {
        warn!(network = %name, %error, "cannot clear the removal mark of a network");
    }
    removed.map(|()| network)
}

/// Checks whether the network could be removed without its services; `services`: those that would
/// remain.
pub(crate) async fn check_removal(
    core: &Core,
    network: &Network,
    services: Vec<String>,
) -> Result<(), Problem> {
    if network.removing {
        return Err(being_removed(&network.name));
    }
    check_unused(core, network)?;
    check_unnamed(network, services)?;
    check_holders_live(core, network, &holders(core, network).await?)
}

/// Marks the network, so that it accepts no new endpoints and leases.
async fn mark(core: &Core, network: &Network, revision: Revision) -> Result<Option<Revision>, RecordError> {
    let key = keys::network(&network.id);
    let marked = Network { removing: true, ..network.clone() };
    let txn = Txn::when([Compare::mod_revision(key.clone(), revision)]).then([put(key, &marked)]);
    core.records.commit(txn).await
}

async fn unmark(core: &Core, network: &Network, marked: Revision) -> Result<(), RecordError> {
    let key = keys::network(&network.id);
    let txn = Txn::when([Compare::mod_revision(key.clone(), marked)]).then([put(key, network)]);
    core.records.commit(txn).await.map(drop)
}

async fn remove_marked(core: &Core, network: &Network, marked: Revision) -> Result<(), Problem> {
    // From here on no node gets a lease, so these are all the nodes to ask.
    let holders = holders(core, network).await?;
    core.sessions.wait_applied(holders.iter().cloned(), marked.0, limits::REMOVING).await;
    check_holders_live(core, network, &holders)?;
    if let Some(late) = holders.iter().find(|node| !core.sessions.has_applied(node, marked.0)) {
        return Err(Problem::new(
            ProblemKind::Unreachable,
            format!(
                "network {} was not removed: node {} did not respond in time",
                network.name,
                node_name(core, late)
            ),
        )
        .hint("try again"));
    }
    check_unused(core, network)?;
    // No service is created in a marked network.
    check_no_services(core, network).await?;
    let key = keys::network(&network.id);
    let ops = [
        Op::delete(key.clone()),
        Op::delete(keys::network_name(&network.name)),
        Op::delete(keys::vni(network.vni)),
        Op::delete_range(keys::leases_of(&network.id)),
        Op::delete(keys::lease_fence(&network.id)),
    ];
    match core.records.commit(Txn::when([Compare::mod_revision(key, marked)]).then(ops)).await? {
        Some(_) => {
            info!(network = %network.id, name = %network.name, "a network was removed");
            Ok(())
        }
        None => Err(Problem::new(
            ProblemKind::Conflict,
            format!("network {} was changed meanwhile", network.name),
        )
        .hint("try again")),
    }
}

async fn holders(core: &Core, network: &Network) -> Result<BTreeSet<NodeId>, RecordError> {
    Ok(core.records.leases_of(&network.id).await?.into_iter().map(|lease| lease.node).collect())
}

/// Checks that no node has reported an endpoint of the network.
fn check_unused(core: &Core, network: &Network) -> Result<(), Problem> {
    let endpoints = endpoints(core, Some(&network.id));
    if endpoints.is_empty() {
        return Ok(());
    }
    let named = endpoints
        .iter()
        .map(|endpoint: &v1::Endpoint| format!("{} on {}", endpoint.name, endpoint.node_name));
    Err(Problem::new(
        ProblemKind::Conflict,
        format!("network {} is in use by {}", network.name, listed(named.collect())),
    )
    .hint("detach them first: meshctl endpoint detach"))
}

/// Checks that the network has no service.
async fn check_no_services(core: &Core, network: &Network) -> Result<(), Problem> {
    let found = core.records.store().range(keys::service_names(&network.id), None, Some(MAX_COUNTED)).await;
    let found = found.map_err(RecordError::from)?.kvs;
    let name = |kv: &KeyValue| kv.key.as_str()?.rsplit('/').next().map(str::to_owned);
    check_unnamed(network, found.iter().filter_map(name).collect())
}

/// Checks that the network has none of these services.
fn check_unnamed(network: &Network, names: Vec<String>) -> Result<(), Problem> {
    if names.is_empty() {
        return Ok(());
    }
    Err(Problem::new(
        ProblemKind::Conflict,
        format!("network {} is in use by service {}", network.name, listed(names)),
    )
    .hint("remove it first: meshctl service rm"))
}

/// Refuses if a node that may have endpoints cannot be asked.
fn check_holders_live(core: &Core, network: &Network, holders: &BTreeSet<NodeId>) -> Result<(), Problem> {
    let away: Vec<String> = holders
        .iter()
        .filter(|node| !core.sessions.is_live(node))
        .map(|node| node_name(core, node))
        .collect();
    let Some(first) = away.first().cloned() else { return Ok(()) };
    Err(Problem::new(
        ProblemKind::Conflict,
        format!("network {} may be in use on {}, which cannot be reached now", network.name, listed(away)),
    )
    .hint(format!("restart it, or remove it from the cluster: meshctl node rm {first}")))
}

fn node_name(core: &Core, node: &NodeId) -> String {
    core.feed.view().nodes.get(node).map_or_else(|| node.to_string(), |node| node.name.to_string())
}

/// Lists the first few names, and the number of others.
fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let text = names.join(", ");
    if more == 0 { text } else { format!("{text} and {more} more") }
}
