//! Access control: the only place that decides which caller may make which call.

use mesh_model::{Node, NodeId, Role};
use mesh_proto::{Problem, ProblemKind};
use tonic::Request;

use crate::identity::PeerIdentity;
use crate::records::Records;
use crate::transport::PeerInfo;

/// Every call that requires a member's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the call of its name in control.proto or session.proto")]
pub enum Method {
    CreateNetwork,
    UpdateNetwork,
    RemoveNetwork,
    PruneNetworks,
    UpdateNode,
    RemoveNode,
    JoinToken,
    ListNetworks,
    InspectNetwork,
    ListNodes,
    InspectNode,
    ListEndpoints,
    GetCluster,
    CreateService,
    UpdateService,
    RemoveService,
    DrainBackend,
    ActivateBackend,
    RotateKeys,
    CheckChanges,
    ListServices,
    InspectService,
    AddBackend,
    RemoveBackend,
    SetWireguard,
    SetAddresses,
    Lease,
    ReleaseLease,
    Leave,
    RenewCertificate,
    OpenSession,
}

/// The callers that may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Managers only.
    Administration,
    /// Every member.
    Reading,
    /// Every member, for its own records only: the certificate identifies the member, never the
    /// request.
    OwnRecords,
    /// Managers, and every member for its own endpoints.
    OwnEndpoints,
}

impl Method {
    /// Returns the command of `meshctl` that makes this call, or the agents' use of it.
    pub const fn command(self) -> &'static str {
        match self {
            Self::CreateNetwork => "network create",
            Self::UpdateNetwork => "network update",
            Self::RemoveNetwork => "network rm",
            Self::PruneNetworks => "network prune",
            Self::UpdateNode => "node update",
            Self::RemoveNode => "node rm",
            Self::JoinToken => "cluster join-token",
            Self::CreateService => "service create",
            Self::UpdateService => "service update",
            Self::RemoveService => "service rm",
            Self::DrainBackend => "service backend drain",
            Self::ActivateBackend => "service backend activate",
            Self::AddBackend => "service backend add",
            Self::RemoveBackend => "service backend rm",
            Self::RotateKeys => "cluster rotate-keys",
            Self::CheckChanges => "apply",
            Self::ListNetworks => "network ls",
            Self::InspectNetwork => "network inspect",
            Self::ListNodes => "node ls",
            Self::InspectNode => "node inspect",
            Self::ListEndpoints => "endpoint ls",
            Self::GetCluster => "cluster status",
            Self::ListServices => "service ls",
            Self::InspectService => "service inspect",
            Self::Lease | Self::ReleaseLease => "endpoint attach",
            Self::Leave => "cluster leave",
            Self::RenewCertificate => "a certificate's renewal",
            Self::SetWireguard => "an announcement of keys",
            Self::SetAddresses => "an announcement of addresses",
            Self::OpenSession => "a session",
        }
    }

    /// Returns which callers may make this call.
    pub const fn access(self) -> Access {
        match self {
            Self::CreateNetwork
            | Self::UpdateNetwork
            | Self::RemoveNetwork
            | Self::PruneNetworks
            | Self::UpdateNode
            | Self::RemoveNode
            | Self::JoinToken
            | Self::CreateService
            | Self::UpdateService
            | Self::RemoveService
            | Self::DrainBackend
            | Self::ActivateBackend
            | Self::CheckChanges
            | Self::RotateKeys => Access::Administration,
            Self::ListNetworks
            | Self::InspectNetwork
            | Self::ListNodes
            | Self::InspectNode
            | Self::ListEndpoints
            | Self::GetCluster
            | Self::ListServices
            | Self::InspectService => Access::Reading,
            Self::AddBackend | Self::RemoveBackend => Access::OwnEndpoints,
            Self::Lease
            | Self::ReleaseLease
            | Self::Leave
            | Self::RenewCertificate
            | Self::SetWireguard
            | Self::SetAddresses
            | Self::OpenSession => Access::OwnRecords,
        }
    }
}

/// A member that may make the current call. Only [`authorize`] creates one.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    node: Node,
    role: Role,
}

impl Caller {
    /// Returns the calling node.
    pub(crate) fn id(&self) -> &NodeId {
        &self.node.id
    }

    /// Returns its role: the lesser of its certificate's and its record's.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Returns its record at the start of the call.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }
}

/// Returns the identity of a request's sender: the service's own within the process, otherwise that
/// of the connection's certificate.
pub(crate) fn identity<T>(request: &Request<T>, own: Option<&PeerIdentity>) -> Option<PeerIdentity> {
    let connection = || request.extensions().get::<PeerInfo>().and_then(|peer| peer.identity.clone());
    own.cloned().or_else(connection)
}

/// Decides whether the node with this identity may make this call. Its record must still exist:
/// removing a node ends its access, whatever its certificate says. The role in the certificate and
/// the role in the record must both allow the call.
pub(crate) async fn authorize(
    records: &Records,
    cluster: &str,
    identity: Option<PeerIdentity>,
    method: Method,
) -> Result<Caller, Problem> {
    let denied = |message: String| Problem::new(ProblemKind::Denied, message);
    let identity = identity
        .filter(|identity| identity.cluster == cluster)
        .ok_or_else(|| denied(format!("{} needs a certificate of this cluster", method.command())))?;
    let node = records.node(&identity.node).await?.ok_or_else(|| removed(&identity.node))?;
    let node = node.value;
    let is_manager = identity.role == Role::Manager && node.role == Role::Manager;
    if method.access() == Access::Administration && !is_manager {
        return Err(not_manager(records, method, &node).await?);
    }
    let role = if is_manager { Role::Manager } else { Role::Worker };
    Ok(Caller { node, role })
}

/// Returns the error for a worker that calls a manager's method.
async fn not_manager(records: &Records, method: Method, worker: &Node) -> Result<Problem, Problem> {
    let nodes = records.nodes().await?;
    let managers = nodes.iter().filter(|node| node.value.role == Role::Manager);
    let managers: Vec<&str> = managers.map(|node| node.value.name.as_str()).collect();
    let message = format!(
        "meshctl {}, on node {}, needs a manager: the node is a worker",
        method.command(),
        worker.name
    );
    Ok(Problem::new(ProblemKind::NotManager, message)
        .hint(format!("run it on a manager: {}", managers.join(", "))))
}

/// Returns the error for a node that is no longer a member.
pub(crate) fn removed(node: &NodeId) -> Problem {
    Problem::new(ProblemKind::Denied, format!("node {node} was removed from the cluster"))
        .hint("meshctl cluster leave --force on that host, then join again")
}
