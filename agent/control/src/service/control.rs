//! The `Control` service.

use mesh_proto::v1::control_server::Control;
use mesh_proto::v1::{self};
use tonic::{Request, Response, Status};

use super::MemberService;
use crate::access::Method;

/// A call: authorized by its method's entry in the access table, then done by a function of the core.
macro_rules! calls {
    ($($name:ident: $method:ident, $request:ty => $response:ty, |$core:ident, $caller:ident, $message:ident| $do:expr;)*) => {
        #[tonic::async_trait]
        impl Control for MemberService {
            $(
                async fn $name(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    let $caller = self.authorize(&request, Method::$method).await?;
                    let $core = &self.core;
                    let $message = request.into_inner();
                    Ok(Response::new($do))
                }
            )*
        }
    };
}

calls! {
    create_network: CreateNetwork, v1::CreateNetworkRequest => v1::Network, |core, caller, m| later(core, &caller, m)?;
    remove_network: RemoveNetwork, v1::RemoveNetworkRequest => v1::RemoveNetworkResponse, |core, caller, m| later(core, &caller, m)?;
    prune_networks: PruneNetworks, v1::PruneNetworksRequest => v1::PruneNetworksResponse, |core, caller, m| later(core, &caller, m)?;
    update_node: UpdateNode, v1::UpdateNodeRequest => v1::NodeStatus, |core, caller, m| later(core, &caller, m)?;
    remove_node: RemoveNode, v1::RemoveNodeRequest => v1::RemoveNodeResponse, |core, caller, m| later(core, &caller, m)?;
    join_token: JoinToken, v1::JoinTokenRequest => v1::JoinTokenResponse, |core, caller, m| later(core, &caller, m)?;
    list_networks: ListNetworks, v1::ListNetworksRequest => v1::ListNetworksResponse, |core, caller, m| later(core, &caller, m)?;
    inspect_network: InspectNetwork, v1::InspectNetworkRequest => v1::InspectNetworkResponse, |core, caller, m| later(core, &caller, m)?;
    list_nodes: ListNodes, v1::ListNodesRequest => v1::ListNodesResponse, |core, caller, m| later(core, &caller, m)?;
    inspect_node: InspectNode, v1::InspectNodeRequest => v1::NodeStatus, |core, caller, m| later(core, &caller, m)?;
    list_endpoints: ListEndpoints, v1::ListEndpointsRequest => v1::ListEndpointsResponse, |core, caller, m| later(core, &caller, m)?;
    get_cluster: GetCluster, v1::GetClusterRequest => v1::Cluster, |core, caller, m| later(core, &caller, m)?;
    lease: Lease, v1::LeaseRequest => v1::LeaseResponse, |core, caller, m| later(core, &caller, m)?;
    release_lease: ReleaseLease, v1::ReleaseLeaseRequest => v1::ReleaseLeaseResponse, |core, caller, m| later(core, &caller, m)?;
    leave: Leave, v1::LeaveRequest => v1::LeaveResponse, |core, caller, m| later(core, &caller, m)?;
    renew_certificate: RenewCertificate, v1::RenewCertificateRequest => v1::RenewCertificateResponse, |core, caller, m| later(core, &caller, m)?;
}

fn later<T, R>(_core: &crate::core::Core, _caller: &crate::access::Caller, _message: T) -> Result<R, Status> {
    Err(Status::unimplemented("not built yet"))
}
