//! Nodes: availability, removal, join tokens and certificate renewal.

use mesh_model::{Node, NodeId, NodeState, Role};
use mesh_proto::v1::{
    JoinTokenRequest, JoinTokenResponse, NodeStatus, RemoveNodeRequest, RemoveNodeResponse,
    RenewCertificateRequest, RenewCertificateResponse, UpdateNodeRequest,
};
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_store::{Compare, Op, Txn};
use tracing::{info, warn};

use crate::access::Caller;
use crate::core::Core;
use crate::enroll::check_role;
use crate::errors::{identity_problem, usage};
use crate::identity::NODE_VALIDITY;
use crate::node_status::status;
use crate::records::{RecordError, Tries, Versioned, put};
use crate::resolve::{check_removable, resolve_node};
use crate::token::{JoinToken, TokenRecord};
use crate::{keys, leases, limits, readdress, services};

/// Changes a node's addresses and its availability.
pub(crate) async fn update(core: &Core, request: &UpdateNodeRequest) -> Result<NodeStatus, Problem> {
    let addresses = readdress::RequestedAddresses::parse(&request.advertise_addr, &request.data_path_addr)?;
    if !addresses.is_empty() {
        let node = resolve_node(core, &request.node).await?.value;
        let status = readdress::set(core, &node.id, &addresses).await?;
        if request.availability() == v1::Availability::Unspecified {
            return Ok(status);
        }
    }
    let availability = request.availability().try_into().map_err(|e| usage(&e))?;
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let Versioned { value, revision } = resolve_node(core, &request.node).await?;
        let node = Node { availability, ..value };
        let key = keys::node(&node.id);
        let txn = Txn::when([Compare::mod_revision(key.clone(), revision)]).then([put(key, &node)]);
        if let Some(revision) = core.records.commit(txn).await? {
            // When the call returns, the node has applied it, and the other nodes send a drained
            // node's backends no new connections. A late agent will follow: the record is written.
            let everyone: Vec<NodeId> = core.feed.view().nodes.keys().cloned().collect();
            let late = core.sessions.wait_applied(everyone, revision.0, limits::APPLIED).await;
            if !late.is_empty() {
                warn!(node = %node.name, ?late, "nodes have not applied a change of availability in time");
            }
            return Ok(status(core, &node));
        }
    }
}

/// Removes a node with its record, its leases and its access.
pub(crate) async fn remove(core: &Core, request: &RemoveNodeRequest) -> Result<RemoveNodeResponse, Problem> {
    let node = resolve_node(core, &request.node).await?.value;
    check_removable("node", &request.node, &node.name)?;
    let state = core.states().borrow().get(&node.id).copied();
    if state == Some(NodeState::Ready) && !request.force {
        return Err(Problem::new(ProblemKind::Conflict, format!("node {} is ready", node.name)).hint(
            format!(
                "run meshctl cluster leave on it, or force its removal: meshctl node rm --force {}",
                node.name
            ),
        ));
    }
    let node = forget(core, &node.id).await?;
    Ok(RemoveNodeResponse { node: Some((&node).into()) })
}

/// Removes the calling node.
pub(crate) async fn leave(core: &Core, caller: &Caller) -> Result<(), Problem> {
    forget(core, caller.id()).await.map(drop)
}

async fn forget(core: &Core, id: &NodeId) -> Result<Node, Problem> {
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let Some(Versioned { value: node, revision }) = core.records.node(id).await? else {
            return Err(Problem::new(ProblemKind::NotFound, format!("node {id} does not exist")));
        };
        if id == core.node_id() {
            // Other nodes with the role of managers have no copy of the store: without this one the
            // cluster has none.
            return Err(Problem::new(
                ProblemKind::Conflict,
                format!("node {} keeps the store of this cluster", node.name),
            )
            .hint("to end the cluster, run meshctl cluster leave --force on every host, the manager last"));
        }
        let (mut compares, mut ops) = leases::forget_node(core, id).await?;
        compares.push(Compare::mod_revision(keys::node(id), revision));
        ops.extend([Op::delete(keys::node(id)), Op::delete(keys::node_name(&node.name))]);
        if core.records.commit(Txn::when(compares).then(ops)).await?.is_some() {
            info!(node = %id, name = %node.name, "a node was removed");
            services::forget_node(core, id).await?;
            return Ok(node);
        }
    }
}

/// Returns the join token of a role, after rotating it if requested.
pub(crate) async fn join_token(
    core: &Core,
    request: &JoinTokenRequest,
) -> Result<JoinTokenResponse, Problem> {
    let role: Role = request.role().try_into().map_err(|e| usage(&e))?;
    check_role(core, role)?;
    let key = keys::token(role);
    let record = if request.rotate {
        let record = TokenRecord::random().map_err(RecordError::from)?;
        core.records.commit(Txn::always([put(key, &record)])).await?;
        info!(?role, "the join token was rotated");
        record
    } else {
        let found: Option<Versioned<TokenRecord>> = core.records.get(key.clone()).await?;
        found.ok_or(RecordError::Missing { key })?.value
    };
    let secret = record.secret(core.authority.key_der(), role);
    let token = JoinToken { ca: core.authority.fingerprint(), secret };
    let own = core.records.node(core.node_id()).await?;
    let manager = own.map(|node| node.value.advertise_addr.to_string()).unwrap_or_default();
    Ok(JoinTokenResponse { token: token.to_string(), manager })
}

/// Returns a new certificate for the calling node, with the role in its record.
pub(crate) fn renew(
    core: &Core,
    caller: &Caller,
    request: &RenewCertificateRequest,
) -> Result<RenewCertificateResponse, Problem> {
    let role = caller.node().role;
    let certificate = core.authority.issue(&request.csr_pem, caller.id(), role, NODE_VALIDITY);
    let certificate_pem = certificate.map_err(|e| identity_problem(&e))?;
    info!(node = %caller.node().name, "a certificate was renewed");
    Ok(RenewCertificateResponse { certificate_pem })
}
