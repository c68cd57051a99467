//! The control plane as seen from the local socket: answered by a manager, within this process or
//! over the network.

use std::sync::Arc;

use mesh_handle::{AgentHandle, ManagerConnection};
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::v1::control_server::Control;
use mesh_proto::{MAX_MESSAGE, Problem, ProblemKind, v1};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, async_trait};

/// Passes calls on to a manager, as this node.
#[derive(Debug, Clone)]
pub(crate) struct ControlGateway {
    agent: Arc<dyn AgentHandle>,
}

impl ControlGateway {
    /// Passes on for this host.
    pub(crate) fn new(agent: Arc<dyn AgentHandle>) -> Self {
        Self { agent }
    }

    /// Makes a call with a connection to a manager. One that turns out to be dead is given up, so
    /// that the next call makes a new one; this call is not made again, because it may have had its
    /// effect.
    async fn call<T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        call: impl FnOnce(ControlClient<Channel>) -> F,
    ) -> Result<Response<T>, Status> {
        let ManagerConnection { address, channel } = self.agent.manager().await?;
        let client = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        call(client).await.map(|response| Response::new(response.into_inner())).map_err(|status| {
            // What a manager itself says has details.
            if !status.details().is_empty() || !matches!(status.code(), Code::Unavailable | Code::Unknown) {
                return status;
            }
            self.agent.forget_manager(&address);
            Problem::new(
                ProblemKind::Unreachable,
                format!("the connection to the manager at {address} was lost: {}", status.message()),
            )
            .hint("try again; meshctl status shows whether this node is in session")
            .into()
        })
    }
}

fn for_agents_only<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Problem::new(ProblemKind::Denied, format!("{what} is for agents, not for people")).into())
}

macro_rules! control {
    (
        forward { $($method:ident($request:ident) -> $response:ident;)* }
        refuse { $($refused:ident($refused_request:ident) -> $refused_response:ident;)* }
        here { $($here:tt)* }
    ) => {
        #[async_trait]
        impl Control for ControlGateway {
            $(async fn $method(
                &self,
                request: Request<v1::$request>,
            ) -> Result<Response<v1::$response>, Status> {
                self.call(|mut client| async move { client.$method(request.into_inner()).await }).await
            })*

            $(async fn $refused(
                &self,
                _request: Request<v1::$refused_request>,
            ) -> Result<Response<v1::$refused_response>, Status> {
                for_agents_only(stringify!($refused_request))
            })*

            $($here)*
        }
    };
}

control! {
    forward {
        create_network(CreateNetworkRequest) -> Network;
        update_network(UpdateNetworkRequest) -> Network;
        remove_network(RemoveNetworkRequest) -> RemoveNetworkResponse;
        prune_networks(PruneNetworksRequest) -> PruneNetworksResponse;
        remove_node(RemoveNodeRequest) -> RemoveNodeResponse;
        join_token(JoinTokenRequest) -> JoinTokenResponse;
        list_networks(ListNetworksRequest) -> ListNetworksResponse;
        inspect_network(InspectNetworkRequest) -> InspectNetworkResponse;
        list_nodes(ListNodesRequest) -> ListNodesResponse;
        inspect_node(InspectNodeRequest) -> NodeStatus;
        get_cluster(GetClusterRequest) -> Cluster;
        create_service(CreateServiceRequest) -> ServiceStatus;
        update_service(UpdateServiceRequest) -> ServiceStatus;
        remove_service(RemoveServiceRequest) -> ServiceStatus;
        list_services(ListServicesRequest) -> ListServicesResponse;
        inspect_service(InspectServiceRequest) -> ServiceStatus;
        add_backend(AddBackendRequest) -> BackendStatus;
        remove_backend(RemoveBackendRequest) -> BackendStatus;
        drain_backend(DrainBackendRequest) -> BackendStatus;
        activate_backend(ActivateBackendRequest) -> BackendStatus;
        check_changes(CheckChangesRequest) -> CheckChangesResponse;
        rotate_keys(RotateKeysRequest) -> RotateKeysResponse;
    }
    refuse {
        lease(LeaseRequest) -> LeaseResponse;
        release_lease(ReleaseLeaseRequest) -> ReleaseLeaseResponse;
        leave(LeaveRequest) -> LeaveResponse;
        renew_certificate(RenewCertificateRequest) -> RenewCertificateResponse;
        set_wireguard(SetWireguardRequest) -> SetWireguardResponse;
        set_addresses(SetAddressesRequest) -> NodeStatus;
    }
    here {
        /// A node's own addresses are named on it by interface, too, and followed from then on.
        async fn update_node(
            &self,
            request: Request<v1::UpdateNodeRequest>,
        ) -> Result<Response<v1::NodeStatus>, Status> {
            let mut request = request.into_inner();
            let names_addresses = !(request.advertise_addr.is_empty() && request.data_path_addr.is_empty());
            if self.agent.is_own_node(&request.node)? && names_addresses {
                let status = self.agent.set_addresses(&request.advertise_addr, &request.data_path_addr).await?;
                if request.availability() == v1::Availability::Unspecified {
                    return Ok(Response::new(status));
                }
                request.advertise_addr.clear();
                request.data_path_addr.clear();
            }
            self.call(|mut client| async move { client.update_node(request).await }).await
        }

        /// Without a manager, this node still answers about its own endpoints.
        async fn list_endpoints(
            &self,
            request: Request<v1::ListEndpointsRequest>,
        ) -> Result<Response<v1::ListEndpointsResponse>, Status> {
            let request = request.into_inner();
            let asked = request.clone();
            match self.call(|mut client| async move { client.list_endpoints(asked).await }).await {
                Err(status) if Problem::from(status.clone()).kind == ProblemKind::Unreachable => {
                    self.agent.own_endpoints(&request).map(Response::new).ok_or(status)
                }
                answer => answer,
            }
        }
    }
}
