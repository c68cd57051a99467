//! The `Control` service.

use mesh_model::BackendState;
use mesh_proto::v1;
use mesh_proto::v1::control_server::Control;
use tonic::{Request, Response, Status};

use super::MemberService;
use crate::access::Method;
use crate::resolve::resolve_node;
use crate::{changes, leases, networks, node_status, nodes, readdress, rotation, services};

/// Defines each call: authorized by its method's entry in the access table, then executed by a
/// function on the shared state. The message is accessible only after authorization.
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
    create_network: CreateNetwork(v1::CreateNetworkRequest) -> v1::Network,
        |core, _, message| (&networks::create(core, message).await?).into();
    update_network: UpdateNetwork(v1::UpdateNetworkRequest) -> v1::Network,
        |core, _, message| (&networks::update(core, message).await?).into();
    remove_network: RemoveNetwork(v1::RemoveNetworkRequest) -> v1::RemoveNetworkResponse,
        |core, _, message| v1::RemoveNetworkResponse {
            network: Some((&networks::remove(core, &message.network).await?).into()),
        };
    prune_networks: PruneNetworks(v1::PruneNetworksRequest) -> v1::PruneNetworksResponse,
        |core, _, _| v1::PruneNetworksResponse {
            removed: networks::prune(core).await?.iter().map(Into::into).collect(),
        };
    update_node: UpdateNode(v1::UpdateNodeRequest) -> v1::NodeStatus,
        |core, _, message| nodes::update(core, &message).await?;
    remove_node: RemoveNode(v1::RemoveNodeRequest) -> v1::RemoveNodeResponse,
        |core, _, message| nodes::remove(core, &message).await?;
    join_token: JoinToken(v1::JoinTokenRequest) -> v1::JoinTokenResponse,
        |core, _, message| nodes::join_token(core, &message).await?;
    list_networks: ListNetworks(v1::ListNetworksRequest) -> v1::ListNetworksResponse,
        |core, _, _| v1::ListNetworksResponse { networks: networks::list(core).await? };
    inspect_network: InspectNetwork(v1::InspectNetworkRequest) -> v1::InspectNetworkResponse,
        |core, _, message| networks::inspect(core, &message.network).await?;
    list_nodes: ListNodes(v1::ListNodesRequest) -> v1::ListNodesResponse,
        |core, _, _| v1::ListNodesResponse { nodes: node_status::list(core).await? };
    inspect_node: InspectNode(v1::InspectNodeRequest) -> v1::NodeStatus,
        |core, _, message| node_status::status(core, &resolve_node(core, &message.node).await?.value);
    list_endpoints: ListEndpoints(v1::ListEndpointsRequest) -> v1::ListEndpointsResponse,
        |core, _, message| networks::list_endpoints(core, &message).await?;
    get_cluster: GetCluster(v1::GetClusterRequest) -> v1::Cluster,
        |core, _, _| core.cluster().into();
    lease: Lease(v1::LeaseRequest) -> v1::LeaseResponse,
        |core, caller, message| leases::lease(core, caller, &message).await?;
    release_lease: ReleaseLease(v1::ReleaseLeaseRequest) -> v1::ReleaseLeaseResponse,
        |core, caller, message| leases::release(core, caller, &message).await?;
    leave: Leave(v1::LeaveRequest) -> v1::LeaveResponse,
        |core, caller, _| {
            nodes::leave(core, caller).await?;
            v1::LeaveResponse {}
        };
    renew_certificate: RenewCertificate(v1::RenewCertificateRequest) -> v1::RenewCertificateResponse,
        |core, caller, message| nodes::renew(core, caller, &message)?;
    create_service: CreateService(v1::CreateServiceRequest) -> v1::ServiceStatus,
        |core, _, message| services::create(core, message).await?;
    update_service: UpdateService(v1::UpdateServiceRequest) -> v1::ServiceStatus,
        |core, _, message| services::update(core, message).await?;
    remove_service: RemoveService(v1::RemoveServiceRequest) -> v1::ServiceStatus,
        |core, _, message| services::remove(core, &message.service).await?;
    list_services: ListServices(v1::ListServicesRequest) -> v1::ListServicesResponse,
        |core, _, message| v1::ListServicesResponse { services: services::list(core, &message).await? };
    inspect_service: InspectService(v1::InspectServiceRequest) -> v1::ServiceStatus,
        |core, _, message| services::inspect(core, &message.service).await?;
    add_backend: AddBackend(v1::AddBackendRequest) -> v1::BackendStatus,
        |core, caller, message| services::add(core, caller, &message.service, &message.endpoint).await?;
    remove_backend: RemoveBackend(v1::RemoveBackendRequest) -> v1::BackendStatus,
        |core, caller, message| {
            services::remove_backend(core, caller, &message.service, &message.endpoint).await?
        };
    drain_backend: DrainBackend(v1::DrainBackendRequest) -> v1::BackendStatus,
        |core, caller, message| {
            let state = BackendState::Draining;
            services::set_state(core, caller, &message.service, &message.endpoint, state).await?
        };
    activate_backend: ActivateBackend(v1::ActivateBackendRequest) -> v1::BackendStatus,
        |core, caller, message| {
            let state = BackendState::Active;
            services::set_state(core, caller, &message.service, &message.endpoint, state).await?
        };
    check_changes: CheckChanges(v1::CheckChangesRequest) -> v1::CheckChangesResponse,
        |core, _, message| changes::check(core, message).await?;
    rotate_keys: RotateKeys(v1::RotateKeysRequest) -> v1::RotateKeysResponse,
        |core, _, _| rotation::rotate(core).await?;
    set_addresses: SetAddresses(v1::SetAddressesRequest) -> v1::NodeStatus,
        |core, caller, message| {
            let wanted = readdress::RequestedAddresses::parse(&message.advertise_addr, &message.data_path_addr)?;
            readdress::set(core, caller.id(), &wanted).await?
        };
    set_wireguard: SetWireguard(v1::SetWireguardRequest) -> v1::SetWireguardResponse,
        |core, caller, message| {
            rotation::set(core, caller, message).await?;
            v1::SetWireguardResponse {}
        };
}
