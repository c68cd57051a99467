//! A stolen worker certificate: false reports with it harm no other node, and are shown.

use std::time::Duration;

use mesh_control::join;
use mesh_proto::v1::agent_message::Kind;
use mesh_proto::v1::{
    self, HostReport, ListEndpointsRequest, ListNodesRequest, NodeState, Role, SetWireguardRequest, Wireguard,
};
use mesh_proto::{Problem, ProblemKind};

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, Member, PATIENCE, endpoint, network, network_of, service};

fn having(endpoints: &[&v1::Endpoint]) -> Behaviour {
    let endpoints = endpoints.iter().map(|&endpoint| endpoint.clone()).collect();
    Behaviour { endpoints, ..Behaviour::default() }
}

async fn listed(cluster: &Cluster) -> Vec<(String, String)> {
    let request = ListEndpointsRequest::default();
    let all = cluster.control().list_endpoints(request).await.unwrap().into_inner().endpoints;
    all.into_iter().map(|one| (one.name, one.ipv4)).collect()
}

/// A network with an honest node `h2`, which has the endpoint `c1` at 10.64.0.2, and an attacker
/// with its own lease.
struct Scene {
    cluster: Cluster,
    app: v1::Network,
    honest: Member,
    thief: Member,
    c1: v1::Endpoint,
}

async fn scene() -> Scene {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let (honest, thief) = (cluster.join("h2").await, cluster.join("h3").await);
    honest.lease(&app, "").await.unwrap();
    thief.lease(&app, "").await.unwrap();
    let c1 = endpoint(&app, "c1", "10.64.0.2");
    Scene { cluster, app, honest, thief, c1 }
}

#[tokio::test]
async fn an_endpoint_that_its_node_cannot_have_is_refused_and_not_published() {
    let Scene { cluster, app, honest, thief, c1 } = scene().await;
    let agent = Agent::start(&honest, having(&[&c1])).await;
    let liar = Agent::start(&thief, Behaviour::default()).await;
    let good = || endpoint(&app, "good", "10.64.0.66");
    let lies = [
        (
            "address of another",
            v1::Endpoint { ipv4: "10.64.0.3".into(), ..good() },
            "not in a lease of this node",
        ),
        ("gateway", v1::Endpoint { ipv4: "10.64.0.1".into(), ..good() }, "gateway"),
        ("outside", v1::Endpoint { ipv4: "8.8.8.8".into(), ..good() }, "in no subnet"),
        ("IPv6 of no subnet", v1::Endpoint { ipv6: "fd00::1".into(), ..good() }, "in no subnet"),
        ("no lease", v1::Endpoint { ipv4: "10.64.0.200".into(), ..good() }, "not in a lease of this node"),
        ("alias", v1::Endpoint { aliases: vec!["*".into()], ..good() }, "alias"),
        ("ifname", v1::Endpoint { ifname: "a\x1b[2J".into(), ..good() }, "ifname"),
        ("mac", v1::Endpoint { mac: "x".into(), ..good() }, "mac"),
        ("name", v1::Endpoint { name: "../x".into(), ..good() }, "name"),
        ("health", v1::Endpoint { health: "\x1b".into(), ..good() }, "health"),
        ("service", v1::Endpoint { service: "a b".into(), ..good() }, "service"),
        ("created_at", v1::Endpoint { created_at: "now\x07".into(), ..good() }, "created_at"),
        ("network", v1::Endpoint { network_id: "f".repeat(24), ..good() }, "does not exist"),
        (
            "dns",
            v1::Endpoint {
                dns: Some(v1::Dns { search: vec!["\x1b".into()], ..v1::Dns::default() }),
                ..good()
            },
            "dns",
        ),
        ("size", v1::Endpoint { mac: "x".repeat(3 << 20), ..good() }, "mac"),
    ];
    for (what, lie, why) in lies {
        let id = lie.id.clone();
        liar.report(vec![lie], Vec::new()).await;
        let known = liar.until(|known| known.refused.contains_key(&id)).await;
        let reason = &known.refused[&id];
        assert!(reason.contains(why), "{what}: {reason}");
        assert!(reason.len() < 400 && !reason.contains(char::is_control), "{what}: {reason:?}");
        liar.report(Vec::new(), vec![id]).await;
    }
    // A valid endpoint is accepted. The other node has received nothing else and continues.
    liar.report(vec![good()], Vec::new()).await;
    let known = agent.until(|known| known.endpoints.len() == 1).await;
    assert_eq!(known.endpoints.into_values().next().unwrap().name, "good");
    assert!(known.ended.is_none());
    assert_eq!(
        listed(&cluster).await,
        [("c1".into(), "10.64.0.2".into()), ("good".into(), "10.64.0.66".into())]
    );
}

#[tokio::test]
async fn a_duplicate_id_or_name_does_not_change_the_other_nodes_endpoint() {
    let Scene { app, honest, thief, c1, cluster } = scene().await;
    let agent = Agent::start(&honest, having(&[&c1])).await;
    let own = cluster.own();
    own.lease(&app, "").await.unwrap();
    let watcher = Agent::start(&own, Behaviour::default()).await;
    watcher.until(|known| known.endpoints.len() == 1).await;
    let twin = v1::Endpoint { id: c1.id.clone(), ..endpoint(&app, "twin", "10.64.0.66") };
    let namesake = endpoint(&app, "C1", "10.64.0.67");
    let liar = Agent::start(&thief, having(&[&twin, &namesake])).await;
    let known = watcher.until(|known| known.endpoints.len() == 3).await;
    let told = &known.endpoints[&c1.id];
    assert_eq!((told.name.as_str(), told.ipv4.as_str()), ("c1", "10.64.0.2"));
    assert_eq!(known.endpoints[&namesake.id].name, namesake.id, "nobody resolves the name to it");
    assert!(
        liar.until(|known| known.refused.contains_key(&namesake.id)).await.refused[&namesake.id]
            .contains("c1")
    );
    // The duplicate is removed, and the other stays.
    liar.report(Vec::new(), vec![c1.id.clone()]).await;
    let known = watcher.until(|known| known.endpoints.len() == 2).await;
    assert_eq!(known.endpoints[&c1.id].ipv4, "10.64.0.2");
    // Once the first has released the name, the second has it.
    agent.report(Vec::new(), vec![c1.id.clone()]).await;
    watcher.until(|known| known.endpoints[&namesake.id].name == "C1").await;
}

#[tokio::test]
async fn a_reported_name_that_may_be_a_public_domain_is_not_published() {
    let Scene { app, honest, thief, c1, cluster } = scene().await;
    let agent = Agent::start(&honest, having(&[&c1])).await;
    let mut google = endpoint(&app, "google.com", "10.64.0.66");
    google.aliases = vec!["vercel.app".into(), "db.internal".into(), "cache".into()];
    let liar = Agent::start(&thief, having(&[&google])).await;
    let told = agent.until(|known| known.endpoints.len() == 1).await.endpoints.remove(&google.id).unwrap();
    assert_eq!((told.name, told.aliases), (google.id.clone(), vec!["db.internal".into(), "cache".into()]));
    let problems = liar.until(|known| !known.problems.is_empty()).await.problems;
    assert!(problems[0].contains("google.com") && problems[0].contains("vercel.app"), "{problems:?}");
    assert!(
        cluster.manager.problems().iter().any(|line| line.contains("h3")),
        "{:?}",
        cluster.manager.problems()
    );
    // A manager's own endpoint may have such a name.
    let own = cluster.own();
    own.lease(&app, "").await.unwrap();
    let api = endpoint(&app, "api.example.com", "10.64.0.130");
    let _own = Agent::start(&own, having(&[&api])).await;
    let known = agent.until(|known| known.endpoints.len() == 2).await;
    assert_eq!(known.endpoints[&api.id].name, "api.example.com");
}

#[tokio::test]
async fn an_endpoint_with_a_released_address_is_removed_with_its_backend() {
    let Scene { app, thief, cluster, .. } = scene().await;
    let taken = thief.lease(&app, "10.64.1.7").await.unwrap().lease.unwrap();
    let liar = Agent::start(&thief, having(&[&endpoint(&app, "bait", "10.64.1.7")])).await;
    cluster.create_service(service("web", "app")).await.unwrap();
    thief.add("web", "bait").await.unwrap();
    let request =
        v1::ReleaseLeaseRequest { network: app.id.clone(), prefix: taken.prefix, revision: taken.revision };
    thief.control().release_lease(request).await.unwrap();
    liar.until(|known| !known.refused.is_empty()).await;
    assert_eq!(listed(&cluster).await, []);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !cluster.services().await[0].backends.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the backend stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_forged_endpoint_cannot_be_a_backend() {
    let Scene { app, honest, thief, c1, cluster } = scene().await;
    let _agent = Agent::start(&honest, having(&[&c1])).await;
    let made_up = endpoint(&app, "made-up", "10.64.0.3");
    let _liar = Agent::start(&thief, having(&[&made_up])).await;
    cluster.create_service(service("web", "app")).await.unwrap();
    for endpoint in ["made-up", made_up.id.as_str()] {
        assert_eq!(thief.add("web", endpoint).await.unwrap_err().kind, ProblemKind::NotFound);
    }
    assert_eq!(thief.add("web", "c1").await.unwrap_err().kind, ProblemKind::Denied);
}

#[tokio::test]
async fn a_hosts_report_about_itself_is_bounded() {
    let Scene { thief, honest, cluster, .. } = scene().await;
    let agent = Agent::start(&honest, Behaviour::default()).await;
    let node = thief.id.to_string();
    for (mtu, version) in
        [(68, "x".repeat(4 << 20)), (685, "1.0\x1b[31m".into()), (1279, "a b".into()), (65536, "\n".into())]
    {
        let liar = Agent::start(&thief, Behaviour { mtu, version, ..Behaviour::default() }).await;
        let problems = liar.until(|known| known.problems.len() == 2).await.problems;
        assert!(
            problems.iter().all(|line| line.len() < 300 && !line.contains(char::is_control)),
            "{problems:?}"
        );
    }
    let known = agent.known();
    assert_eq!((known.nodes[&node].data_path_mtu, known.nodes[&node].version.as_str()), (1500, "test"));
    let behaviour = Behaviour { mtu: 1280, version: "0.4.1".into(), ..Behaviour::default() };
    let liar = Agent::start(&thief, behaviour).await;
    agent
        .until(|known| known.nodes[&node].data_path_mtu == 1280 && known.nodes[&node].version == "0.4.1")
        .await;
    assert!(liar.known().problems.is_empty(), "what was wrong is right now");
    let nodes = cluster.control().list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!(nodes.len(), 3);
}

#[tokio::test]
async fn routes_of_one_worker_do_not_prevent_new_networks() {
    let Scene { thief, cluster, .. } = scene().await;
    for routes in [
        &["0.0.0.0/1", "128.0.0.0/1"][..],
        &["10.64.0.0/10"],
        &["10.0.0.0/8"],
        &["10.64.0.0/11", "10.96.0.0/12"],
    ] {
        let routes: Vec<String> = routes.iter().map(ToString::to_string).collect();
        let name = routes[0].replace(['.', '/'], "-");
        let _liar = Agent::start(&thief, Behaviour { routes, ..Behaviour::default() }).await;
        cluster.create(network(&format!("n{name}"))).await.unwrap();
    }
    // A requested subnet is still compared with all routes.
    let routes = vec!["172.20.0.0/16".into()];
    let _liar = Agent::start(&thief, Behaviour { routes, ..Behaviour::default() }).await;
    let problem = cluster.create(network_of("x", "172.20.1.0/24")).await.unwrap_err();
    assert!(problem.message.contains("route 172.20.0.0/16 of node h3"), "{problem}");
}

#[tokio::test]
async fn every_node_knows_the_addresses_that_a_host_has_now_and_none_that_it_cannot_have() {
    let Scene { thief, honest, cluster, .. } = scene().await;
    let agent = Agent::start(&honest, Behaviour::default()).await;
    cluster.create(network_of("own", "10.9.0.0/16")).await.unwrap();
    let node = thief.id.to_string();
    let list = |addresses: &[&str]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    let addresses = list(&["10.99.0.3", "fd99::3"]);
    let told = Agent::start(&thief, Behaviour { addresses, ..Behaviour::default() }).await;
    agent.until(|known| known.nodes[&node].host_addrs == ["10.99.0.3", "fd99::3"]).await;
    // They change, and so do the routes.
    let report = |routes: &[&str], addresses: &[&str]| {
        let report = HostReport { routes: list(routes), addresses: list(addresses) };
        told.say(Kind::Host(report))
    };
    report(&["172.20.0.0/16"], &["10.98.0.3"]).await;
    agent.until(|known| known.nodes[&node].host_addrs == ["10.98.0.3"]).await;
    let problem = cluster.create(network_of("x", "172.20.1.0/24")).await.unwrap_err();
    assert!(problem.message.contains("route 172.20.0.0/16 of node h3"), "{problem}");
    // Another node's, a container's, and what is no address of a host.
    for bad in ["192.168.77.11", "10.9.0.5", "127.0.0.1", "fe80::1", "224.0.0.1", "nonsense"] {
        report(&[], &[bad, "10.97.0.3"]).await;
        told.until(|known| known.problems.iter().any(|line| line.contains(bad))).await;
        agent.until(|known| known.nodes[&node].host_addrs == ["10.97.0.3"]).await;
    }
    let many: Vec<String> = (0..200).map(|last| format!("10.96.0.{last}")).collect();
    report(&[], &many.iter().map(String::as_str).collect::<Vec<_>>()).await;
    agent.until(|known| known.nodes[&node].host_addrs.len() == 32).await;
    report(&[], &["10.97.0.3"]).await;
    told.until(|known| known.problems.is_empty()).await;
}

#[tokio::test]
async fn a_host_joins_with_an_address_that_others_can_reach_only() {
    let cluster = Cluster::start().await;
    cluster.create(network_of("app", "10.9.0.0/16")).await.unwrap();
    let token = cluster.token(Role::Worker).await;
    for address in [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.9",
        "255.255.255.255",
        "169.254.1.1",
        "fe80::1",
        "ff02::1",
        "10.9.0.5",
        "192.168.77.11",
    ] {
        let mut parameters = cluster.parameters("h2");
        parameters.data_path_addr = address.parse().unwrap();
        let problem = join(&cluster.address, &token, parameters).await.unwrap_err();
        assert!(problem.message.contains(address), "{problem}");
    }
    let mut parameters = cluster.parameters("h2");
    parameters.version = "1\x1b".into();
    assert_eq!(join(&cluster.address, &token, parameters).await.unwrap_err().kind, ProblemKind::Usage);
    join(&cluster.address, &token, cluster.parameters("h2")).await.unwrap();
}

#[tokio::test]
async fn a_worker_can_lease_what_its_endpoints_need_and_a_reserve() {
    let Scene { app, honest, thief, cluster: _cluster, .. } = scene().await;
    let _agent = Agent::start(&honest, Behaviour::default()).await;
    let liar = Agent::start(&thief, Behaviour::default()).await;
    let mut held = 64;
    let problem = loop {
        match thief.lease(&app, "").await {
            Ok(_) => held += 64,
            Err(problem) => break problem,
        }
        assert!(held <= 4096 / 8, "one worker holds {held} addresses and uses none");
    };
    assert_eq!(problem.kind, ProblemKind::Exhausted, "{problem}");
    assert!(problem.message.contains(&format!("holds {held}")), "{problem}");
    assert_eq!(thief.lease(&app, "10.64.14.1").await.unwrap_err().kind, ProblemKind::Exhausted, "one by one");
    // Other nodes get theirs, and this one gets more once it uses what it has.
    honest.lease(&app, "").await.unwrap();
    let used = (0..62).map(|n| endpoint(&app, &format!("c{n}"), &format!("10.64.0.{}", 64 + n)));
    liar.report(used.collect(), Vec::new()).await;
    thief.lease(&app, "").await.unwrap();
}

#[tokio::test]
async fn keys_of_one_node_do_not_affect_another_node_or_the_rotation() {
    let Scene { honest, thief, cluster, .. } = scene().await;
    let set = async |member: &Member, generation: u32, key: &str| -> Result<(), Problem> {
        let wireguard = Some(Wireguard { port: 51820, keys: [(generation, key.to_owned())].into() });
        member.control().set_wireguard(SetWireguardRequest { wireguard }).await?;
        Ok(())
    };
    let (key, other) =
        ("GSbxL3oHmgXcZmSPPmrpIYMcdcA7/YEP4zSJ0jZ2nBM=", "GSbxL3oHmgXcZmSPPmrpIYMcdcA7/YEP4zSJ0jZ2nBA=");
    set(&honest, 1, key).await.unwrap();
    let problem = set(&thief, 1, key).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Conflict, "{problem}");
    assert_eq!(set(&thief, u32::MAX, other).await.unwrap_err().kind, ProblemKind::Usage);
    set(&thief, 1, other).await.unwrap();
    cluster.control().rotate_keys(v1::RotateKeysRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_nodes_newest_session_replaces_earlier_ones() {
    let Scene { thief, cluster, .. } = scene().await;
    let mut sessions = Vec::new();
    for _ in 0..40 {
        let member = Member::connect(&cluster.address, thief.identity.clone()).await.unwrap();
        sessions.push(Agent::start(&member, Behaviour::default()).await);
    }
    for old in &sessions[..39] {
        old.until(|known| known.ended.is_some()).await;
    }
    assert!(sessions[39].known().ended.is_none());
}

#[tokio::test]
async fn a_single_workers_claim_that_others_are_down_has_no_effect() {
    let Scene { thief, honest, cluster, .. } = scene().await;
    let _own = Agent::start(&cluster.own(), Behaviour::default()).await;
    let agent = Agent::start(&honest, Behaviour::default()).await;
    let liar = Agent::start(&thief, Behaviour::default()).await;
    for _ in 0..10 {
        liar.probed(&honest, false).await;
        liar.applied(u64::MAX).await;
    }
    liar.until(|known| known.states[honest.id.as_str()] == NodeState::Ready).await;
    assert!(agent.known().ended.is_none());
}

#[tokio::test]
async fn false_claims_of_ports_do_not_prevent_publishing() {
    let Scene { thief, honest, cluster, .. } = scene().await;
    let _honest = Agent::start(&honest, Behaviour::default()).await;
    let everything = Some((1..=65_535).collect());
    let liar = Agent::start(&thief, Behaviour { used_ports: everything, ..Behaviour::default() }).await;
    let ports = vec![
        v1::PublishedPort { published: 8080, target: 80, ..v1::PublishedPort::default() },
        v1::PublishedPort { target: 81, ..v1::PublishedPort::default() },
    ];
    let request = v1::CreateServiceRequest { ports, ..service("web", "app") };
    cluster.create_service(request).await.unwrap();
    let problems = liar.until(|known| !known.problems.is_empty()).await.problems;
    assert!(problems[0].contains("port"), "{problems:?}");
    // One claimed port is believed, and the error names the node.
    liar.behave(|behaviour| behaviour.used_ports = Some([9090].into()));
    let ports = vec![v1::PublishedPort { published: 9090, target: 80, ..v1::PublishedPort::default() }];
    let request = v1::CreateServiceRequest { ports, ..service("api", "app") };
    let problem = cluster.create_service(request).await.unwrap_err();
    assert!(problem.message.contains("h3"), "{problem}");
}
