//! Who may call what, over real connections: the whole table.

use mesh_control::identity::tls::join_client_config;
use mesh_control::session::{control_client, session_client};
use mesh_control::{Access, Method, connect};
use mesh_proto::v1::{
    Availability, CreateNetworkRequest, GetClusterRequest, InspectNetworkRequest, InspectNodeRequest,
    JoinTokenRequest, LeaseRequest, LeaveRequest, ListEndpointsRequest, ListNetworksRequest,
    ListNodesRequest, PruneNetworksRequest, ReleaseLeaseRequest, RemoveNetworkRequest, RemoveNodeRequest,
    RenewCertificateRequest, Role, UpdateNodeRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, network};

const METHODS: [Method; 17] = [
    Method::CreateNetwork,
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
    Method::Lease,
    Method::ReleaseLease,
    Method::Leave,
    Method::RenewCertificate,
    Method::OpenSession,
];

/// Makes a call that would change something of the cluster if it were allowed.
async fn call(channel: &Channel, method: Method) -> Result<(), Status> {
    let mut control = control_client(channel.clone());
    let (app, h1) = ("app".to_owned(), "h1".to_owned());
    match method {
        Method::CreateNetwork => control
            .create_network(CreateNetworkRequest { name: "mine".into(), ..Default::default() })
            .await
            .map(drop),
        Method::RemoveNetwork => {
            control.remove_network(RemoveNetworkRequest { network: app }).await.map(drop)
        }
        Method::PruneNetworks => control.prune_networks(PruneNetworksRequest {}).await.map(drop),
        Method::UpdateNode => {
            let availability = Availability::Drain.into();
            control.update_node(UpdateNodeRequest { node: h1, availability }).await.map(drop)
        }
        Method::RemoveNode => {
            control.remove_node(RemoveNodeRequest { node: h1, force: true }).await.map(drop)
        }
        Method::JoinToken => {
            control.join_token(JoinTokenRequest { role: Role::Manager.into(), rotate: true }).await.map(drop)
        }
        Method::ListNetworks => control.list_networks(ListNetworksRequest {}).await.map(drop),
        Method::InspectNetwork => {
            control.inspect_network(InspectNetworkRequest { network: app }).await.map(drop)
        }
        Method::ListNodes => control.list_nodes(ListNodesRequest {}).await.map(drop),
        Method::InspectNode => control.inspect_node(InspectNodeRequest { node: h1 }).await.map(drop),
        Method::ListEndpoints => control.list_endpoints(ListEndpointsRequest::default()).await.map(drop),
        Method::GetCluster => control.get_cluster(GetClusterRequest {}).await.map(drop),
        Method::Lease => {
            control.lease(LeaseRequest { network: app, address: String::new(), family: 4 }).await.map(drop)
        }
        Method::ReleaseLease => {
            let network = "0123456789abcdef01234567".to_owned();
            let request = ReleaseLeaseRequest { network, prefix: "10.64.0.0/26".into(), revision: 1 };
            control.release_lease(request).await.map(drop)
        }
        Method::Leave => control.leave(LeaveRequest {}).await.map(drop),
        Method::RenewCertificate => {
            let csr_pem = mesh_control::NodeKey::generate().unwrap().csr_pem;
            control.renew_certificate(RenewCertificateRequest { csr_pem }).await.map(drop)
        }
        Method::OpenSession => {
            let none = tokio_stream::empty::<mesh_proto::v1::AgentMessage>();
            session_client(channel.clone()).open(none).await.map(drop)
        }
    }
}

#[tokio::test]
async fn a_worker_may_read_and_manage_itself_but_not_the_cluster() {
    let cluster = Cluster::start().await;
    cluster.create(network("app")).await.unwrap();
    let tokens = (cluster.token(Role::Worker).await, cluster.token(Role::Manager).await);
    let nodes = cluster.control().list_nodes(ListNodesRequest {}).await.unwrap().into_inner();
    for method in METHODS {
        let worker = cluster.join("h2").await;
        let result = call(&worker.channel, method).await;
        if method.access() == Access::Administration {
            let error = result.unwrap_err();
            assert_eq!(error.code(), Code::PermissionDenied, "{method:?}: {error}");
        } else {
            result.unwrap_or_else(|error| panic!("{method:?}: {error}"));
        }
        if method != Method::Leave {
            let request = RemoveNodeRequest { node: "h2".into(), force: true };
            cluster.control().remove_node(request).await.unwrap();
        }
    }
    assert_eq!((cluster.token(Role::Worker).await, cluster.token(Role::Manager).await), tokens);
    let networks =
        cluster.control().list_networks(ListNetworksRequest {}).await.unwrap().into_inner().networks;
    assert_eq!(networks.iter().map(|network| network.name.as_str()).collect::<Vec<_>>(), ["app"]);
    let after = cluster.control().list_nodes(ListNodesRequest {}).await.unwrap().into_inner();
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
    let request = ReleaseLeaseRequest {
        network: app.id.clone(),
        prefix: lease.prefix.clone(),
        revision: lease.revision,
    };
    let error = h3.control().release_lease(request.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    let leases = || async {
        let request = InspectNetworkRequest { network: "app".into() };
        cluster.control().inspect_network(request).await.unwrap().into_inner().leases
    };
    assert_eq!(leases().await, [lease]);
    h2.control().release_lease(request).await.unwrap();
    assert_eq!(leases().await, []);
}
