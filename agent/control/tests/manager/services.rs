//! Creating, changing, listing and removing services.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_proto::v1::{
    self, Affinity, CreateNetworkRequest, CreateServiceRequest, EndpointMode, Service, ServiceStatus,
    UpdateServiceRequest,
};
use mesh_proto::{Problem, ProblemKind};
use tokio::task::JoinSet;

use crate::agent::{Agent, Behaviour, CANNOT_LIST};
use crate::cluster::{Cluster, network, network_of, port, service};

fn of(status: ServiceStatus) -> Service {
    status.service.unwrap()
}

fn published(service: &Service) -> Vec<u32> {
    service.ports.iter().map(|port| port.published).collect()
}

fn with_ports(name: &str, ports: &[&str]) -> CreateServiceRequest {
    let ports = ports.iter().map(|text| port(text)).collect();
    CreateServiceRequest { ports, ..service(name, "app") }
}

fn http(path: &str) -> v1::HealthCheck {
    let kind = v1::health_check::Kind::Http(v1::HttpCheck { port: 80, path: path.into() });
    v1::HealthCheck { kind: Some(kind), ..Default::default() }
}

async fn inspect(cluster: &Cluster, name: &str) -> Result<ServiceStatus, Problem> {
    let request = v1::InspectServiceRequest { service: name.into() };
    Ok(cluster.control().inspect_service(request).await?.into_inner())
}

async fn remove(cluster: &Cluster, name: &str) -> Result<ServiceStatus, Problem> {
    let request = v1::RemoveServiceRequest { service: name.into() };
    Ok(cluster.control().remove_service(request).await?.into_inner())
}

async fn update(cluster: &Cluster, request: UpdateServiceRequest) -> Result<Service, Problem> {
    Ok(of(cluster.control().update_service(request).await?.into_inner()))
}

#[tokio::test]
async fn values_that_a_request_leaves_open_are_chosen() {
    let cluster = Cluster::start().await;
    cluster.create(CreateNetworkRequest { ipv6: true, ..network("app") }).await.unwrap();
    let status = cluster.create_service(with_ports("web", &[":80", "8080:80/udp", ":81"])).await.unwrap();
    assert_eq!((status.network_name.as_str(), status.backends.len()), ("app", 0));
    let web = of(status);
    // The last sixteenth of 10.64.0.0/20 is reserved for virtual addresses.
    assert_eq!((web.vip.as_str(), web.endpoint_mode()), ("10.64.15.0", EndpointMode::Vip));
    assert!(web.vip6.starts_with("fd"), "{web:?}");
    assert_eq!(published(&web), [30000, 8080, 30001]);
    assert_eq!((web.affinity(), &web.health), (Affinity::None, &None));

    let request = CreateServiceRequest {
        vip: "10.64.15.9".into(),
        affinity: Affinity::ClientIp.into(),
        health: Some(http("/healthz")),
        aliases: vec!["www".into(), "www".into()],
        labels: [("tier".to_owned(), "front".to_owned())].into(),
        ..with_ports("api", &[":80", ":80/udp"])
    };
    let api = of(cluster.create_service(request).await.unwrap());
    assert_eq!((api.vip.as_str(), published(&api)), ("10.64.15.9", vec![30002, 30000]));
    let check = api.health.unwrap();
    assert_eq!((check.interval_ms, check.retries), (2000, 3));
    assert_eq!((api.aliases, api.labels.len()), (vec!["www".to_owned()], 1));

    let dns = CreateServiceRequest { endpoint_mode: EndpointMode::Dnsrr.into(), ..service("dns", "app") };
    let dns = of(cluster.create_service(dns).await.unwrap());
    assert_eq!((dns.vip.as_str(), dns.vip6.as_str()), ("", ""));
    assert_eq!(of(cluster.create_service(service("next", "app")).await.unwrap()).vip, "10.64.15.1");

    let names: Vec<String> = cluster.services().await.into_iter().map(|one| of(one).name).collect();
    assert_eq!(names, ["api", "dns", "next", "web"]);
    for text in ["web", "app/web", &web.id, &web.id[..12]] {
        assert_eq!(of(inspect(&cluster, text).await.unwrap()).id, web.id, "{text}");
    }
}

#[tokio::test]
async fn values_that_a_service_cannot_have_are_refused_by_name() {
    let cluster = Cluster::start().await;
    cluster.create(network_of("app", "10.1.0.0/24")).await.unwrap();
    cluster.create(network_of("tiny", "10.2.0.0/30")).await.unwrap();
    let vip = |vip: &str| CreateServiceRequest { vip: vip.into(), ..service("x", "app") };
    let first = with_ports("web", &["8080:80", "10.0.0.5:9090:80", "7070:80/udp"]);
    cluster.create_service(CreateServiceRequest { vip: "10.1.0.241".into(), ..first }).await.unwrap();
    let dnsrr = EndpointMode::Dnsrr.into();
    for (request, kind, part) in [
        (service("web", "app"), ProblemKind::Conflict, "service web exists on network app already"),
        (service("x", "none"), ProblemKind::NotFound, "network none"),
        (service("x", ""), ProblemKind::Usage, "network"),
        (service("-x", "app"), ProblemKind::Usage, "name"),
        (vip("10.1.0.241"), ProblemKind::Conflict, "10.1.0.241 belongs to service web"),
        (vip("10.9.0.1"), ProblemKind::Usage, "in no subnet of network app: 10.1.0.0/24"),
        (vip("10.1.0.7"), ProblemKind::Usage, "no virtual address of subnet 10.1.0.0/24"),
        (vip("fd00::1"), ProblemKind::Usage, "vip"),
        (
            CreateServiceRequest { vip6: "fd00::1".into(), ..service("x", "app") },
            ProblemKind::Usage,
            "fd00::1",
        ),
        (
            CreateServiceRequest { endpoint_mode: dnsrr, ..vip("10.1.0.242") },
            ProblemKind::Usage,
            "dnsrr has no virtual address",
        ),
        (service("x", "tiny"), ProblemKind::Exhausted, "too small"),
        (
            with_ports("x", &["8080:81"]),
            ProblemKind::Conflict,
            "port 8080/tcp is published by service web of network app",
        ),
        (with_ports("x", &["10.0.0.5:8080:80"]), ProblemKind::Conflict, "8080/tcp"),
        (with_ports("x", &["9090:80"]), ProblemKind::Conflict, "9090/tcp"),
        (with_ports("x", &["1:80", "10.0.0.5:1:81"]), ProblemKind::Usage, "same port"),
        (with_ports("x", &["81:80/sctp"]), ProblemKind::Usage, "sctp requires the same number"),
        (
            CreateServiceRequest { health: Some(http("healthz")), ..service("x", "app") },
            ProblemKind::Usage,
            "does not begin with a slash",
        ),
        (CreateServiceRequest { affinity: 9, ..service("x", "app") }, ProblemKind::Usage, "affinity"),
    ] {
        let problem = cluster.create_service(request.clone()).await.unwrap_err();
        assert_eq!(problem.kind, kind, "{request:?}: {problem}");
        assert!(problem.message.contains(part), "{request:?}: {problem}");
    }
    // A different protocol or address is no conflict.
    let other = with_ports("y", &["8080:80/udp", "10.0.0.6:9090:80", "7070:80"]);
    cluster.create_service(other).await.unwrap();
    assert_eq!(cluster.services().await.len(), 2, "nothing of what was refused is left");
}

#[tokio::test]
async fn a_name_on_several_networks_must_be_qualified() {
    let cluster = Cluster::start().await;
    for name in ["app", "db"] {
        cluster.create(network(name)).await.unwrap();
        cluster.create_service(service("web", name)).await.unwrap();
    }
    let problem = inspect(&cluster, "web").await.unwrap_err();
    assert_eq!(
        (problem.kind, problem.message.as_str()),
        (ProblemKind::Usage, "service web is on several networks: app/web, db/web")
    );
    assert_eq!(inspect(&cluster, "db/web").await.unwrap().network_name, "db");
    remove(&cluster, "db/web").await.unwrap();
    assert_eq!(inspect(&cluster, "web").await.unwrap().network_name, "app");
    for name in ["db/web", "none/web", "x", "app/x"] {
        assert_eq!(inspect(&cluster, name).await.unwrap_err().kind, ProblemKind::NotFound, "{name}");
    }
}

#[tokio::test]
async fn a_port_in_use_by_a_hosts_socket_cannot_be_published() {
    let cluster = Cluster::start().await;
    cluster.create(network("app")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let used_ports = |ports: &[u32]| Some(ports.iter().copied().collect::<BTreeSet<_>>());
    let _h2 =
        Agent::start(&h2, Behaviour { used_ports: used_ports(&[8080, 30000]), ..Behaviour::default() }).await;
    let h3 = Agent::start(&h3, Behaviour { used_ports: used_ports(&[30001]), ..Behaviour::default() }).await;
    let problem = cluster.create_service(with_ports("web", &["8080:80"])).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Conflict);
    assert!(problem.message.contains("port 8080/tcp is in use on node h2"), "{problem}");
    // An automatically chosen port is free on every host.
    let web = of(cluster.create_service(with_ports("web", &[":80"])).await.unwrap());
    assert_eq!(published(&web), [30002]);
    let add_ports = vec![port("8080:80")];
    let request = UpdateServiceRequest { service: "web".into(), add_ports, ..Default::default() };
    assert!(update(&cluster, request).await.unwrap_err().message.contains("node h2"));
    // If an agent in session does not answer, its host may use the port, so publishing fails.
    h3.behave(|behaviour| behaviour.used_ports = None);
    let problem = cluster.create_service(with_ports("api", &["9090:80"])).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Unreachable, "{problem}");
    assert!(problem.message.contains("node h3 cannot say"), "{problem}");
    assert_eq!(inspect(&cluster, "api").await.unwrap_err().kind, ProblemKind::NotFound);
    // It also fails if an agent cannot list its sockets.
    h3.behave(|behaviour| behaviour.used_ports = Some(BTreeSet::from([CANNOT_LIST])));
    let problem = cluster.create_service(with_ports("api", &["9090:80"])).await.unwrap_err();
    assert!(problem.message.contains("the tables are unreadable"), "{problem}");
    // A node without a session is reported, and does not prevent publishing.
    drop(h3);
    let status = cluster.create_service(with_ports("api", &["9090:80"])).await.unwrap();
    assert!(status.unchecked_nodes.contains(&"h3".to_owned()), "{:?}", status.unchecked_nodes);
    assert!(!status.unchecked_nodes.contains(&"h2".to_owned()), "{:?}", status.unchecked_nodes);
}

#[tokio::test]
async fn ten_thousand_ports_are_published_in_one_change() {
    let cluster = Cluster::start().await;
    cluster.create(network("app")).await.unwrap();
    let h2 = Agent::start(&cluster.join("h2").await, Behaviour::default()).await;
    let texts: Vec<String> = (20_000..30_000).map(|port| format!("{port}:80/udp")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let web = of(cluster.create_service(with_ports("web", &[])).await.unwrap());
    let add_ports = texts.iter().map(|text| port(text)).collect();
    let request = UpdateServiceRequest { service: "web".into(), add_ports, ..Default::default() };
    update(&cluster, request).await.unwrap();
    h2.until(|known| known.services.get(&web.id).is_some_and(|web| web.ports.len() == 10_000)).await;
    // Besides the requested ports, decoys are checked, which are TCP ports.
    let is_meant = |port: &&v1::PublishedPort| port.protocol() == v1::Protocol::Udp;
    let asked = |check: &v1::PortCheck| check.ports.iter().filter(is_meant).count();
    assert_eq!(h2.known().checks.iter().map(asked).collect::<Vec<_>>(), [10_000]);
}

#[tokio::test]
async fn a_service_is_changed_in_place() {
    let cluster = Cluster::start().await;
    cluster.create(network("app")).await.unwrap();
    let web = of(cluster.create_service(with_ports("web", &["8080:80", "8443:443"])).await.unwrap());
    cluster.create_service(with_ports("api", &["9090:80"])).await.unwrap();
    let change = || UpdateServiceRequest { service: "web".into(), ..Default::default() };
    let ports = |texts: &[&str]| texts.iter().map(|text| port(text)).collect::<Vec<_>>();

    // Removing a port and adding it elsewhere is one change.
    let (add_ports, remove_ports) = (ports(&["8080:81", ":82"]), ports(&["8080:80"]));
    let moved = update(&cluster, UpdateServiceRequest { add_ports, remove_ports, ..change() }).await.unwrap();
    assert_eq!((moved.id.as_str(), published(&moved)), (web.id.as_str(), vec![8443, 8080, 30000]));
    let by_target = v1::PublishedPort { target: 82, ..Default::default() };
    let fewer = update(&cluster, UpdateServiceRequest { remove_ports: vec![by_target], ..change() }).await;
    assert_eq!(published(&fewer.unwrap()), [8443, 8080]);

    for (request, kind, part) in [
        (
            UpdateServiceRequest { add_ports: ports(&["9090:1"]), ..change() },
            ProblemKind::Conflict,
            "service api",
        ),
        (
            UpdateServiceRequest { add_ports: ports(&["8443:1"]), ..change() },
            ProblemKind::Conflict,
            "publishes port 8443:443/tcp already",
        ),
        (
            UpdateServiceRequest { remove_ports: ports(&["8080:80"]), ..change() },
            ProblemKind::NotFound,
            "does not publish port 8080/tcp",
        ),
        (
            UpdateServiceRequest { remove_ports: ports(&["53:53/udp"]), ..change() },
            ProblemKind::NotFound,
            "53/udp",
        ),
        (
            UpdateServiceRequest { health: Some(http("/")), clear_health: true, ..change() },
            ProblemKind::Usage,
            "health",
        ),
        (
            UpdateServiceRequest { service: "x".into(), ..Default::default() },
            ProblemKind::NotFound,
            "service x",
        ),
    ] {
        let problem = update(&cluster, request).await.unwrap_err();
        assert_eq!(problem.kind, kind, "{problem}");
        assert!(problem.message.contains(part), "{problem}");
    }

    let (affinity, health) = (Affinity::ClientIp.into(), Some(http("/")));
    let aliases = vec!["www".to_owned()];
    let request = UpdateServiceRequest { affinity, health, replace_aliases: true, aliases, ..change() };
    let sticky = update(&cluster, request).await.unwrap();
    assert_eq!(
        (sticky.affinity(), sticky.health.is_some(), sticky.aliases.len()),
        (Affinity::ClientIp, true, 1)
    );
    let cleared = update(&cluster, UpdateServiceRequest { clear_health: true, ..change() }).await.unwrap();
    assert_eq!((cleared.affinity(), cleared.health), (Affinity::ClientIp, None));
    assert_eq!(of(inspect(&cluster, "web").await.unwrap()), update(&cluster, change()).await.unwrap());
    // A released port is free again.
    cluster.create_service(with_ports("next", &["30000:80"])).await.unwrap();
}

#[tokio::test]
async fn a_removed_service_leaves_nothing_behind() {
    let cluster = Cluster::start().await;
    cluster.create(network("app")).await.unwrap();
    let keys = || async {
        let everything = mesh_store::KeyRange::all();
        let kvs = cluster.store.range(everything, None, None).await.unwrap().kvs;
        kvs.into_iter().map(|kv| kv.key).collect::<BTreeSet<_>>()
    };
    let before = keys().await;
    let request = with_ports("web", &["8080:80", "10.0.0.5:9090:80", ":80/udp"]);
    let web = of(cluster.create_service(request.clone()).await.unwrap());
    assert_eq!(keys().await.len(), before.len() + 6);
    assert_eq!(of(remove(&cluster, "web").await.unwrap()), web);
    assert_eq!(keys().await, before);
    assert_eq!(remove(&cluster, "web").await.unwrap_err().kind, ProblemKind::NotFound);
    let again = of(cluster.create_service(request).await.unwrap());
    assert_eq!((again.vip, again.ports), (web.vip, web.ports));
}

#[tokio::test]
async fn nothing_is_removed_by_fewer_than_four_characters_of_its_id() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let web = of(cluster.create_service(service("web", "app")).await.unwrap());
    let h2 = cluster.join("h2").await;
    let remove_network = async |text: &str| {
        let request = v1::RemoveNetworkRequest { network: text.into() };
        cluster.control().remove_network(request).await.map(drop).map_err(Problem::from)
    };
    let remove_node = async |text: &str| {
        let request = v1::RemoveNodeRequest { node: text.into(), force: true };
        cluster.control().remove_node(request).await.map(drop).map_err(Problem::from)
    };
    let node = h2.id.as_str();
    for refused in [
        remove(&cluster, &web.id[..3]).await.map(drop),
        remove_network(&app.id[..3]).await,
        remove_node(&node[..3]).await,
    ] {
        let problem = refused.unwrap_err();
        assert_eq!(problem.kind, ProblemKind::Usage, "{problem}");
    }
    // For reading, the id prefix only has to be unambiguous.
    assert_eq!(of(inspect(&cluster, &web.id[..3]).await.unwrap()), web);
    remove(&cluster, &web.id[..4]).await.unwrap();
    remove_network(&app.id[..4]).await.unwrap();
    remove_node(&node[..4]).await.unwrap();
}

#[tokio::test]
async fn a_network_with_services_stays_and_names_them() {
    let cluster = Cluster::start().await;
    cluster.create(network("app")).await.unwrap();
    cluster.create_service(service("web", "app")).await.unwrap();
    let remove_network = || async {
        let request = v1::RemoveNetworkRequest { network: "app".into() };
        cluster.control().remove_network(request).await.map(drop).map_err(Problem::from)
    };
    let problem = remove_network().await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Conflict);
    assert!(problem.message.contains("network app is in use by service web"), "{problem}");
    let pruned = cluster.control().prune_networks(v1::PruneNetworksRequest {}).await.unwrap().into_inner();
    assert!(pruned.removed.is_empty());
    // It accepts services again.
    cluster.create_service(service("api", "app")).await.unwrap();
    remove(&cluster, "web").await.unwrap();
    remove(&cluster, "api").await.unwrap();
    remove_network().await.unwrap();
    assert_eq!(cluster.create_service(service("web", "app")).await.unwrap_err().kind, ProblemKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_two_concurrent_requests_for_the_same_value_succeeds() {
    let cluster = Cluster::start().await;
    cluster.create(network("app")).await.unwrap();
    let vip = |name: &str| CreateServiceRequest { vip: "10.64.15.200".into(), ..service(name, "app") };
    for round in 0..20 {
        let name = |n: usize| format!("s{round}-{n}");
        let on = format!("10.0.0.1:{}:80", 1000 + round);
        let any = format!("{}:80", 1000 + round);
        let contests: [[CreateServiceRequest; 2]; 4] = [
            [service(&name(0), "app"), service(&name(0), "app")],
            [with_ports(&name(1), &[&on]), with_ports(&name(2), &[&any])],
            [
                with_ports(&name(3), &[&format!("{}:80/udp", 1000 + round)]),
                with_ports(&name(4), &[&format!("{}:81/udp", 1000 + round)]),
            ],
            [vip(&name(5)), vip(&name(6))],
        ];
        for contest in contests {
            let mut tasks = JoinSet::new();
            for request in contest.clone() {
                let mut control = cluster.control();
                tasks.spawn(async move { control.create_service(request).await });
            }
            let results = tasks.join_all().await;
            let lost: Vec<Problem> = results.into_iter().filter_map(Result::err).map(Problem::from).collect();
            assert!(
                matches!(lost.as_slice(), [Problem { kind: ProblemKind::Conflict, .. }]),
                "{contest:?}: {lost:?}"
            );
        }
        let owner =
            cluster.services().await.into_iter().map(of).find(|one| one.vip == "10.64.15.200").unwrap();
        remove(&cluster, &owner.id).await.unwrap();
    }
}

#[tokio::test]
async fn the_last_address_is_not_refused_because_of_a_call_that_fails() {
    let cluster = Cluster::start().await;
    cluster.create(network_of("app", "10.1.0.0/26")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let used_ports = Some(BTreeSet::from([8080]));
    let agent = Agent::start(&h2, Behaviour { used_ports, ..Behaviour::default() }).await;
    let mut last = None;
    for n in 0.. {
        match cluster.create_service(service(&format!("s{n}"), "app")).await {
            Ok(made) => last = Some(of(made)),
            Err(problem) => {
                assert_eq!(problem.kind, ProblemKind::Exhausted, "{problem}");
                break;
            }
        }
    }
    let last = last.unwrap();
    remove(&cluster, &last.id).await.unwrap();
    // It has chosen the address, and waits for the report that its port is in use.
    agent.behave(|behaviour| behaviour.reads = false);
    let (mut one, mut other) = (cluster.control(), cluster.control());
    let doomed = tokio::spawn(async move { one.create_service(with_ports("doomed", &["8080:80"])).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let next = tokio::spawn(async move { other.create_service(service("next", "app")).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!next.is_finished());
    agent.behave(|behaviour| behaviour.reads = true);
    assert_eq!(Problem::from(doomed.await.unwrap().unwrap_err()).kind, ProblemKind::Conflict);
    assert_eq!(of(next.await.unwrap().unwrap().into_inner()).vip, last.vip);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_five_hundredth_published_port_costs_no_more_than_the_first() {
    let cluster = Cluster::start().await;
    cluster.create(network_of("app", "10.1.0.0/16")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let agents = [
        Agent::start(&cluster.own(), Behaviour::default()).await,
        Agent::start(&h2, Behaviour::default()).await,
        Agent::start(&h3, Behaviour::default()).await,
    ];
    let create = async |range: std::ops::Range<u32>| {
        let before = cluster.work();
        for n in range {
            cluster.create_service(with_ports(&format!("s{n}"), &[":80"])).await.unwrap();
        }
        cluster.work().since(before)
    };
    let first = create(0..100).await;
    let mut tasks = JoinSet::new();
    for n in 100..400 {
        let mut control = cluster.control();
        tasks.spawn(async move { control.create_service(with_ports(&format!("s{n}"), &[":80"])).await });
    }
    for result in tasks.join_all().await {
        result.unwrap();
    }
    let last = create(400..500).await;
    assert_eq!(last, first, "the last hundred, and the first");
    let services: Vec<Service> = cluster.services().await.into_iter().map(of).collect();
    let ports: BTreeSet<u32> = services.iter().flat_map(published).collect();
    assert_eq!(ports, (30000..30500).collect());
    assert_eq!(services.iter().map(|one| &one.vip).collect::<BTreeSet<_>>().len(), 500);
    for agent in &agents {
        assert_eq!(agent.known().services.len(), 500, "each has them by the time that the calls return");
    }
}
