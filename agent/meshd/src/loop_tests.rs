//! The loops together, on a host and a kernel in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_control::NodeIdentity;
use mesh_endpoints::Endpoints;
use mesh_host::Host;
use mesh_host::fake::{TestHost, TestKernel};
use mesh_model::{Action, EndpointPhase};
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_reconciler::{Encryption, Xdp, reconcile};
use mesh_services::tables;
use mesh_session::Managers;
use mesh_state::Agent;
use mesh_state::fake::{node, view};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::test_platform::platform;

/// One node with a lease of 10.64.0.0/26 in network `app`, its loop, and no manager anywhere.
struct Rig {
    agent: Arc<Agent>,
    endpoints: Arc<Endpoints>,
    kernel: TestKernel,
    host: Arc<TestHost>,
    tasks: JoinSet<()>,
}

impl Rig {
    fn start(dir: &Path, kernel: &TestKernel) -> Self {
        let host = TestHost::new("h1", "192.0.2.1");
        let platform = platform(dir, host.clone(), kernel);
        let agent =
            Agent::load(node(), view(), platform.encapsulation, platform.paths.clone(), platform.delays)
                .unwrap();
        let agent = Arc::new(agent);
        let identity =
            NodeIdentity { cert_pem: String::new(), key_pem: String::new(), ca_pem: String::new() };
        let managers = Arc::new(Managers::new(agent.clone(), None, identity, Vec::new()));
        let endpoints = Arc::new(Endpoints::new(agent.clone(), managers, host.clone()));
        let mut tasks = JoinSet::new();
        let events = host.watch_kernel().unwrap();
        let encryption = Encryption::new(platform.engines, platform.paths.wireguard_keys());
        let xdp = Xdp::new(platform.xdp, host.clone());
        tasks.spawn(reconcile::run(
            agent.clone(),
            platform.kernel.clone(),
            Arc::new(encryption),
            xdp,
            events,
        ));
        tasks.spawn(tables::run(agent.clone(), platform.kernel));
        Self { agent, endpoints, kernel: kernel.clone(), host, tasks }
    }

    async fn attach(&self, name: &str) -> Result<v1::Endpoint, Problem> {
        self.endpoints.attach(request(name)).await
    }

    /// Kills the agent: nothing gets a chance to clean up.
    async fn kill(mut self) {
        self.tasks.shutdown().await;
    }

    fn records(dir: &Path) -> usize {
        std::fs::read_dir(dir.join("endpoints")).unwrap().count()
    }
}

fn request(name: &str) -> v1::AttachRequest {
    v1::AttachRequest { network: "app".into(), netns: name.into(), ..v1::AttachRequest::default() }
}

fn devices(kernel: &TestKernel) -> usize {
    let names = kernel.inner.lock().unwrap();
    names.state.links.keys().filter(|name| mesh_model::naming::is_endpoint(name.as_str())).count()
}

#[tokio::test]
async fn an_attached_container_has_a_device_a_durable_record_and_an_address_of_the_block() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &TestKernel::with_underlay());
    let endpoint = rig.attach("c1").await.unwrap();
    assert_eq!((endpoint.name.as_str(), endpoint.ifname.as_str()), ("c1", "eth0"));
    assert_eq!((endpoint.ipv4.as_str(), endpoint.mac.as_str()), ("10.64.0.2", "02:42:0a:40:00:02"));
    assert_eq!(devices(&rig.kernel), 1);
    let loaded = rig.agent.endpoint_store().load().unwrap();
    assert!(loaded.endpoints.values().all(|endpoint| endpoint.phase == EndpointPhase::Attached));
    rig.endpoints.detach("c1").await.unwrap();
    assert_eq!((devices(&rig.kernel), Rig::records(dir.path())), (0, 0));
}

#[tokio::test]
async fn an_attach_whose_device_cannot_be_made_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &TestKernel::with_underlay());
    rig.kernel.inner.lock().unwrap().refused.insert("CreateEndpoint", 12);
    let problem = rig.attach("c1").await.unwrap_err();
    assert!(problem.message.contains("CreateEndpoint"), "{problem}");
    assert_eq!((devices(&rig.kernel), Rig::records(dir.path())), (0, 0));
    assert!(rig.agent.read(|state| state.endpoints.is_empty()));
    rig.kernel.inner.lock().unwrap().refused.clear();
    // Another address first: the one of the failed attempt rests.
    assert_eq!(rig.attach("c1").await.unwrap().ipv4, "10.64.0.3");
}

#[tokio::test]
async fn an_endpoint_is_detached_by_its_name_or_by_enough_of_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &TestKernel::with_underlay());
    let endpoint = rig.attach("c1").await.unwrap();
    for short in [&endpoint.id[..1], &endpoint.id[..3]] {
        let problem = rig.endpoints.detach(short).await.unwrap_err();
        assert_eq!(problem.kind, ProblemKind::Usage, "{problem}");
    }
    rig.endpoints.detach(&endpoint.id[..4]).await.unwrap();
    let named = v1::AttachRequest { name: "x".into(), ..request("c1") };
    rig.endpoints.attach(named).await.unwrap();
    rig.endpoints.detach("x").await.unwrap();
}

#[tokio::test]
async fn one_containers_failure_is_not_anothers() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &TestKernel::with_underlay());
    rig.attach("c1").await.unwrap();
    rig.kernel.inner.lock().unwrap().refused.insert("CreateEndpoint", 12);
    rig.attach("c2").await.unwrap_err();
    assert_eq!(devices(&rig.kernel), 1);
    assert_eq!(rig.agent.read(|state| state.endpoints.len()), 1);
}

#[tokio::test]
async fn many_attaches_at_once_share_passes_and_never_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Arc::new(Rig::start(dir.path(), &TestKernel::with_underlay()));
    rig.attach("c0").await.unwrap();
    let before = rig.kernel.reconciliations();
    let mut attaches = JoinSet::new();
    for n in 1..=40 {
        let rig = rig.clone();
        attaches.spawn(async move { rig.attach(&format!("c{n}")).await.unwrap().ipv4 });
    }
    let mut addresses: Vec<String> = attaches.join_all().await;
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 40);
    assert_eq!(devices(&rig.kernel), 41);
    // Each attach makes two generations, one when it is wished for and one when it is done.
    let reconciliations = rig.kernel.reconciliations() - before;
    assert!(reconciliations <= 60, "{reconciliations} reconciliations for 40 attaches");
}

#[tokio::test]
async fn names_addresses_and_interfaces_that_are_taken_are_conflicts() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &TestKernel::with_underlay());
    rig.endpoints.attach(v1::AttachRequest { ip: "10.64.0.9".into(), ..request("c1") }).await.unwrap();
    let conflicts = [
        (v1::AttachRequest { name: "c1".into(), ..request("c2") }, "endpoint c1 exists"),
        (v1::AttachRequest { ip: "10.64.0.9".into(), ..request("c2") }, "in use by endpoint c1"),
        (v1::AttachRequest { ip: "10.64.0.1".into(), ..request("c2") }, "the gateway"),
        (
            v1::AttachRequest { name: "x".into(), ifname: "eth0".into(), ..request("c1") },
            "interface eth0 already",
        ),
        (
            v1::AttachRequest { name: "x".into(), ..request("c1") },
            "attached to network app already, as endpoint c1",
        ),
    ];
    for (request, expected) in conflicts {
        let problem = rig.endpoints.attach(request).await.unwrap_err();
        assert!(problem.message.contains(expected), "{problem}");
        assert_eq!(problem.kind, ProblemKind::Conflict, "{problem}");
    }
    assert_eq!(devices(&rig.kernel), 1);
}

#[tokio::test]
async fn bad_requests_are_refused_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &TestKernel::with_underlay());
    let cases = [
        (v1::AttachRequest { network: String::new(), ..request("c1") }, ProblemKind::Usage, "network"),
        (v1::AttachRequest { pid: 7, ..request("c1") }, ProblemKind::Usage, "both"),
        (request(""), ProblemKind::Usage, "--netns"),
        (v1::AttachRequest { ip: "10.64.0".into(), ..request("c1") }, ProblemKind::Usage, "10.64.0"),
        (v1::AttachRequest { ip6: "fd00::1".into(), ..request("c1") }, ProblemKind::Usage, "no IPv6 subnet"),
        (v1::AttachRequest { ip: "10.99.0.5".into(), ..request("c1") }, ProblemKind::Unreachable, "manager"),
        (
            v1::AttachRequest { mac: "01:00:5e:00:00:01".into(), ..request("c1") },
            ProblemKind::Usage,
            "unicast",
        ),
        (request("missing"), ProblemKind::NotFound, "missing does not exist"),
        (v1::AttachRequest { network: "other".into(), ..request("c1") }, ProblemKind::Unreachable, "other"),
    ];
    for (request, kind, expected) in cases {
        let problem = rig.endpoints.attach(request).await.unwrap_err();
        assert!(
            problem.message.contains(expected)
                || problem.hint.as_deref().is_some_and(|h| h.contains(expected)),
            "{problem:?}"
        );
        assert_eq!(problem.kind, kind, "{problem}");
    }
    assert_eq!(rig.endpoints.detach("nothing").await.unwrap_err().kind, ProblemKind::NotFound);
}

#[tokio::test]
async fn without_managers_the_block_is_used_to_its_end_and_what_comes_back_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &TestKernel::with_underlay());
    let mut names = Vec::new();
    let problem = loop {
        let name = format!("c{}", names.len());
        match rig.attach(&name).await {
            Ok(_) => names.push(name),
            Err(problem) => break problem,
        }
    };
    assert_eq!(names.len(), 62, "a /26 without network address and gateway");
    assert_eq!(problem.kind, ProblemKind::Unreachable, "{problem}");
    let freed = rig.endpoints.detach("c5").await.unwrap();
    assert_eq!(rig.attach("cx").await.unwrap().ipv4, freed.ipv4);
}

#[tokio::test]
async fn a_restart_adopts_everything_and_undoes_what_was_half_made() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = TestKernel::with_underlay();
    let rig = Rig::start(dir.path(), &kernel);
    let kept = rig.attach("c1").await.unwrap();
    let half = rig.attach("c2").await.unwrap();
    // As if the agent was killed after the kernel has the endpoint and before the caller's answer.
    let record =
        rig.agent.read(|state| state.endpoints.values().find(|e| e.name.as_str() == "c2").cloned()).unwrap();
    rig.agent.endpoint_store().remove(&record.id).unwrap();
    rig.agent.endpoint_store().begin(&record).unwrap();
    rig.agent.save_changes().unwrap();
    rig.kill().await;

    let rig = Rig::start(dir.path(), &kernel);
    rig.agent.reconciled(1).await;
    assert_eq!(devices(&kernel), 1);
    assert_eq!(Rig::records(dir.path()), 1);
    let again = rig.endpoints.detach(&kept.id).await.unwrap();
    assert_eq!(again.ipv4, kept.ipv4);
    assert_ne!(half.ipv4, kept.ipv4);
    rig.kill().await;

    kernel.take_applied();
    let rig = Rig::start(dir.path(), &kernel);
    let reconciliation = rig.agent.reconciled(1).await;
    assert_eq!(reconciliation.problems, Vec::<String>::new());
    assert_eq!(kernel.take_applied(), [], "the first pass after a restart finds nothing to do");
}

#[tokio::test]
async fn an_agent_that_is_killed_after_a_detach_still_lets_the_address_rest() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = TestKernel::with_underlay();
    let rig = Rig::start(dir.path(), &kernel);
    let released = rig.attach("c1").await.unwrap();
    rig.endpoints.detach("c1").await.unwrap();
    rig.kill().await;
    let rig = Rig::start(dir.path(), &kernel);
    assert_ne!(rig.attach("c1").await.unwrap().ipv4, released.ipv4);
}

#[tokio::test]
async fn what_somebody_removes_is_made_again_at_the_kernels_event() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &TestKernel::with_underlay());
    rig.agent.reconciled(1).await;
    rig.kernel.inner.lock().unwrap().state.firewall = mesh_model::observed::FirewallState::Altered;
    rig.kernel.take_applied();
    let mut reconciliations = rig.agent.reconciliations();
    reconciliations.mark_unchanged();
    rig.host.kernel_changed();
    reconciliations.changed().await.unwrap();
    assert!(rig.kernel.take_applied().iter().any(|action| matches!(action, Action::SetFirewall(_))));
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_tried_again_ever_more_rarely_until_it_works() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = TestKernel::with_underlay();
    kernel.inner.lock().unwrap().refused.insert("CreateVxlan", 12);
    let rig = Rig::start(dir.path(), &kernel);
    let reconciliation = rig.agent.reconciled(1).await;
    assert!(reconciliation.node_failure.is_some());
    assert_eq!(*rig.agent.applied().borrow(), 0, "a manager must not be told that the kernel has it");
    sleep(Duration::from_mins(1)).await;
    let tries = kernel.reconciliations();
    assert!((8..40).contains(&tries), "{tries} tries in a minute");
    kernel.inner.lock().unwrap().refused.clear();
    let mut applied = rig.agent.applied();
    applied.wait_for(|revision| *revision == 3).await.unwrap();
}

#[tokio::test]
async fn an_endpoint_whose_namespace_is_gone_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &TestKernel::with_underlay());
    rig.attach("c1").await.unwrap();
    let endpoint = rig.agent.read(|state| state.endpoints.values().next().cloned()).unwrap();
    {
        // A namespace takes its devices along, and with them the other ends of their pairs.
        let mut kernel = rig.kernel.inner.lock().unwrap();
        kernel.gone.insert(endpoint.netns.clone());
        kernel.state.links.remove(&endpoint.host_ifname());
    }
    let mut reconciliations = rig.agent.reconciliations();
    rig.host.kernel_changed();
    let lost = reconciliations
        .wait_for(|reconciliation| !reconciliation.lost.is_empty())
        .await
        .unwrap()
        .lost
        .clone();
    rig.endpoints.remove_lost(&lost).await;
    assert!(rig.agent.read(|state| state.endpoints.is_empty()));
    assert_eq!(Rig::records(dir.path()), 0);
}
