//! Access control over real connections: the whole table.

use mesh_control::identity::tls::join_client_config;
use mesh_control::session_client::{control_client, session_client};
use mesh_control::{Access, Method, connect};
use mesh_proto::v1;
use mesh_proto::v1::{Availability, Role};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, endpoint, network, service};

const METHODS: [Method; 31] = [
    Method::CreateNetwork,
    Method::UpdateNetwork,
    Method::RemoveNetwork,
    Method::PruneNetworks,
    Method::UpdateNode,
    Method::RemoveNode,
    Method::JoinToken,
    Method::ListNetworks,
    Method::InspectNetwork,
    Method::ListNodes,
    Method::InspectNode,
    Method::ListEndpoints,
    Method::GetCluster,
    Method::CreateService,
    Method::UpdateService,
    Method::RemoveService,
    Method::DrainBackend,
    Method::ActivateBackend,
    Method::RotateKeys,
    Method::CheckChanges,
    Method::ListServices,
    Method::InspectService,
    Method::AddBackend,
    Method::RemoveBackend,
    Method::SetWireguard,
    Method::SetAddresses,
    Method::Lease,
    Method::ReleaseLease,
    Method::Leave,
    Method::RenewCertificate,
    Method::OpenSession,
];

/// Makes a call that would change the cluster if it were allowed.
async fn call(channel: &Channel, method: Method) -> Result<(), Status> {
    let mut control = control_client(channel.clone());
    let (app, h1) = ("app".to_owned(), "h1".to_owned());
    let (web, foreign) = ("web".to_owned(), "c1".to_owned());
    match method {
        Method::CreateNetwork => control
            .create_network(v1::CreateNetworkRequest { name: "mine".into(), ..Default::default() })
            .await
            .map(drop),
        Method::RemoveNetwork => {
            control.remove_network(v1::RemoveNetworkRequest { network: app }).await.map(drop)
        }
        Method::PruneNetworks => control.prune_networks(v1::PruneNetworksRequest {}).await.map(drop),
        Method::UpdateNode => {
            let availability = Availability::Drain.into();
            control
                .update_node(v1::UpdateNodeRequest { node: h1, availability, ..Default::default() })
                .await
                .map(drop)
        }
        Method::UpdateNetwork => {
            let host_access = v1::HostAccess::All.into();
            let request = v1::UpdateNetworkRequest { network: app, host_access, ..Default::default() };
            control.update_network(request).await.map(drop)
        }
        Method::RemoveNode => {
            control.remove_node(v1::RemoveNodeRequest { node: h1, force: true }).await.map(drop)
        }
        Method::JoinToken => control
            .join_token(v1::JoinTokenRequest { role: Role::Manager.into(), rotate: true })
            .await
            .map(drop),
        Method::ListNetworks => control.list_networks(v1::ListNetworksRequest {}).await.map(drop),
        Method::InspectNetwork => {
            control.inspect_network(v1::InspectNetworkRequest { network: app }).await.map(drop)
        }
        Method::ListNodes => control.list_nodes(v1::ListNodesRequest {}).await.map(drop),
        Method::InspectNode => control.inspect_node(v1::InspectNodeRequest { node: h1 }).await.map(drop),
        Method::ListEndpoints => control.list_endpoints(v1::ListEndpointsRequest::default()).await.map(drop),
        Method::GetCluster => control.get_cluster(v1::GetClusterRequest {}).await.map(drop),
        Method::CreateService => {
            let request =
                v1::CreateServiceRequest { name: "mine".into(), network: app, ..Default::default() };
            control.create_service(request).await.map(drop)
        }
        Method::UpdateService => {
            let affinity = v1::Affinity::ClientIp.into();
            let request = v1::UpdateServiceRequest { service: web, affinity, ..Default::default() };
            control.update_service(request).await.map(drop)
        }
        Method::RemoveService => {
            control.remove_service(v1::RemoveServiceRequest { service: web }).await.map(drop)
        }
        Method::ListServices => control.list_services(v1::ListServicesRequest::default()).await.map(drop),
        Method::InspectService => {
            control.inspect_service(v1::InspectServiceRequest { service: web }).await.map(drop)
        }
        Method::AddBackend => {
            control.add_backend(v1::AddBackendRequest { service: web, endpoint: foreign }).await.map(drop)
        }
        Method::RemoveBackend => control
            .remove_backend(v1::RemoveBackendRequest { service: web, endpoint: foreign })
            .await
            .map(drop),
        Method::DrainBackend => {
            control.drain_backend(v1::DrainBackendRequest { service: web, endpoint: foreign }).await.map(drop)
        }
        Method::ActivateBackend => {
            let request = v1::ActivateBackendRequest { service: web, endpoint: foreign };
            control.activate_backend(request).await.map(drop)
        }
        Method::CheckChanges => control.check_changes(v1::CheckChangesRequest::default()).await.map(drop),
        Method::RotateKeys => control.rotate_keys(v1::RotateKeysRequest {}).await.map(drop),
        Method::SetWireguard => {
            let keys = [(1, "GSbxL3oHmgXcZmSPPmrpIYMcdcA7/YEP4zSJ0jZ2nBM=".to_owned())].into();
            let wireguard = Some(v1::Wireguard { port: 51820, keys });
            control.set_wireguard(v1::SetWireguardRequest { wireguard }).await.map(drop)
        }
        Method::SetAddresses => control.set_addresses(v1::SetAddressesRequest::default()).await.map(drop),
        Method::Lease => control
            .lease(v1::LeaseRequest { network: app, address: String::new(), family: 4 })
            .await
            .map(drop),
        Method::ReleaseLease => {
            let network = "0123456789abcdef01234567".to_owned();
            let request = v1::ReleaseLeaseRequest { network, prefix: "10.64.0.0/26".into(), revision: 1 };
            control.release_lease(request).await.map(drop)
        }
        Method::Leave => control.leave(v1::LeaveRequest {}).await.map(drop),
        Method::RenewCertificate => {
            let csr_pem = mesh_control::NodeKey::generate().unwrap().csr_pem;
            control.renew_certificate(v1::RenewCertificateRequest { csr_pem }).await.map(drop)
        }
        Method::OpenSession => {
            let none = tokio_stream::empty::<v1::AgentMessage>();
            session_client(channel.clone()).open(none).await.map(drop)
        }
    }
}

#[tokio::test]
async fn a_worker_may_read_and_manage_itself_but_not_the_cluster() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    cluster.own().lease(&app, "").await.unwrap();
    let endpoints = vec![endpoint(&app, "c1", "10.64.0.2")];
    let _own = Agent::start(&cluster.own(), Behaviour { endpoints, ..Behaviour::default() }).await;
    cluster.create_service(service("web", "app")).await.unwrap();
    cluster.own().add("web", "c1").await.unwrap();
    let tokens = (cluster.token(Role::Worker).await, cluster.token(Role::Manager).await);
    let nodes = cluster.control().list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner();
    for method in METHODS {
        let worker = cluster.join("h2").await;
        let result = call(&worker.channel, method).await;
        // The endpoint belongs to another node.
        if matches!(method.access(), Access::Administration | Access::OwnEndpoints) {
            let error = result.unwrap_err();
            assert_eq!(error.code(), Code::PermissionDenied, "{method:?}: {error}");
        } else {
            result.unwrap_or_else(|error| panic!("{method:?}: {error}"));
        }
        if method != Method::Leave {
            let request = v1::RemoveNodeRequest { node: "h2".into(), force: true };
            cluster.control().remove_node(request).await.unwrap();
        }
    }
    assert_eq!((cluster.token(Role::Worker).await, cluster.token(Role::Manager).await), tokens);
    let networks =
        cluster.control().list_networks(v1::ListNetworksRequest {}).await.unwrap().into_inner().networks;
    assert_eq!(networks.iter().map(|network| network.name.as_str()).collect::<Vec<_>>(), ["app"]);
    let services = cluster.services().await;
    assert_eq!(
        services.iter().map(|one| one.service.as_ref().unwrap().name.as_str()).collect::<Vec<_>>(),
        ["web"]
    );
    assert_eq!(services[0].backends.len(), 1);
    let after = cluster.control().list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner();
    assert_eq!(after.nodes[0].node, nodes.nodes[0].node);
}

#[tokio::test]
async fn without_a_certificate_no_call_is_allowed() {
    let cluster = Cluster::start().await;
    cluster.create(network("app")).await.unwrap();
    let config = join_client_config(cluster.identity.ca_fingerprint().unwrap(), None).unwrap();
    let channel = connect(&cluster.address, config).await.unwrap();
    for method in METHODS {
        let error = call(&channel, method).await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied, "{method:?}: {error}");
    }
}

#[tokio::test]
async fn a_worker_cannot_release_another_nodes_lease() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let _agent = Agent::start(&h2, Behaviour::default()).await;
    let lease = h2.lease(&app, "").await.unwrap().lease.unwrap();
    let request = v1::ReleaseLeaseRequest {
        network: app.id.clone(),
        prefix: lease.prefix.clone(),
        revision: lease.revision,
    };
    let error = h3.control().release_lease(request.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    let leases = || async {
        let request = v1::InspectNetworkRequest { network: "app".into() };
        cluster.control().inspect_network(request).await.unwrap().into_inner().leases
    };
    assert_eq!(leases().await, [lease]);
    h2.control().release_lease(request).await.unwrap();
    assert_eq!(leases().await, []);
}
