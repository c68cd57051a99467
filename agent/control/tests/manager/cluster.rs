//! A cluster for one test: a running manager, and hosts that join.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use mesh_control::identity::tls;
use mesh_control::session_client::control_client;
use mesh_control::{
    ClusterParameters, JoinParameters, Manager, NodeIdentity, PeerIdentity, ThisNode, connect, join,
};
use mesh_model::{Mtu, NodeId};
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::v1::{
    BackendStatus, CreateNetworkRequest, CreateServiceRequest, JoinTokenRequest, LeaseRequest, LeaseResponse,
    Network, Role, ServiceStatus,
};
use mesh_proto::{Problem, v1};
use mesh_store::{EmbeddedStore, KeyRange, MemoryStore, Op, Store, Txn};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::counting::{Counting, Work};

/// Timeout of all waits.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A manager that listens on 127.0.0.1.
pub(crate) struct Cluster {
    pub(crate) manager: Manager,
    pub(crate) store: Arc<dyn Store>,
    counted: Arc<Counting>,
    pub(crate) address: String,
    pub(crate) identity: NodeIdentity,
    directory: TempDir,
    server: JoinHandle<()>,
    hosts: AtomicU8,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::with_pools(&[], 20).await
    }

    pub(crate) async fn with_pools(pools: &[&str], length: u8) -> Self {
        Self::on(Arc::new(MemoryStore::new()), pools, length).await
    }

    /// Creates a cluster with a file store, as managers have it.
    pub(crate) async fn with_file(file: &Path) -> Self {
        Self::on(Arc::new(EmbeddedStore::create(file).unwrap()), &[], 20).await
    }

    async fn on(store: Arc<dyn Store>, pools: &[&str], length: u8) -> Self {
        let counted = Arc::new(Counting::new(store));
        let store: Arc<dyn Store> = counted.clone();
        let directory = tempfile::tempdir().unwrap();
        let parameters = ClusterParameters {
            data_path_port: 4789,
            default_addr_pools: pools.iter().map(|pool| pool.parse().unwrap()).collect(),
            default_addr_pool_mask_length: length,
            dsr: false,
        };
        let node = ThisNode {
            name: "h1".parse().unwrap(),
            advertise_addr: "192.168.77.11:7377".parse().unwrap(),
            data_path_addr: "192.168.77.11".parse().unwrap(),
            data_path_mtu: Mtu::try_from(1500).unwrap(),
            version: "test".into(),
        };
        let (manager, identity) =
            Manager::bootstrap(store.clone(), directory.path(), parameters, node).await.unwrap();
        let (address, server) = listen(&manager).await;
        Self { manager, store, counted, address, identity, directory, server, hosts: AtomicU8::new(12) }
    }

    /// Restarts the manager's process on the same store.
    pub(crate) async fn restart(mut self) -> Self {
        self.manager.shutdown();
        self.server.abort();
        self.manager =
            Manager::resume(self.store.clone(), self.directory.path(), &self.identity).await.unwrap();
        (self.address, self.server) = listen(&self.manager).await;
        self
    }

    /// Simulates a kill of the manager's process at this instant, and a restart with the state on
    /// its disk: a copy of the store.
    pub(crate) async fn copy_of_store(&self) -> Self {
        let counted = Arc::new(Counting::new(Arc::new(MemoryStore::new())));
        let store: Arc<dyn Store> = counted.clone();
        let found = self.store.range(KeyRange::all(), None, None).await.unwrap();
        let puts = found.kvs.iter().map(|kv| Op::put(kv.key.clone(), kv.value.clone()));
        store.txn(Txn::always(puts)).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        for file in ["ca.key", "ca.crt"] {
            std::fs::copy(self.directory.path().join(file), directory.path().join(file)).unwrap();
        }
        let manager = Manager::resume(store.clone(), directory.path(), &self.identity).await.unwrap();
        let (address, server) = listen(&manager).await;
        let hosts = AtomicU8::new(100);
        Self { manager, store, counted, address, identity: self.identity.clone(), directory, server, hosts }
    }

    /// Returns the directory of the manager's CA.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the store operations so far.
    pub(crate) fn work(&self) -> Work {
        self.counted.work()
    }

    /// Starts another manager on the same store.
    pub(crate) async fn second_manager(&self, member: &Member) -> Manager {
        Manager::resume(self.store.clone(), self.directory.path(), &member.identity).await.unwrap()
    }

    /// Returns a client that acts as the manager itself.
    pub(crate) fn control(&self) -> ControlClient<Channel> {
        control_client(self.manager.local_channel())
    }

    /// Returns the manager's own member.
    pub(crate) fn own(&self) -> Member {
        let channel = self.manager.local_channel();
        Member { identity: self.identity.clone(), id: self.manager.node_id().clone(), channel }
    }

    pub(crate) async fn token(&self, role: Role) -> String {
        let request = JoinTokenRequest { role: role.into(), rotate: false };
        self.control().join_token(request).await.unwrap().into_inner().token
    }

    pub(crate) fn parameters(&self, name: &str) -> JoinParameters {
        let host = self.hosts.fetch_add(1, Ordering::Relaxed);
        let address = IpAddr::from([192, 168, 77, host]);
        JoinParameters {
            name: name.parse().unwrap(),
            advertise_addr: (address, 7377).into(),
            data_path_addr: address,
            data_path_mtu: Mtu::try_from(1500).unwrap(),
            version: "test".into(),
            previous: None,
        }
    }

    pub(crate) async fn join(&self, name: &str) -> Member {
        self.join_as(name, Role::Worker).await
    }

    pub(crate) async fn join_as(&self, name: &str, role: Role) -> Member {
        let token = self.token(role).await;
        let joined = join(&self.address, &token, self.parameters(name)).await.unwrap();
        Member::connect(&self.address, joined.identity).await.unwrap()
    }

    pub(crate) async fn create_service(
        &self,
        request: CreateServiceRequest,
    ) -> Result<ServiceStatus, Problem> {
        Ok(self.control().create_service(request).await?.into_inner())
    }

    pub(crate) async fn services(&self) -> Vec<ServiceStatus> {
        let request = v1::ListServicesRequest::default();
        self.control().list_services(request).await.unwrap().into_inner().services
    }

    pub(crate) async fn create(&self, request: CreateNetworkRequest) -> Result<Network, Problem> {
        Ok(self.control().create_network(request).await?.into_inner())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn listen(manager: &Manager) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let manager = manager.clone();
    let server = tokio::spawn(async move {
        manager.serve(listener, std::future::pending()).await.unwrap();
    });
    (address, server)
}

/// Returns a request for a network with only this name.
pub(crate) fn network(name: &str) -> CreateNetworkRequest {
    CreateNetworkRequest { name: name.into(), attachable: true, ..Default::default() }
}

/// Returns a request for a network with this name and subnet.
pub(crate) fn network_of(name: &str, subnet: &str) -> CreateNetworkRequest {
    CreateNetworkRequest { subnets: vec![subnet.into()], ..network(name) }
}

/// Returns a request for a service with only this name.
pub(crate) fn service(name: &str, network: &str) -> CreateServiceRequest {
    CreateServiceRequest { name: name.into(), network: network.into(), ..Default::default() }
}

/// Parses a published port as `--publish` does.
pub(crate) fn port(text: &str) -> v1::PublishedPort {
    (&text.parse::<mesh_model::PublishedPort>().unwrap()).into()
}

/// A node with its certificate and a connection.
pub(crate) struct Member {
    pub(crate) identity: NodeIdentity,
    pub(crate) id: NodeId,
    pub(crate) channel: Channel,
}

impl Member {
    pub(crate) async fn connect(address: &str, identity: NodeIdentity) -> Result<Self, Problem> {
        let channel = connect(address, tls::client_config(&identity).unwrap()).await?;
        let PeerIdentity { node, .. } = identity.peer_identity().unwrap();
        Ok(Self { identity, id: node, channel })
    }

    pub(crate) fn control(&self) -> ControlClient<Channel> {
        control_client(self.channel.clone())
    }

    pub(crate) async fn lease(&self, network: &Network, address: &str) -> Result<LeaseResponse, Problem> {
        let request = LeaseRequest { network: network.id.clone(), address: address.into(), family: 4 };
        Ok(self.control().lease(request).await?.into_inner())
    }

    pub(crate) async fn add(&self, service: &str, endpoint: &str) -> Result<BackendStatus, Problem> {
        let (service, endpoint) = (service.into(), endpoint.into());
        Ok(self.control().add_backend(v1::AddBackendRequest { service, endpoint }).await?.into_inner())
    }

    pub(crate) async fn remove(&self, service: &str, endpoint: &str) -> Result<BackendStatus, Problem> {
        let (service, endpoint) = (service.into(), endpoint.into());
        Ok(self.control().remove_backend(v1::RemoveBackendRequest { service, endpoint }).await?.into_inner())
    }
}

/// An endpoint of a network, as a node reports it.
pub(crate) fn endpoint(network: &Network, name: &str, ipv4: &str) -> v1::Endpoint {
    v1::Endpoint {
        id: mesh_model::EndpointId::random().unwrap().to_string(),
        name: name.into(),
        network_id: network.id.clone(),
        ipv4: ipv4.into(),
        ..Default::default()
    }
}
