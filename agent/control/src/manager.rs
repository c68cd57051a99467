//! A manager: created by `cluster init` or resumed from its store, then served.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use mesh_ipam::{Pool, PoolError, validate_pools};
use mesh_model::cluster::Cluster;
use mesh_model::{Availability, Mtu, Name, NetworkId, Node, NodeId, Prefix, Role};
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{Compare, Store, Txn};
use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;
use tonic::transport::{Channel, Server};
use tracing::warn;

use crate::connections::{Bounds, Connections};
use crate::core::Core;
use crate::identity::{CertificateAuthority, IdentityError, NODE_VALIDITY, NodeIdentity, NodeKey, tls};
use crate::records::{RecordError, Records, put};
use crate::rpc::{EnrollmentService, MemberService};
use crate::token::TokenRecord;
use crate::{clock, keys, limits, problems, tasks, transport};

/// The number of descriptors of a process without a configured limit.
const DESCRIPTORS: u64 = 1024;

/// The parameters of `cluster init` for the whole cluster.
#[derive(Debug, Clone)]
pub struct ClusterParameters {
    /// UDP port of VXLAN on every node.
    pub data_path_port: u16,
    /// The ranges of automatic subnets, in order; empty: 10.64.0.0/10.
    pub default_addr_pools: Vec<Prefix>,
    /// Prefix length of automatic IPv4 subnets.
    pub default_addr_pool_mask_length: u8,
    /// Whether replies of published ports leave from the backend's own node.
    pub dsr: bool,
}

/// The properties of the manager's own host.
#[derive(Debug, Clone)]
pub struct ThisNode {
    /// Its name.
    pub name: Name,
    /// Address at which its control plane is reachable.
    pub advertise_addr: SocketAddr,
    /// Its address on the underlay.
    pub data_path_addr: IpAddr,
    /// MTU of the interface with that address.
    pub data_path_mtu: Mtu,
    /// Version of its agent.
    pub version: String,
}

/// Why a manager could not be created or started.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The store contains a cluster already.
    #[error("the store already contains a cluster")]
    Exists,
    /// The identity is not this cluster's, or not a manager's.
    #[error("the node's certificate is not that of a manager of cluster {cluster}")]
    NotManager {
        /// The store's cluster.
        cluster: String,
    },
    /// The default address pools are invalid.
    #[error("the default address pools cannot be used: {0}")]
    Pools(#[from] PoolError),
    /// A pool overlaps the underlay.
    #[error("default address pool {pool} contains this node's data-path address {address}")]
    PoolOverUnderlay {
        /// The pool.
        pool: Prefix,
        /// The address.
        address: IpAddr,
    },
    /// An error of keys or certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An error of the store.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The server could not be set up.
    #[error("cannot serve: {0}")]
    Serve(#[from] tonic::transport::Error),
}

impl From<getrandom::Error> for ManagerError {
    fn from(error: getrandom::Error) -> Self {
        Self::Record(error.into())
    }
}

impl From<ManagerError> for Problem {
    fn from(error: ManagerError) -> Self {
        let kind = match &error {
            ManagerError::Exists => ProblemKind::Conflict,
            ManagerError::Pools(_) => ProblemKind::Usage,
            ManagerError::PoolOverUnderlay { .. } => {
                return Self::new(ProblemKind::Conflict, error.to_string())
                    .hint("choose another one with --default-addr-pool");
            }
            ManagerError::Record(_) => {
                let ManagerError::Record(error) = error else { unreachable!("matched above") };
                return error.into();
            }
            ManagerError::NotManager { .. } | ManagerError::Identity(_) | ManagerError::Serve(_) => {
                ProblemKind::Failed
            }
        };
        Self::new(kind, error.to_string())
    }
}

/// A running manager. Clones are the same manager. Its tasks end when the last clone is dropped or
/// after [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Manager {
    core: Arc<Core>,
    tls: Arc<RwLock<Arc<ServerConfig>>>,
    tasks: Arc<Mutex<JoinSet<()>>>,
    local: Channel,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("core", &self.core).finish_non_exhaustive()
    }
}

impl Manager {
    /// Creates a new cluster whose first manager is this node: a CA in `directory` and, in one
    /// transaction, the records of cluster and node and the join tokens. The caller must save the
    /// returned identity.
    pub async fn bootstrap(
        store: Arc<dyn Store>,
        directory: &Path,
        parameters: ClusterParameters,
        node: ThisNode,
    ) -> Result<(Self, NodeIdentity), ManagerError> {
        let records = Records::new(store.clone());
        let cluster = cluster_record(parameters)?;
        let underlay = node.data_path_addr;
        if let Some(&pool) = cluster.default_addr_pools.iter().find(|pool| pool.contains(underlay)) {
            return Err(ManagerError::PoolOverUnderlay { pool, address: underlay });
        }
        if records.get::<Cluster>(keys::cluster()).await?.is_some() {
            return Err(ManagerError::Exists);
        }
        let node = node_record(node)?;
        let authority = CertificateAuthority::create(directory, &cluster.id)?;
        let key = NodeKey::generate()?;
        let certificate = authority.issue(&key.csr_pem, &node.id, Role::Manager, NODE_VALIDITY)?;
        let identity = key.into_identity(certificate, authority.cert_pem().to_owned());
        let mut ops = vec![
            put(keys::cluster(), &cluster),
            put(keys::node(&node.id), &node),
            put(keys::node_name(&node.name), &node.id),
        ];
        for role in [Role::Worker, Role::Manager] {
            ops.push(put(keys::token(role), &TokenRecord::random()?));
        }
        let txn = Txn::when([Compare::absent(keys::cluster())]).then(ops);
        if records.commit(txn).await?.is_none() {
            return Err(ManagerError::Exists);
        }
        let manager = Self::start(records, authority, cluster, &identity).await?;
        Ok((manager, identity))
    }

    /// Resumes a manager: `store` and `directory` are those of [`bootstrap`](Self::bootstrap).
    pub async fn resume(
        store: Arc<dyn Store>,
        directory: &Path,
        identity: &NodeIdentity,
    ) -> Result<Self, ManagerError> {
        let records = Records::new(store);
        let cluster = records.cluster().await?;
        let authority = CertificateAuthority::load(directory, &cluster.id)?;
        Self::start(records, authority, cluster, identity).await
    }

    async fn start(
        records: Records,
        authority: CertificateAuthority,
        cluster: Cluster,
        identity: &NodeIdentity,
    ) -> Result<Self, ManagerError> {
        let own = identity.peer_identity()?;
        if own.role != Role::Manager || own.cluster != cluster.id {
            return Err(ManagerError::NotManager { cluster: cluster.id });
        }
        let tls = Arc::new(RwLock::new(tls::server_config(identity)?));
        let mut tasks = JoinSet::new();
        let core = tasks::start(records, authority, cluster, own, &mut tasks).await?;
        let (local, connections) = transport::pipe();
        let service = MemberService::local(core.clone());
        tasks.spawn(async move {
            let server = router(Server::builder(), service);
            if let Err(error) = server.serve_with_incoming(ReceiverStream::new(connections)).await {
                warn!(%error, "the server within the process ended");
            }
        });
        Ok(Self { core, tls, tasks: Arc::new(Mutex::new(tasks)), local })
    }

    /// Serves Enrollment, Control and Session over TLS, until `shutdown` resolves. Calls then have
    /// a short time to finish. Sessions end at once, and the agents reconnect elsewhere or later.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ManagerError> {
        let (connections, incoming) = mpsc::channel(64);
        let tls = self.tls.clone();
        let config = move || tls.read().clone();
        let mut accept = JoinSet::new();
        let (descriptors, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .unwrap_or((DESCRIPTORS, DESCRIPTORS));
        let places = Connections::new(Bounds::of_descriptors(descriptors));
        accept.spawn(transport::accept(listener, config, connections, places));
        let (drain, drained) = tokio::sync::oneshot::channel::<()>();
        let builder = Server::builder()
            .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(Some(limits::MAX_STREAMS));
        let server = router(builder, MemberService::remote(self.core.clone()))
            .add_service(EnrollmentService::new(self.core.clone()).server())
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async {
                // An error means that the sender is gone, which is a reason to end too.
                let _ = drained.await;
            });
        tokio::pin!(server);
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            () = shutdown => {}
        }
        accept.abort_all();
        self.core.end_sessions();
        // The receiver is gone only if the server has already ended.
        let _ = drain.send(());
        match tokio::time::timeout(limits::DRAIN, server).await {
            Ok(ended) => Ok(ended?),
            Err(_) => Ok(()),
        }
    }

    /// Returns a channel to Control and Session as this node, without a certificate. The manager's
    /// own agent uses it in place of [`connect`](crate::connect).
    pub fn local_channel(&self) -> Channel {
        self.local.clone()
    }

    /// Uses a renewed certificate for new connections.
    pub fn set_identity(&self, identity: &NodeIdentity) -> Result<(), ManagerError> {
        let config = tls::server_config(identity)?;
        *self.tls.write() = config;
        Ok(())
    }

    /// Returns the cluster's record.
    pub fn cluster(&self) -> &Cluster {
        self.core.cluster()
    }

    /// Returns this manager's node id.
    pub fn node_id(&self) -> &NodeId {
        self.core.node_id()
    }

    /// Returns the problems that this manager found with the nodes, one line each.
    pub fn problems(&self) -> Vec<String> {
        problems::all(&self.core)
    }

    /// Returns by how many milliseconds the clocks of the other nodes in session are ahead of this
    /// host's, as their median; `None` without such nodes.
    pub fn clocks_ahead(&self) -> Option<i64> {
        let mut clocks = self.core.sessions.clocks_ahead();
        clocks.remove(self.node_id());
        clock::median(clocks.into_values().collect())
    }

    /// Returns how many attempts to join were refused for their tokens since this manager started.
    pub fn refused_joins(&self) -> u64 {
        self.core.attempts.refused()
    }

    /// Ends all sessions and every task of the manager.
    pub fn shutdown(&self) {
        self.core.end_sessions();
        self.tasks.lock().abort_all();
    }
}

fn router(mut builder: Server, service: MemberService) -> Router {
    builder.add_service(service.clone().control_server()).add_service(service.session_server())
}

fn cluster_record(parameters: ClusterParameters) -> Result<Cluster, ManagerError> {
    let length = parameters.default_addr_pool_mask_length;
    let pools = match parameters.default_addr_pools {
        pools if pools.is_empty() => vec![Pool::default_ipv4().prefix()],
        pools => pools,
    };
    let cut: Vec<Pool> = pools.iter().map(|&pool| Pool::new(pool, length)).collect::<Result<_, _>>()?;
    validate_pools(&cut)?;
    let mut global_id = [0; 5];
    getrandom::fill(&mut global_id)?;
    Ok(Cluster {
        id: NetworkId::random()?.to_string(),
        data_path_port: parameters.data_path_port,
        default_addr_pools: pools,
        default_addr_pool_mask_length: length,
        ipv6_pool: Pool::unique_local(global_id).prefix(),
        created_at: Timestamp::now(),
        dsr: parameters.dsr,
    })
}

fn node_record(node: ThisNode) -> Result<Node, ManagerError> {
    Ok(Node {
        id: NodeId::random()?,
        name: node.name,
        role: Role::Manager,
        availability: Availability::Active,
        advertise_addr: node.advertise_addr,
        data_path_addr: node.data_path_addr,
        data_path_mtu: node.data_path_mtu,
        version: node.version,
        wireguard: None,
        host_addrs: std::collections::BTreeSet::new(),
        created_at: Timestamp::now(),
    })
}
