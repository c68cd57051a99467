//! The `Control` service.

use mesh_proto::v1::control_server::Control;
use mesh_proto::v1::{
    Cluster, CreateNetworkRequest, GetClusterRequest, InspectNetworkRequest, InspectNetworkResponse,
    InspectNodeRequest, JoinTokenRequest, JoinTokenResponse, LeaseRequest, LeaseResponse, LeaveRequest,
    LeaveResponse, ListEndpointsRequest, ListEndpointsResponse, ListNetworksRequest, ListNetworksResponse,
    ListNodesRequest, ListNodesResponse, Network, NodeStatus, PruneNetworksRequest, PruneNetworksResponse,
    ReleaseLeaseRequest, ReleaseLeaseResponse, RemoveNetworkRequest, RemoveNetworkResponse,
    RemoveNodeRequest, RemoveNodeResponse, RenewCertificateRequest, RenewCertificateResponse,
    UpdateNodeRequest,
};
use tonic::{Request, Response, Status};

use super::MemberService;
use crate::access::Method;
use crate::resolve::resolve_node;
use crate::{leases, networks, nodes};

/// Each call: authorized by its method's entry in the access table, then done by a function on the shared state. There is
/// no other way to the message than through the authorization.
macro_rules! calls {
    ($($name:ident: $method:ident($request:ty) -> $response:ty,
       |$core:pat_param, $caller:pat_param, $message:pat_param| $do:expr;)*) => {
        #[tonic::async_trait]
        impl Control for MemberService {
            $(
                async fn $name(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    let $caller = &self.authorize(&request, Method::$method).await?;
                    let $core = &self.core;
                    let $message = request.into_inner();
                    Ok(Response::new($do))
                }
            )*
        }
    };
}

calls! {
    create_network: CreateNetwork(CreateNetworkRequest) -> Network,
        |core, _, message| (&networks::create(core, message).await?).into();
    remove_network: RemoveNetwork(RemoveNetworkRequest) -> RemoveNetworkResponse,
        |core, _, message| RemoveNetworkResponse {
            network: Some((&networks::remove(core, &message.network).await?).into()),
        };
    prune_networks: PruneNetworks(PruneNetworksRequest) -> PruneNetworksResponse,
        |core, _, _| PruneNetworksResponse {
            removed: networks::prune(core).await?.iter().map(Into::into).collect(),
        };
    update_node: UpdateNode(UpdateNodeRequest) -> NodeStatus,
        |core, _, message| nodes::update(core, &message).await?;
    remove_node: RemoveNode(RemoveNodeRequest) -> RemoveNodeResponse,
        |core, _, message| nodes::remove(core, &message).await?;
    join_token: JoinToken(JoinTokenRequest) -> JoinTokenResponse,
        |core, _, message| nodes::join_token(core, &message).await?;
    list_networks: ListNetworks(ListNetworksRequest) -> ListNetworksResponse,
        |core, _, _| ListNetworksResponse { networks: networks::list(core).await? };
    inspect_network: InspectNetwork(InspectNetworkRequest) -> InspectNetworkResponse,
        |core, _, message| networks::inspect(core, &message.network).await?;
    list_nodes: ListNodes(ListNodesRequest) -> ListNodesResponse,
        |core, _, _| ListNodesResponse { nodes: nodes::list(core).await? };
    inspect_node: InspectNode(InspectNodeRequest) -> NodeStatus,
        |core, _, message| nodes::status(core, &resolve_node(core, &message.node).await?.value);
    list_endpoints: ListEndpoints(ListEndpointsRequest) -> ListEndpointsResponse,
        |core, _, message| ListEndpointsResponse {
            endpoints: networks::list_endpoints(core, &message).await?,
        };
    get_cluster: GetCluster(GetClusterRequest) -> Cluster,
        |core, _, _| core.cluster().into();
    lease: Lease(LeaseRequest) -> LeaseResponse,
        |core, caller, message| leases::lease(core, caller, &message).await?;
    release_lease: ReleaseLease(ReleaseLeaseRequest) -> ReleaseLeaseResponse,
        |core, caller, message| leases::release(core, caller, &message).await?;
    leave: Leave(LeaveRequest) -> LeaveResponse,
        |core, caller, _| {
            nodes::leave(core, caller).await?;
            LeaveResponse {}
        };
    renew_certificate: RenewCertificate(RenewCertificateRequest) -> RenewCertificateResponse,
        |core, caller, message| nodes::renew(core, caller, &message)?;
}
