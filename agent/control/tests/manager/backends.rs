//! A service's backends: who may add them, which nodes receive them, and when they are removed.

use std::time::Duration;

use mesh_proto::v1::{
    self, ActivateBackendRequest, BackendState, BackendStatus, CreateServiceRequest, DrainBackendRequest,
    Endpoint, RemoveNodeRequest,
};
use mesh_proto::{Problem, ProblemKind};

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, Member, PATIENCE, endpoint, network, port, service};

fn having(endpoints: &[&Endpoint]) -> Behaviour {
    let endpoints = endpoints.iter().map(|&endpoint| endpoint.clone()).collect();
    Behaviour { endpoints, ..Behaviour::default() }
}

async fn backends(cluster: &Cluster, name: &str) -> Vec<BackendStatus> {
    let request = v1::InspectServiceRequest { service: name.into() };
    cluster.control().inspect_service(request).await.unwrap().into_inner().backends
}

fn names(backends: &[BackendStatus]) -> Vec<&str> {
    backends.iter().map(|one| one.backend.as_ref().unwrap().name.as_str()).collect()
}

/// Waits until the service has backends with these names.
async fn until_named(cluster: &Cluster, service: &str, wanted: &[&str]) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let now = backends(cluster, service).await;
        if names(&now) == wanted {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{:?}, not {wanted:?}", names(&now));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn set_state(member: &Member, drain: bool, endpoint: &str) -> Result<BackendStatus, Problem> {
    let (service, endpoint, mut control) = ("web".to_owned(), endpoint.to_owned(), member.control());
    let answer = if drain {
        control.drain_backend(DrainBackendRequest { service, endpoint }).await
    } else {
        control.activate_backend(ActivateBackendRequest { service, endpoint }).await
    };
    Ok(answer?.into_inner())
}

#[tokio::test]
async fn every_node_concerned_has_a_backend_when_the_call_returns() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let (h2, h3, h4) = (cluster.join("h2").await, cluster.join("h3").await, cluster.join("h4").await);
    let (c1, c2) = (endpoint(&app, "c1", "10.64.0.2"), endpoint(&app, "c2", "10.64.0.66"));
    let (a2, a3) = (Agent::start(&h2, having(&[&c1])).await, Agent::start(&h3, having(&[&c2])).await);
    let a4 = Agent::start(&h4, Behaviour::default()).await;
    h2.lease(&app, "").await.unwrap();
    h3.lease(&app, "").await.unwrap();
    let web = cluster.create_service(service("web", "app")).await.unwrap().service.unwrap();
    for agent in [&a2, &a3] {
        assert_eq!(agent.known().services[&web.id], web);
    }
    let added = cluster.own().add("web", "c1").await.unwrap();
    let backend = added.backend.unwrap();
    assert_eq!((added.node_name.as_str(), added.health.as_str()), ("h2", "none"));
    assert_eq!((backend.id, backend.ipv4.as_str(), backend.state()), (1, "10.64.0.2", BackendState::Active));
    for agent in [&a2, &a3] {
        assert_eq!(agent.known().backends[&1], backend);
    }
    // Numbers are not reused, and adding again changes nothing.
    assert_eq!(cluster.own().add("web", &c2.id).await.unwrap().backend.unwrap().id, 2);
    assert_eq!(cluster.own().add("web", "c2").await.unwrap().backend.unwrap().id, 2);

    let drained = set_state(&cluster.own(), true, "c1").await.unwrap().backend.unwrap();
    assert_eq!(drained.state(), BackendState::Draining);
    assert_eq!(a3.known().backends[&1], drained);
    assert_eq!(set_state(&cluster.own(), false, &c1.id[..10]).await.unwrap().backend.unwrap(), backend);
    assert_eq!(a2.known().backends[&1], backend);

    cluster.own().remove("web", "c1").await.unwrap();
    assert_eq!(a3.known().backends.keys().collect::<Vec<_>>(), [&2]);
    assert_eq!(cluster.own().remove("web", "c1").await.unwrap_err().kind, ProblemKind::NotFound);
    assert_eq!(cluster.own().add("web", "c1").await.unwrap().backend.unwrap().id, 4, "not used again soon");
    // A node without a lease in the network receives only its record.
    let known = a4.known();
    assert_eq!((known.networks.len(), known.leases.len(), known.services.len()), (1, 0, 0));
    let request = v1::RemoveServiceRequest { service: "web".into() };
    cluster.control().remove_service(request).await.unwrap();
    for agent in [&a2, &a3] {
        let known = agent.known();
        assert!(known.services.is_empty() && known.backends.is_empty());
    }
}

#[tokio::test]
async fn published_services_are_sent_to_every_node() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let c1 = endpoint(&app, "c1", "10.64.0.2");
    let a2 = Agent::start(&h2, having(&[&c1])).await;
    let a3 = Agent::start(&h3, Behaviour::default()).await;
    h2.lease(&app, "").await.unwrap();
    cluster.create_service(service("quiet", "app")).await.unwrap();
    let ports = vec![port("8080:80")];
    let request = CreateServiceRequest { ports: ports.clone(), ..service("web", "app") };
    let web = cluster.create_service(request).await.unwrap().service.unwrap();
    cluster.own().add("web", "c1").await.unwrap();
    cluster.own().add("quiet", "c1").await.unwrap();
    let check_published = |agent: &Agent| {
        let known = agent.known();
        assert_eq!(known.networks.keys().collect::<Vec<_>>(), [&app.id]);
        assert_eq!(known.services.keys().collect::<Vec<_>>(), [&web.id]);
        assert_eq!((known.backends.len(), known.leases.len()), (1, 0));
    };
    check_published(&a3);
    assert_eq!(a2.known().services.len(), 2);
    // This also holds for a node that connects later.
    drop(a3);
    let a3 = Agent::start(&h3, Behaviour::default()).await;
    check_published(&a3);
    // With a lease, it receives the rest.
    let lease = h3.lease(&app, "").await.unwrap().lease.unwrap();
    a3.until(|known| known.services.len() == 2 && known.backends.len() == 2 && known.leases.len() == 2).await;
    let (prefix, revision) = (lease.prefix, lease.revision);
    let request = v1::ReleaseLeaseRequest { network: app.id.clone(), prefix, revision };
    h3.control().release_lease(request).await.unwrap();
    a3.until(|known| known.services.len() == 1).await;
    check_published(&a3);
    // Without the port, they no longer receive it.
    let request =
        v1::UpdateServiceRequest { service: "web".into(), remove_ports: ports, ..Default::default() };
    cluster.control().update_service(request).await.unwrap();
    let known = a3.known();
    assert!(known.services.is_empty() && known.backends.is_empty());
    assert_eq!(a2.known().services.len(), 2);
}

#[tokio::test]
async fn a_worker_makes_only_its_own_endpoints_backends() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    h2.lease(&app, "").await.unwrap();
    h3.lease(&app, "").await.unwrap();
    let (c1, c2) = (endpoint(&app, "c1", "10.64.0.2"), endpoint(&app, "c2", "10.64.0.66"));
    let _a2 = Agent::start(&h2, having(&[&c1])).await;
    let _a3 = Agent::start(&h3, having(&[&c2])).await;
    cluster.create_service(service("web", "app")).await.unwrap();
    h2.add("web", "c1").await.unwrap();
    for problem in [h3.add("web", "c1").await.unwrap_err(), h3.add("web", &c1.id).await.unwrap_err()] {
        assert_eq!(problem.kind, ProblemKind::Denied, "{problem}");
    }
    assert_eq!(h3.remove("web", "c1").await.unwrap_err().kind, ProblemKind::Denied);
    assert_eq!(set_state(&h2, true, "c1").await.unwrap_err().kind, ProblemKind::NotManager);
    assert_eq!(names(&backends(&cluster, "web").await), ["c1"]);
    h2.remove("web", "c1").await.unwrap();
    cluster.own().add("web", "c2").await.unwrap();
    assert_eq!(names(&backends(&cluster, "web").await), ["c2"]);
}

#[tokio::test]
async fn an_invalid_backend_is_refused_by_name() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let db = cluster.create(network("db")).await.unwrap();
    let h2 = cluster.join("h2").await;
    h2.lease(&app, "").await.unwrap();
    h2.lease(&db, "").await.unwrap();
    let (c1, c9) = (endpoint(&app, "c1", "10.64.0.2"), endpoint(&db, "c9", "10.64.16.2"));
    let _a2 = Agent::start(&h2, having(&[&c1, &c9])).await;
    cluster.create_service(service("web", "app")).await.unwrap();
    let own = cluster.own();
    for (service, endpoint, kind, part) in [
        ("web", "c9", ProblemKind::Conflict, "endpoint c9 is on network db, not on app"),
        ("web", c9.id.as_str(), ProblemKind::Conflict, "is on network db"),
        ("web", "none", ProblemKind::NotFound, "endpoint none"),
        ("web", "", ProblemKind::Usage, "endpoint"),
        ("none", "c1", ProblemKind::NotFound, "service none"),
        ("", "c1", ProblemKind::Usage, "service"),
    ] {
        let problem = own.add(service, endpoint).await.unwrap_err();
        assert_eq!(problem.kind, kind, "{service} {endpoint}: {problem}");
        assert!(problem.message.contains(part), "{problem}");
    }
    for drain in [true, false] {
        let problem = set_state(&own, drain, "c1").await.unwrap_err();
        assert_eq!(problem.kind, ProblemKind::NotFound);
        assert!(problem.message.contains("c1 is not a backend of service web"), "{problem}");
    }
}

#[tokio::test]
async fn a_backend_is_removed_with_its_endpoint() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let [c1, c2, c3] = ["c1", "c2", "c3"].map(|name| endpoint(&app, name, ""));
    let agent = Agent::start(&h2, having(&[&c1, &c2, &c3])).await;
    cluster.create_service(service("web", "app")).await.unwrap();
    for name in ["c1", "c2", "c3"] {
        h2.add("web", name).await.unwrap();
    }
    agent.report(Vec::new(), vec![c2.id.clone()]).await;
    until_named(&cluster, "web", &["c1", "c3"]).await;
    // While the agent is away, its backends stay, also with a manager that does not know its
    // endpoints.
    drop(agent);
    let cluster = cluster.restart().await;
    assert_eq!(names(&backends(&cluster, "web").await), ["c1", "c3"]);
    let h2 = Member::connect(&cluster.address, h2.identity.clone()).await.unwrap();
    let _agent = Agent::start(&h2, having(&[&c1])).await;
    until_named(&cluster, "web", &["c1"]).await;
}

#[tokio::test]
async fn a_backend_is_removed_with_its_node() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let c1 = endpoint(&app, "c1", "");
    let _agent = Agent::start(&h2, having(&[&c1])).await;
    cluster.create_service(service("web", "app")).await.unwrap();
    h2.add("web", "c1").await.unwrap();
    let request = RemoveNodeRequest { node: "h2".into(), force: true };
    cluster.control().remove_node(request).await.unwrap();
    assert_eq!(names(&backends(&cluster, "web").await), [""; 0]);
    assert_eq!(cluster.own().add("web", "c1").await.unwrap_err().kind, ProblemKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backend_added_while_its_endpoint_is_removed_does_not_stay() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let agent = Agent::start(&h2, Behaviour::default()).await;
    cluster.create_service(service("web", "app")).await.unwrap();
    for round in 0..30 {
        let c1 = endpoint(&app, &format!("c{round}"), "");
        agent.report(vec![c1.clone()], Vec::new()).await;
        while let Err(problem) = h2.add("web", &c1.id).await {
            assert_eq!(problem.kind, ProblemKind::NotFound, "the report is on its way: {problem}");
        }
        h2.remove("web", &c1.id).await.unwrap();
        let add = h2.add("web", &c1.id);
        let gone = agent.report(Vec::new(), vec![c1.id.clone()]);
        let (_, ()) = tokio::join!(add, gone);
    }
    until_named(&cluster, "web", &[]).await;
}

#[tokio::test]
async fn an_endpoint_is_listed_with_its_services_and_their_health() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let c1 = endpoint(&app, "c1", "");
    let agent = Agent::start(&h2, having(&[&c1])).await;
    let kind = v1::health_check::Kind::Tcp(v1::TcpCheck { port: 80 });
    let health = Some(v1::HealthCheck { kind: Some(kind), ..Default::default() });
    cluster.create_service(CreateServiceRequest { health, ..service("web", "app") }).await.unwrap();
    cluster.create_service(service("api", "app")).await.unwrap();
    let listed = || async {
        let request = v1::ListEndpointsRequest::default();
        let endpoint =
            cluster.control().list_endpoints(request).await.unwrap().into_inner().endpoints.remove(0);
        (endpoint.service, endpoint.health)
    };
    assert_eq!(listed().await, (String::new(), "none".into()));
    h2.add("api", "c1").await.unwrap();
    assert_eq!(listed().await, ("api".into(), "none".into()));
    let id = h2.add("web", "c1").await.unwrap().backend.unwrap().id;
    assert_eq!(listed().await, ("api,web".into(), "unknown".into()));
    for (healthy, text) in [(true, "healthy"), (false, "unhealthy")] {
        agent.healthy(&[(id, healthy)], false).await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while listed().await.1 != text {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let backend = backends(&cluster, "web").await.remove(0);
        assert_eq!(backend.health, text);
        assert_eq!(backend.health_error, if healthy { "" } else { "it answers 503" });
    }
}
