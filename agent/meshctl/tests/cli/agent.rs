//! An agent that answers with fixed records on a socket of its own, and the command run against it.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use mesh_proto::v1::control_server::ControlServer;
use mesh_proto::v1::local_server::LocalServer;
use mesh_proto::{Problem, ProblemKind, v1};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// What the agent answers from, and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// A worker whose managers are all away.
    pub(crate) managers_away: bool,
    /// What `status` says; nothing: a host in no cluster.
    pub(crate) status: v1::StatusResponse,
    /// All networks.
    pub(crate) networks: Vec<v1::Network>,
    /// All endpoints.
    pub(crate) endpoints: Vec<v1::Endpoint>,
    /// Nodes whose endpoints nobody knows.
    pub(crate) unheard: Vec<String>,
    /// The last requests.
    pub(crate) created: Option<v1::CreateNetworkRequest>,
    pub(crate) network_update: Option<v1::UpdateNetworkRequest>,
    pub(crate) attached: Option<v1::AttachRequest>,
    pub(crate) initialised: Option<v1::InitClusterRequest>,
    pub(crate) joined: Option<v1::JoinClusterRequest>,
    pub(crate) updated: Option<v1::UpdateNodeRequest>,
    pub(crate) listed: Option<v1::ListEndpointsRequest>,
    pub(crate) pruned: bool,
    /// What an attached endpoint is told.
    pub(crate) dns: Option<v1::Dns>,
    /// The inspected node's keys.
    pub(crate) wireguard: Option<v1::Wireguard>,
    /// All services.
    pub(crate) services: Vec<v1::ServiceStatus>,
    /// What a check of changes finds.
    pub(crate) faults: Vec<v1::ChangeFault>,
    /// What an answer to a change warns of.
    pub(crate) warnings: Vec<String>,
    /// The last changes that were checked.
    pub(crate) checked: Vec<v1::ProposedChange>,
    /// What was asked about services, in order.
    pub(crate) asked: Vec<Asked>,
}

/// A request about a service.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Asked {
    Create(v1::CreateServiceRequest),
    Update(v1::UpdateServiceRequest),
    /// What, of which service, with which endpoint.
    Backend(&'static str, String, String),
}

/// The services, over state that the test can look at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Services(Arc<Mutex<State>>);

impl Services {
    /// Looks at or changes the state.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A running agent; it and its socket are gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) services: Services,
    directory: TempDir,
    _runtime: Runtime,
}

impl Agent {
    pub(crate) fn start(state: State) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let services = Services(Arc::new(Mutex::new(state)));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let served = services.clone();
        let entered = runtime.enter();
        let listener = UnixListener::bind(directory.path().join("meshd.sock")).unwrap();
        drop(entered);
        runtime.spawn(
            Server::builder()
                .add_service(ControlServer::new(served.clone()))
                .add_service(LocalServer::new(served))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { services, directory, _runtime: runtime }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("meshd.sock")
    }

    /// The command with its arguments, split at blanks, against this agent.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = meshctl(line);
        command.env("MESH_SOCKET", self.socket());
        command
    }

    pub(crate) fn run(&self, line: &str) -> Done {
        self.command(line).output().unwrap().into()
    }
}

/// The command with its arguments, split at blanks, against no agent.
pub(crate) fn meshctl(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(line.split_whitespace()).stdin(Stdio::null()).env_remove("MESH_SOCKET");
    command
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Done {
    /// Standard output of a command that succeeded.
    pub(crate) fn text(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    /// The same as JSON.
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.text()).unwrap()
    }
}

/// The error that a name provokes: its kind's own.
pub(crate) fn provoked(name: &str) -> Option<Problem> {
    let kind = match name {
        "broken" => ProblemKind::Failed,
        "malformed" => ProblemKind::Usage,
        "missing" => ProblemKind::NotFound,
        "busy" => ProblemKind::Conflict,
        "away" => ProblemKind::Unreachable,
        "forbidden" => ProblemKind::Denied,
        "full" => ProblemKind::Exhausted,
        "worker" => ProblemKind::NotManager,
        "unsure" => ProblemKind::Unconfirmed,
        _ => return None,
    };
    Some(Problem::new(kind, format!("network inspect, {name}, it is so")).hint(format!("avoid {name}")))
}

pub(crate) fn network(id: &str, name: &str, vni: u32) -> v1::Network {
    v1::Network {
        id: id.into(),
        name: name.into(),
        vni,
        subnets: vec![v1::Subnet {
            subnet: "10.64.0.0/20".into(),
            gateway: "10.64.0.1".into(),
            ip_range: None,
            aux: [("printer".into(), "10.64.0.9".into())].into(),
        }],
        attachable: true,
        labels: [("tier".into(), "web".into())].into(),
        created_at: "2026-11-21T10:00:00Z".into(),
        ..Default::default()
    }
}

pub(crate) fn endpoint(id: &str, name: &str, network: &v1::Network) -> v1::Endpoint {
    v1::Endpoint {
        id: id.into(),
        name: name.into(),
        network_id: network.id.clone(),
        network_name: network.name.clone(),
        node_id: NODE.into(),
        node_name: "h1".into(),
        ipv4: "10.64.0.2".into(),
        mac: "02:42:0a:40:00:02".into(),
        ifname: "eth0".into(),
        aliases: vec!["www".into()],
        created_at: "2026-11-21T10:00:01Z".into(),
        ..Default::default()
    }
}

/// The network that a request asks for, where what is left open is as in [`network`].
pub(crate) fn as_requested(id: &str, request: &v1::CreateNetworkRequest) -> v1::Network {
    let made = network(id, &request.name, request.vni.unwrap_or(4096));
    let inside = |subnet: &str, text: &str| {
        text.split('/').next().unwrap().contains(subnet.split_once("0/").map_or("::", |(start, _)| start))
    };
    let subnet = |subnet: &String| v1::Subnet {
        subnet: subnet.clone(),
        gateway: request.gateways.iter().find(|ip| inside(subnet, ip)).cloned().unwrap_or("10.80.0.1".into()),
        ip_range: request.ip_ranges.iter().find(|range| inside(subnet, range)).cloned(),
        aux: request.aux.clone(),
    };
    let mut subnets: Vec<_> = request.subnets.iter().map(subnet).collect();
    if subnets.is_empty() {
        subnets.clone_from(&made.subnets);
    }
    v1::Network {
        subnets,
        mtu: request.mtu,
        encrypted: request.encrypted,
        internal: request.internal,
        attachable: request.attachable,
        labels: request.labels.clone(),
        ..made
    }
}

/// The port as the cluster publishes it.
pub(crate) fn open_port(port: v1::PublishedPort) -> v1::PublishedPort {
    let published = if port.published == 0 { 30000 } else { port.published };
    v1::PublishedPort { published, ..port }
}

pub(crate) fn service(
    id: &str,
    network: &v1::Network,
    request: v1::CreateServiceRequest,
) -> v1::ServiceStatus {
    let vip = |given: &str| if given.is_empty() { "10.64.15.240".to_owned() } else { given.to_owned() };
    let made = v1::Service {
        id: id.into(),
        name: request.name,
        network: network.id.clone(),
        endpoint_mode: request.endpoint_mode,
        vip: vip(&request.vip),
        vip6: request.vip6,
        ports: request.ports.into_iter().map(open_port).collect(),
        affinity: request.affinity,
        when_all_unhealthy: request.when_all_unhealthy,
        health: request.health,
        created_at: "2026-11-21T10:00:02Z".into(),
        aliases: request.aliases,
        labels: request.labels,
    };
    v1::ServiceStatus {
        service: Some(made),
        network_name: network.name.clone(),
        ..v1::ServiceStatus::default()
    }
}

pub(crate) fn backend(number: u32, name: &str, service: &v1::Service) -> v1::BackendStatus {
    let backend = v1::Backend {
        id: number,
        service: service.id.clone(),
        network: service.network.clone(),
        endpoint: format!("{:024x}", 0x00ee_0000 + number),
        name: name.into(),
        node: NODE.into(),
        ipv4: format!("10.64.0.{number}"),
        ipv6: String::new(),
        state: v1::BackendState::Active.into(),
        created_at: "2026-11-21T10:00:03Z".into(),
    };
    v1::BackendStatus {
        backend: Some(backend),
        node_name: "h1".into(),
        health: "healthy".into(),
        node_state: v1::NodeState::Ready.into(),
        health_error: String::new(),
        node_availability: v1::Availability::Active.into(),
        receives_traffic: true,
        traffic_reason: String::new(),
    }
}

pub(crate) const NODE: &str = "0123456789abcdef01234567";

pub(crate) fn node() -> v1::Node {
    v1::Node {
        id: NODE.into(),
        name: "h1".into(),
        role: v1::Role::Manager.into(),
        availability: v1::Availability::Active.into(),
        advertise_addr: "192.0.2.11:7377".into(),
        data_path_addr: "192.0.2.11".into(),
        data_path_mtu: 1500,
        version: "0.1.0".into(),
        created_at: "2026-11-21T09:00:00Z".into(),
        wireguard: None,
        host_addrs: vec!["192.0.2.11".into(), "198.51.100.11".into()],
    }
}

pub(crate) fn node_status() -> v1::NodeStatus {
    v1::NodeStatus {
        node: Some(node()),
        state: v1::NodeState::Ready.into(),
        leader: true,
        last_seen: "2026-11-21T10:00:02Z".into(),
        unreachable_from: vec![v1::UnreachableFrom { node: "h2".into(), encrypted: true }],
    }
}

pub(crate) fn cluster() -> v1::Cluster {
    v1::Cluster {
        id: "fedcba987654321001234567".into(),
        data_path_port: 4789,
        default_addr_pools: vec!["10.64.0.0/10".into()],
        default_addr_pool_mask_length: 20,
        ipv6_pool: "fd00:1:2::/48".into(),
        created_at: "2026-11-21T09:00:00Z".into(),
        dsr: false,
    }
}
