//! Whole agents in one process, on loopback addresses, with kernels in memory; asked as people ask
//! them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_host::fake::{TAKEN_UDP_PORT, TestHost, TestKernel};
use mesh_proto::v1;
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::v1::local_client::LocalClient;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint, Uri};

use super::*;
use crate::handle::Handle;
use crate::status::StatusReporter;
use crate::test_platform::platform;

struct TestAgent {
    kernel: TestKernel,
    memberships: Arc<Memberships>,
    channel: Channel,
    dir: PathBuf,
    server: tokio::task::JoinHandle<()>,
    stop: Option<oneshot::Sender<()>>,
}

impl TestAgent {
    async fn start(dir: &Path, name: &str, address: &str, kernel: TestKernel) -> Self {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        let platform = platform(&dir, TestHost::new(name, address), &kernel);
        Self::start_on(platform, dir, kernel).await
    }

    async fn start_on(platform: Platform, dir: PathBuf, kernel: TestKernel) -> Self {
        let memberships = Arc::new(Memberships::new(platform));
        // A stopped manager releases its store when its last task has ended.
        eventually("the store is nobody else's", Duration::from_secs(5), async || {
            let resumed = memberships.resume().await;
            if let Err(problem) = &resumed {
                assert!(problem.message.contains("in use by another process"), "{problem}");
            }
            resumed.is_ok()
        })
        .await;
        let socket = dir.join("meshd.sock");
        let listener = mesh_local_api::bind(&socket).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let reporter = StatusReporter::new(memberships.clone(), watch::channel(None).1);
        let handle = Arc::new(Handle::new(memberships.clone(), reporter));
        let server = tokio::spawn(async move {
            mesh_local_api::serve(listener, handle, async { drop(stopped.await) }).await.unwrap();
        });
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://meshd").connect_with_connector(connector).await.unwrap();
        Self { kernel, memberships, channel, dir, server, stop: Some(stop) }
    }

    fn local(&self) -> LocalClient<Channel> {
        LocalClient::new(self.channel.clone())
    }

    fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
    }

    async fn attach(&self, network: &str, name: &str) -> Result<v1::Endpoint, Problem> {
        let request =
            v1::AttachRequest { network: network.into(), netns: name.into(), ..v1::AttachRequest::default() };
        Ok(self.local().attach(request).await?.into_inner())
    }

    async fn status(&self) -> v1::StatusResponse {
        self.local().status(v1::StatusRequest {}).await.unwrap().into_inner()
    }

    /// Stops it as SIGTERM does.
    async fn stop(mut self) -> TestKernel {
        drop(self.stop.take());
        self.memberships.stop().await;
        self.server.abort();
        self.kernel
    }

    fn state_files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // The run directory is the agent's, not the member's.
        names.filter(|name| !["meshd.sock", "run"].contains(&name.as_str())).collect()
    }
}

async fn eventually(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn free_port(address: &str) -> u16 {
    let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}

fn init_request(address: &str, port: u16) -> v1::InitClusterRequest {
    v1::InitClusterRequest {
        advertise_addr: format!("{address}:{port}"),
        ..v1::InitClusterRequest::default()
    }
}

fn join_request(init: &v1::InitClusterResponse, address: &str) -> v1::JoinClusterRequest {
    v1::JoinClusterRequest {
        token: init.worker_token.clone(),
        manager: init.manager.clone(),
        advertise_addr: address.into(),
        ..v1::JoinClusterRequest::default()
    }
}

/// A cluster of three, the first its manager, with network `app`.
async fn three(dir: &Path, net: u8) -> [TestAgent; 3] {
    let address = |n: u8| format!("127.0.{net}.{n}");
    let mut agents = Vec::new();
    for n in 1..=3 {
        let kernel = TestKernel::with_underlay();
        agents.push(TestAgent::start(dir, &format!("h{n}"), &address(n), kernel).await);
    }
    let port = free_port(&address(1)).await;
    let init = agents[0].local().init_cluster(init_request(&address(1), port)).await.unwrap().into_inner();
    for (agent, n) in agents[1..].iter().zip(2..) {
        agent.local().join_cluster(join_request(&init, &address(n))).await.unwrap();
    }
    let request = v1::CreateNetworkRequest {
        name: "app".into(),
        attachable: true,
        ..v1::CreateNetworkRequest::default()
    };
    agents[0].control().create_network(request).await.unwrap();
    agents.try_into().map_err(|_| "three").unwrap()
}

#[tokio::test]
async fn three_hosts_become_a_cluster_attach_containers_and_leave_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let agents = three(dir.path(), 1).await;
    let mut addresses = Vec::new();
    for (agent, name) in agents.iter().zip(["c1", "c2", "c3"]) {
        let endpoint = agent.attach("app", name).await.unwrap();
        addresses.push(endpoint.ipv4);
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 3);
    // Each node's datapath knows the others' blocks by now: that is what an attach waits for.
    for agent in &agents {
        let remote = agent.kernel.inner.lock().unwrap().state.programs.entries.values().filter(|entry| {
            matches!(entry, mesh_ebpf_types::MapEntry::Block(_, block) if block.kind == mesh_ebpf_types::BlockKind::Remote as u32)
        }).count();
        assert!(remote >= 2, "{remote} remote blocks");
    }
    let listed = agents[1].control().list_endpoints(v1::ListEndpointsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().endpoints.len(), 3);
    let status = agents[2].status().await;
    assert_eq!((status.membership.as_str(), status.endpoints, status.networks), ("member", 1, 1));
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    assert_eq!(status.applied_revision, status.revision);

    for (agent, name) in agents.iter().zip(["c1", "c2", "c3"]).rev() {
        agent.local().detach(v1::DetachRequest { endpoint: name.into() }).await.unwrap();
        agent.local().leave_cluster(v1::LeaveClusterRequest { force: true }).await.unwrap();
        assert_eq!(agent.status().await.membership, "none");
        assert_eq!(agent.state_files(), Vec::<String>::new());
        let kernel = agent.kernel.inner.lock().unwrap();
        assert!(kernel.state.links.is_empty(), "{:?}", kernel.state.links);
    }
}

#[tokio::test]
async fn a_worker_reads_the_clusters_state_but_may_not_change_it() {
    let dir = tempfile::tempdir().unwrap();
    let agents = three(dir.path(), 2).await;
    let nodes = agents[1].control().list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!(nodes.len(), 3);
    let request = v1::CreateNetworkRequest { name: "mine".into(), ..v1::CreateNetworkRequest::default() };
    let problem: Problem = agents[1].control().create_network(request).await.unwrap_err().into();
    assert_eq!(problem.kind, ProblemKind::NotManager, "{problem}");
    assert!(problem.hint.is_some());
}

#[tokio::test]
async fn without_its_manager_a_worker_restarts_attaches_and_detaches() {
    let dir = tempfile::tempdir().unwrap();
    let [manager, worker, _] = three(dir.path(), 3).await;
    let first = worker.attach("app", "c1").await.unwrap();
    manager.stop().await;
    let kernel = worker.stop().await;
    kernel.take_applied();
    let worker = TestAgent::start(dir.path(), "h2", "127.0.3.2", kernel).await;
    let second = worker.attach("app", "c2").await.unwrap();
    assert_ne!(first.ipv4, second.ipv4);
    worker.local().detach(v1::DetachRequest { endpoint: first.id }).await.unwrap();
    let problem: Problem = worker.control().list_nodes(v1::ListNodesRequest {}).await.unwrap_err().into();
    assert_eq!(problem.kind.exit_code(), 5, "{problem}");
    assert_eq!(worker.status().await.manager, "");
    // What is asked of endpoints is answered as far as it can be: the node's own.
    for (network, node) in [("", ""), ("app", ""), ("", "h2")] {
        let request = v1::ListEndpointsRequest { network: network.into(), node: node.into() };
        let own = worker.control().list_endpoints(request).await.unwrap().into_inner().endpoints;
        assert_eq!(own.iter().map(|endpoint| &endpoint.id).collect::<Vec<_>>(), [&second.id]);
    }
    for (network, node) in [("other", ""), ("", "h1")] {
        let request = v1::ListEndpointsRequest { network: network.into(), node: node.into() };
        let problem: Problem = worker.control().list_endpoints(request).await.unwrap_err().into();
        assert_eq!(problem.kind.exit_code(), 5, "{problem}");
    }
}

#[tokio::test]
async fn a_restarted_manager_is_the_same_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let [manager, worker, _] = three(dir.path(), 4).await;
    let before = manager.status().await.cluster;
    let kernel = manager.stop().await;
    let manager = TestAgent::start(dir.path(), "h1", "127.0.4.1", kernel).await;
    assert_eq!(manager.status().await.cluster, before);
    manager.attach("app", "c1").await.unwrap();
    eventually("the worker comes back", Duration::from_secs(10), async || {
        !worker.status().await.manager.is_empty()
    })
    .await;
    worker.attach("app", "c2").await.unwrap();
}

#[tokio::test]
async fn a_cluster_whose_vxlan_port_somebody_has_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let agent = TestAgent::start(dir.path(), "h1", "127.0.5.2", TestKernel::with_underlay()).await;
    let mut request = init_request("127.0.5.2", free_port("127.0.5.2").await);
    request.data_path_port = u32::from(TAKEN_UDP_PORT);
    let problem: Problem = agent.local().init_cluster(request.clone()).await.unwrap_err().into();
    assert_eq!(problem.kind.exit_code(), 4, "{problem}");
    assert!(problem.message.contains("4800"), "{problem}");
    request.data_path_port = 4801;
    agent.local().init_cluster(request).await.unwrap();
}

#[tokio::test]
async fn a_host_that_is_no_member_says_so_and_a_member_does_not_join_twice() {
    let dir = tempfile::tempdir().unwrap();
    let agent = TestAgent::start(dir.path(), "h1", "127.0.5.1", TestKernel::with_underlay()).await;
    let problem = agent.attach("app", "c1").await.unwrap_err();
    assert_eq!(problem.kind.exit_code(), 4);
    assert!(problem.hint.unwrap().contains("cluster init"));
    let request = init_request("127.0.5.1", free_port("127.0.5.1").await);
    agent.local().init_cluster(request.clone()).await.unwrap();
    let problem: Problem = agent.local().init_cluster(request).await.unwrap_err().into();
    assert_eq!(problem.kind.exit_code(), 4);
    let problem: Problem =
        agent.local().leave_cluster(v1::LeaveClusterRequest { force: false }).await.unwrap_err().into();
    assert_eq!(problem.kind.exit_code(), 4, "{problem}");
    assert!(problem.hint.unwrap().contains("--force"));
}

#[tokio::test]
async fn an_init_or_join_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let agent = TestAgent::start(dir.path(), "h1", "127.0.6.1", TestKernel::with_underlay()).await;
    let taken = tokio::net::TcpListener::bind(("127.0.6.1", 0)).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let problem: Problem =
        agent.local().init_cluster(init_request("127.0.6.1", port)).await.unwrap_err().into();
    assert_eq!(problem.kind.exit_code(), 4, "{problem}");
    let pools = v1::InitClusterRequest {
        default_addr_pools: vec!["127.0.0.0/8".into()],
        ..init_request("127.0.6.1", free_port("127.0.6.1").await)
    };
    agent.local().init_cluster(pools).await.unwrap_err();
    let nobody = v1::JoinClusterRequest {
        token: format!("MESH-1-{}-{}", "0".repeat(64), "0".repeat(40)),
        manager: format!("127.0.6.1:{}", free_port("127.0.6.1").await),
        advertise_addr: "127.0.6.1".into(),
        ..v1::JoinClusterRequest::default()
    };
    let problem: Problem = agent.local().join_cluster(nobody).await.unwrap_err().into();
    assert_eq!(problem.kind.exit_code(), 5, "{problem}");
    assert_eq!(agent.state_files(), Vec::<String>::new());
    assert_eq!(agent.status().await.membership, "none");
    drop(taken);
    agent.local().init_cluster(init_request("127.0.6.1", port)).await.unwrap();
}

#[tokio::test]
async fn what_an_init_that_was_killed_left_is_cleaned_up_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("h1");
    fs::create_dir_all(state.join("ca")).unwrap();
    fs::write(state.join("store.redb"), "half").unwrap();
    fs::write(state.join("changing"), "").unwrap();
    let agent = TestAgent::start(dir.path(), "h1", "127.0.7.1", TestKernel::with_underlay()).await;
    assert_eq!(agent.state_files(), Vec::<String>::new());
}

#[tokio::test]
async fn a_store_whose_membership_was_lost_is_neither_wiped_nor_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let agent = TestAgent::start(dir.path(), "h1", "127.0.18.1", TestKernel::with_underlay()).await;
    let port = free_port("127.0.18.1").await;
    agent.local().init_cluster(init_request("127.0.18.1", port)).await.unwrap();
    let state = agent.dir.clone();
    let kernel = agent.stop().await;
    fs::rename(state.join("member.json"), state.join("aside")).unwrap();
    // The last task writes to the store once more before it releases it.
    let store = fs::File::open(state.join("store.redb")).unwrap();
    tokio::task::spawn_blocking(move || store.lock()).await.unwrap().unwrap();
    let before = fs::read(state.join("store.redb")).unwrap();
    let memberships = Memberships::new(platform(&state, TestHost::new("h1", "127.0.18.1"), &kernel));
    for refused in [
        memberships.resume().await.unwrap_err(),
        memberships.init(init_request("127.0.18.1", port)).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind, ProblemKind::Conflict);
        assert!(refused.message.contains("member.json is missing"), "{refused}");
        assert!(refused.hint.unwrap().contains("from a backup"));
    }
    assert!(fs::read(state.join("store.redb")).unwrap() == before);
    assert!(state.join("ca").is_dir() && state.join("identity.pem").is_file());
    fs::rename(state.join("aside"), state.join("member.json")).unwrap();
    let agent = TestAgent::start(dir.path(), "h1", "127.0.18.1", kernel).await;
    assert_eq!(agent.status().await.membership, "member");
}

#[tokio::test]
async fn a_pool_mask_that_leaves_no_room_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let agent = TestAgent::start(dir.path(), "h1", "127.0.19.1", TestKernel::with_underlay()).await;
    let mut request = init_request("127.0.19.1", free_port("127.0.19.1").await);
    request.default_addr_pool_mask_length = 30;
    let refused = agent.memberships.init(request.clone()).await.unwrap_err();
    assert_eq!(refused.kind, ProblemKind::Usage);
    assert!(refused.message.contains("1 to 29"), "{refused}");
    request.default_addr_pool_mask_length = 29;
    agent.memberships.init(request).await.unwrap();
}

#[tokio::test]
async fn a_hundred_attaches_at_once_from_three_hosts_share_no_address() {
    let dir = tempfile::tempdir().unwrap();
    let agents = Arc::new(three(dir.path(), 8).await);
    let mut attaches = JoinSet::new();
    for n in 0..102 {
        let agents = agents.clone();
        attaches.spawn(async move { agents[n % 3].attach("app", &format!("c{n}")).await.unwrap().ipv4 });
    }
    let mut addresses = attaches.join_all().await;
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 102);
}

#[tokio::test]
async fn a_name_is_one_endpoints_in_the_whole_cluster_however_close_two_attaches_are() {
    let dir = tempfile::tempdir().unwrap();
    let [_manager, h2, h3] = three(dir.path(), 20).await;
    let attach = async |agent: &TestAgent, netns: String, name: String| -> Result<v1::Endpoint, Problem> {
        let request =
            v1::AttachRequest { network: "app".into(), netns, name, ..v1::AttachRequest::default() };
        Ok(agent.local().attach(request).await?.into_inner())
    };
    let first = attach(&h2, "c0".into(), "web".into()).await.unwrap();
    let refused = attach(&h3, "c0".into(), "web".into()).await.unwrap_err();
    assert_eq!(refused.kind.exit_code(), 4, "{refused}");
    let expected = format!("endpoint web exists on network app ({} on node h2)", first.id);
    assert_eq!(refused.message, expected);
    assert_eq!(h3.status().await.endpoints, 0, "an attach that is refused is undone");
    for n in 1..=10 {
        let at_once = [&h2, &h3].map(|agent| attach(agent, format!("c{n}"), format!("web{n}")));
        let outcomes = both_at_once(at_once).await;
        let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert_eq!(refused.len(), 1, "{outcomes:?}");
        assert_eq!(refused[0].kind, ProblemKind::Conflict, "{refused:?}");
    }
    h2.local().detach(v1::DetachRequest { endpoint: first.id }).await.unwrap();
    attach(&h3, "c0".into(), "web".into()).await.unwrap();
}

async fn both_at_once<T>(both: [impl Future<Output = T>; 2]) -> [T; 2] {
    let [one, other] = both;
    tokio::join!(one, other).into()
}

#[tokio::test]
async fn a_small_network_is_used_to_its_last_address_wherever_that_is() {
    let dir = tempfile::tempdir().unwrap();
    let agents = three(dir.path(), 9).await;
    let request = v1::CreateNetworkRequest {
        name: "small".into(),
        subnets: vec!["10.9.0.0/28".into()],
        attachable: true,
        ..v1::CreateNetworkRequest::default()
    };
    agents[0].control().create_network(request).await.unwrap();
    let mut addresses = Vec::new();
    let problem = loop {
        let n = addresses.len();
        match agents[n % 3].attach("small", &format!("c{n}")).await {
            Ok(endpoint) => addresses.push(endpoint.ipv4),
            Err(problem) => break problem,
        }
    };
    assert_eq!(addresses.len(), 10, "sixteen without network, broadcast, gateway and three of the VIP block");
    assert_eq!((problem.kind, problem.kind.exit_code()), (ProblemKind::Exhausted, 1), "{problem}");
    let freed =
        agents[1].local().detach(v1::DetachRequest { endpoint: "c1".into() }).await.unwrap().into_inner();
    // Another node gets it: the one that has it gives it up when asked.
    assert_eq!(agents[2].attach("small", "cx").await.unwrap().ipv4, freed.ipv4);
    let problem = agents[1].attach("small", "cy").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Exhausted, "{problem}");
}

#[tokio::test]
async fn blocks_that_were_idle_for_long_go_back_to_the_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = TestKernel::with_underlay();
    let state = dir.path().join("h1");
    fs::create_dir_all(&state).unwrap();
    let mut platform = platform(&state, TestHost::new("h1", "127.0.10.1"), &kernel);
    platform.delays = mesh_ipam::Delays { reuse: 0, idle: 100 };
    let agent = TestAgent::start_on(platform, state, kernel).await;
    let port = free_port("127.0.10.1").await;
    agent.local().init_cluster(init_request("127.0.10.1", port)).await.unwrap();
    let request = v1::CreateNetworkRequest {
        name: "app".into(),
        attachable: true,
        ..v1::CreateNetworkRequest::default()
    };
    agent.control().create_network(request).await.unwrap();
    agent.attach("app", "c1").await.unwrap();
    agent.local().detach(v1::DetachRequest { endpoint: "c1".into() }).await.unwrap();
    eventually("the block is given back", Duration::from_secs(10), async || {
        let inspect = v1::InspectNetworkRequest { network: "app".into() };
        agent.control().inspect_network(inspect).await.unwrap().into_inner().leases.is_empty()
    })
    .await;
    agent.attach("app", "c1").await.unwrap();
}

#[tokio::test]
async fn an_underlay_that_carries_less_is_known_to_all_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let agents = three(dir.path(), 11).await;
    agents[0].attach("app", "c1").await.unwrap();
    let mtu = || async {
        let request = v1::NetworkCountersRequest { vni: 4096 };
        agents[0].local().network_counters(request).await.unwrap().into_inner().mtu
    };
    assert_eq!(mtu().await, 1450);
    agents[1].kernel.inner.lock().unwrap().state.underlay.as_mut().unwrap().mtu = 1400;
    // Any change makes the agent look: here, an endpoint of its own.
    agents[1].attach("app", "c2").await.unwrap();
    eventually("the MTU is what the other carries", Duration::from_secs(5), async || mtu().await == 1350)
        .await;
}
