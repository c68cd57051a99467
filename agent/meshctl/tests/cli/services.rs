//! The answers of the fixed agent.

use mesh_proto::v1::control_server::Control;
use mesh_proto::v1::local_server::Local;
use mesh_proto::{Problem, ProblemKind, v1};
use tonic::{Request, Response, Status};

use crate::agent::{
    Asked, Services, as_requested, backend, cluster, endpoint, network, node, node_status, open_port,
    provoked, service,
};

type Answer<T> = Result<Response<T>, Status>;

#[expect(clippy::unnecessary_wraps, reason = "every answer has this type")]
fn answer<T>(value: T) -> Answer<T> {
    Ok(Response::new(value))
}

fn not_by_the_command<T>() -> Answer<T> {
    Err(Status::unimplemented("the command never calls this"))
}

fn is(status: &v1::ServiceStatus, wanted: &str) -> bool {
    let service = status.service.as_ref().unwrap();
    let path = format!("{}/{}", status.network_name, service.name);
    [&service.id, &service.name, &path].into_iter().any(|name| name == wanted)
}

impl Services {
    fn manager_answers(&self) -> Result<(), Status> {
        if self.with(|state| state.managers_away) {
            return Err(Problem::new(ProblemKind::Unreachable, "managers, none answers").into());
        }
        Ok(())
    }

    fn network(&self, wanted: &str) -> Result<v1::Network, Status> {
        if let Some(problem) = provoked(wanted) {
            return Err(problem.into());
        }
        let found = |state: &mut crate::agent::State| {
            state.networks.iter().find(|network| network.name == wanted || network.id == wanted).cloned()
        };
        self.with(found).ok_or_else(|| Status::not_found(format!("network {wanted}, not found")))
    }

    fn service(&self, wanted: &str) -> Result<v1::ServiceStatus, Status> {
        if let Some(problem) = provoked(wanted) {
            return Err(problem.into());
        }
        let found = self.with(|state| state.services.iter().find(|status| is(status, wanted)).cloned());
        found.ok_or_else(|| Status::not_found(format!("service {wanted}, not found")))
    }

    fn backend(&self, what: &'static str, service: &str, endpoint: &str) -> Answer<v1::BackendStatus> {
        let found = self.service(service)?;
        self.with(|state| {
            state.asked.push(Asked::Backend(what, service.to_owned(), endpoint.to_owned()));
        });
        answer(backend(7, endpoint, found.service.as_ref().unwrap()))
    }
}

#[tonic::async_trait]
impl Control for Services {
    async fn create_network(&self, request: Request<v1::CreateNetworkRequest>) -> Answer<v1::Network> {
        let request = request.into_inner();
        if let Some(problem) = provoked(&request.name) {
            return Err(problem.into());
        }
        answer(self.with(|state| {
            let id = format!("ccc{:021x}", state.networks.len() + 1);
            let made = as_requested(&id, &request);
            state.networks.push(made.clone());
            state.created = Some(request);
            made
        }))
    }

    async fn update_network(&self, request: Request<v1::UpdateNetworkRequest>) -> Answer<v1::Network> {
        let request = request.into_inner();
        let mut network = self.network(&request.network)?;
        network.host_access = request.host_access;
        self.with(|state| state.network_update = Some(request));
        answer(network)
    }

    async fn remove_network(
        &self,
        request: Request<v1::RemoveNetworkRequest>,
    ) -> Answer<v1::RemoveNetworkResponse> {
        let network = self.network(&request.into_inner().network)?;
        self.with(|state| state.networks.retain(|other| other.id != network.id));
        answer(v1::RemoveNetworkResponse { network: Some(network) })
    }

    async fn prune_networks(
        &self,
        _: Request<v1::PruneNetworksRequest>,
    ) -> Answer<v1::PruneNetworksResponse> {
        let removed = self.with(|state| {
            state.pruned = true;
            state.networks.clone()
        });
        answer(v1::PruneNetworksResponse { removed })
    }

    async fn update_node(&self, request: Request<v1::UpdateNodeRequest>) -> Answer<v1::NodeStatus> {
        self.with(|state| state.updated = Some(request.into_inner()));
        answer(node_status())
    }

    async fn set_addresses(&self, _: Request<v1::SetAddressesRequest>) -> Answer<v1::NodeStatus> {
        answer(node_status())
    }

    async fn remove_node(&self, _: Request<v1::RemoveNodeRequest>) -> Answer<v1::RemoveNodeResponse> {
        answer(v1::RemoveNodeResponse { node: Some(node()) })
    }

    async fn join_token(&self, request: Request<v1::JoinTokenRequest>) -> Answer<v1::JoinTokenResponse> {
        let token = if request.into_inner().rotate { "new-token" } else { "token" };
        answer(v1::JoinTokenResponse { token: token.into(), manager: "192.0.2.11:7377".into() })
    }

    async fn list_networks(&self, _: Request<v1::ListNetworksRequest>) -> Answer<v1::ListNetworksResponse> {
        self.manager_answers()?;
        answer(v1::ListNetworksResponse { networks: self.with(|state| state.networks.clone()) })
    }

    async fn inspect_network(
        &self,
        request: Request<v1::InspectNetworkRequest>,
    ) -> Answer<v1::InspectNetworkResponse> {
        let network = self.network(&request.into_inner().network)?;
        let mut endpoints = self.with(|state| state.endpoints.clone());
        endpoints.retain(|endpoint| endpoint.network_id == network.id);
        answer(v1::InspectNetworkResponse { network: Some(network), endpoints, leases: Vec::new() })
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Answer<v1::ListNodesResponse> {
        self.manager_answers()?;
        let second = v1::Node {
            id: "111111111111111111111111".into(),
            name: "h2".into(),
            role: v1::Role::Worker.into(),
            ..node()
        };
        let second = v1::NodeStatus {
            node: Some(second),
            state: v1::NodeState::Down.into(),
            leader: false,
            last_seen: String::new(),
            unreachable_from: Vec::new(),
        };
        answer(v1::ListNodesResponse { nodes: vec![second, node_status()] })
    }

    async fn inspect_node(&self, _: Request<v1::InspectNodeRequest>) -> Answer<v1::NodeStatus> {
        let wireguard = self.with(|state| state.wireguard.clone());
        answer(v1::NodeStatus { node: Some(v1::Node { wireguard, ..node() }), ..node_status() })
    }

    async fn list_endpoints(
        &self,
        request: Request<v1::ListEndpointsRequest>,
    ) -> Answer<v1::ListEndpointsResponse> {
        self.with(|state| state.listed = Some(request.into_inner()));
        answer(self.with(|state| v1::ListEndpointsResponse {
            endpoints: state.endpoints.clone(),
            unheard: state.unheard.clone(),
        }))
    }

    async fn get_cluster(&self, _: Request<v1::GetClusterRequest>) -> Answer<v1::Cluster> {
        if self.with(|state| state.managers_away) { not_by_the_command() } else { answer(cluster()) }
    }

    async fn create_service(&self, request: Request<v1::CreateServiceRequest>) -> Answer<v1::ServiceStatus> {
        let request = request.into_inner();
        if let Some(problem) = provoked(&request.name) {
            return Err(problem.into());
        }
        let network = self.network(&request.network)?;
        answer(self.with(|state| {
            state.asked.push(Asked::Create(request.clone()));
            let id = format!("{:024x}", 0x5e00 + state.services.len());
            let made = service(&id, &network, request);
            state.services.push(made.clone());
            v1::ServiceStatus { warnings: state.warnings.clone(), ..made }
        }))
    }

    async fn update_service(&self, request: Request<v1::UpdateServiceRequest>) -> Answer<v1::ServiceStatus> {
        let request = request.into_inner();
        self.service(&request.service)?;
        answer(self.with(|state| {
            state.asked.push(Asked::Update(request.clone()));
            let found = state.services.iter_mut().find(|status| is(status, &request.service)).unwrap();
            let service = found.service.as_mut().unwrap();
            service.ports.retain(|port| !request.remove_ports.contains(port));
            service.ports.extend(request.add_ports.iter().cloned().map(open_port));
            if request.affinity() != v1::Affinity::Unspecified {
                service.affinity = request.affinity;
            }
            if request.clear_health || request.health.is_some() {
                service.health = request.health;
            }
            if request.replace_aliases {
                service.aliases = request.aliases;
            }
            found.clone()
        }))
    }

    async fn remove_service(&self, request: Request<v1::RemoveServiceRequest>) -> Answer<v1::ServiceStatus> {
        let gone = self.service(&request.into_inner().service)?;
        self.with(|state| state.services.retain(|status| *status != gone));
        answer(gone)
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Answer<v1::ListServicesResponse> {
        self.manager_answers()?;
        let network = request.into_inner().network;
        let mut services = self.with(|state| state.services.clone());
        services.retain(|status| network.is_empty() || status.network_name == network);
        answer(v1::ListServicesResponse { services })
    }

    async fn inspect_service(
        &self,
        request: Request<v1::InspectServiceRequest>,
    ) -> Answer<v1::ServiceStatus> {
        answer(self.service(&request.into_inner().service)?)
    }

    async fn add_backend(&self, request: Request<v1::AddBackendRequest>) -> Answer<v1::BackendStatus> {
        let request = request.into_inner();
        self.backend("add", &request.service, &request.endpoint)
    }

    async fn remove_backend(&self, request: Request<v1::RemoveBackendRequest>) -> Answer<v1::BackendStatus> {
        let request = request.into_inner();
        self.backend("remove", &request.service, &request.endpoint)
    }

    async fn drain_backend(&self, request: Request<v1::DrainBackendRequest>) -> Answer<v1::BackendStatus> {
        let request = request.into_inner();
        self.backend("drain", &request.service, &request.endpoint)
    }

    async fn activate_backend(
        &self,
        request: Request<v1::ActivateBackendRequest>,
    ) -> Answer<v1::BackendStatus> {
        let request = request.into_inner();
        self.backend("activate", &request.service, &request.endpoint)
    }

    async fn check_changes(
        &self,
        request: Request<v1::CheckChangesRequest>,
    ) -> Answer<v1::CheckChangesResponse> {
        let faults = self.with(|state| {
            state.checked = request.into_inner().changes;
            state.faults.clone()
        });
        answer(v1::CheckChangesResponse { faults, ..Default::default() })
    }

    async fn rotate_keys(&self, _: Request<v1::RotateKeysRequest>) -> Answer<v1::RotateKeysResponse> {
        answer(v1::RotateKeysResponse { generation: 2, pending: vec!["h3".into()] })
    }

    async fn set_wireguard(&self, _: Request<v1::SetWireguardRequest>) -> Answer<v1::SetWireguardResponse> {
        not_by_the_command()
    }

    async fn lease(&self, _: Request<v1::LeaseRequest>) -> Answer<v1::LeaseResponse> {
        not_by_the_command()
    }

    async fn release_lease(&self, _: Request<v1::ReleaseLeaseRequest>) -> Answer<v1::ReleaseLeaseResponse> {
        not_by_the_command()
    }

    async fn leave(&self, _: Request<v1::LeaveRequest>) -> Answer<v1::LeaveResponse> {
        not_by_the_command()
    }

    async fn renew_certificate(
        &self,
        _: Request<v1::RenewCertificateRequest>,
    ) -> Answer<v1::RenewCertificateResponse> {
        not_by_the_command()
    }
}

#[tonic::async_trait]
impl Local for Services {
    async fn init_cluster(
        &self,
        request: Request<v1::InitClusterRequest>,
    ) -> Answer<v1::InitClusterResponse> {
        self.with(|state| state.initialised = Some(request.into_inner()));
        answer(v1::InitClusterResponse {
            node: Some(node()),
            worker_token: "token".into(),
            manager: "192.0.2.11:7377".into(),
        })
    }

    async fn join_cluster(
        &self,
        request: Request<v1::JoinClusterRequest>,
    ) -> Answer<v1::JoinClusterResponse> {
        self.with(|state| state.joined = Some(request.into_inner()));
        answer(v1::JoinClusterResponse {
            node: Some(v1::Node { role: v1::Role::Worker.into(), name: "h2".into(), ..node() }),
        })
    }

    async fn leave_cluster(
        &self,
        request: Request<v1::LeaveClusterRequest>,
    ) -> Answer<v1::LeaveClusterResponse> {
        if request.into_inner().force {
            return answer(v1::LeaveClusterResponse {});
        }
        let problem = Problem::new(ProblemKind::Conflict, "cluster leave, h1, it is the only manager");
        Err(problem.hint("use --force").into())
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        answer(self.with(|state| state.status.clone()))
    }

    async fn metrics(&self, _: Request<v1::MetricsRequest>) -> Answer<v1::MetricsResponse> {
        answer(v1::MetricsResponse { text: "# EOF\n".into() })
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::Endpoint> {
        let request = request.into_inner();
        let network = network("aaa000000000000000000001", &request.network, 4096);
        let made = endpoint("eee000000000000000000001", &request.name, &network);
        let dns = self.with(|state| state.dns.clone());
        let warnings = self.with(|state| state.warnings.clone());
        let made = v1::Endpoint { ipv6: request.ip6.clone(), dns, warnings, ..made };
        self.with(|state| state.attached = Some(request));
        answer(made)
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Answer<v1::Endpoint> {
        let wanted = request.into_inner().endpoint;
        let found =
            self.with(|state| state.endpoints.iter().find(|endpoint| endpoint.name == wanted).cloned());
        found.map(Response::new).ok_or_else(|| {
            Problem::new(ProblemKind::NotFound, format!("endpoint detach, {wanted}, not found")).into()
        })
    }

    async fn network_counters(
        &self,
        request: Request<v1::NetworkCountersRequest>,
    ) -> Answer<v1::NetworkCountersResponse> {
        let vni = request.into_inner().vni;
        if vni != 4096 {
            return Err(Status::not_found("no such network here"));
        }
        let counter =
            v1::Counter { vni, reason: "spoofed".into(), packets: 3, bytes: 180, network: "app".into() };
        answer(v1::NetworkCountersResponse { counters: vec![counter], mtu: 1450 })
    }
}
