//! Changing a network: the access of its containers to the hosts.

use mesh_model::{Network, NodeId};
use mesh_proto::Problem;
use mesh_proto::convert::host_policy;
use mesh_proto::v1::UpdateNetworkRequest;
use mesh_store::{Compare, Txn};
use tracing::{info, warn};

use crate::core::Core;
use crate::errors::{check_stays, usage};
use crate::records::{Tries, Versioned, put};
use crate::resolve::resolve_network;
use crate::{keys, limits};

/// Changes a network, and returns once every live agent has applied the change.
pub(crate) async fn update(core: &Core, request: UpdateNetworkRequest) -> Result<Network, Problem> {
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let Versioned { value: current, revision } = resolve_network(core, &request.network).await?;
        let wanted = check(&current, &request)?;
        if wanted == current {
            return Ok(current);
        }
        let key = keys::network(&current.id);
        let txn = Txn::when([Compare::mod_revision(key.clone(), revision)]).then([put(key, &wanted)]);
        let Some(revision) = core.records.commit(txn).await? else { continue };
        info!(network = %wanted.id, name = %wanted.name, policy = ?wanted.host_policy, "a network was changed");
        core.feed.reached(revision.0).await;
        let everyone: Vec<NodeId> = core.feed.view().nodes.keys().cloned().collect();
        let late = core.sessions.wait_applied(everyone, revision.0, limits::APPLIED).await;
        if !late.is_empty() {
            warn!(network = %wanted.name, ?late, "nodes have not applied a change of a network in time");
        }
        return Ok(wanted);
    }
}

/// Returns the network after the change.
pub(crate) fn check(current: &Network, request: &UpdateNetworkRequest) -> Result<Network, Problem> {
    check_stays(current)?;
    let host_policy = host_policy::change(current.host_policy, request.host_access, request.metadata)
        .map_err(|error| usage(&error))?;
    Ok(Network { host_policy, ..current.clone() })
}
