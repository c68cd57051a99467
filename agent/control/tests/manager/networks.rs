//! Creating and removing networks.

use std::collections::BTreeSet;

use mesh_proto::v1::{
    CreateNetworkRequest, InspectNetworkRequest, ListEndpointsRequest, Network, PruneNetworksRequest,
    RemoveNetworkRequest, RemoveNodeRequest,
};
use mesh_proto::{Problem, ProblemKind};
use tokio::task::JoinSet;

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, endpoint, network, network_of};

async fn remove(cluster: &Cluster, name: &str) -> Result<Network, Problem> {
    let request = RemoveNetworkRequest { network: name.into() };
    Ok(cluster.control().remove_network(request).await?.into_inner().network.unwrap())
}

#[tokio::test]
async fn networks_get_the_next_free_subnet_and_vni() {
    let cluster = Cluster::start().await;
    let a = cluster.create(network("a")).await.unwrap();
    let b = cluster.create(CreateNetworkRequest { ipv6: true, ..network("b") }).await.unwrap();
    assert_eq!((a.vni, a.subnets[0].subnet.as_str()), (4096, "10.64.0.0/20"));
    assert_eq!((b.vni, b.subnets[0].subnet.as_str(), b.subnets.len()), (4097, "10.64.16.0/20", 2));
    assert_eq!(a.subnets[0].gateway, "10.64.0.1");
    assert!(b.subnets[1].subnet.starts_with("fd") && b.subnets[1].subnet.ends_with("::/64"), "{b:?}");
    remove(&cluster, "a").await.unwrap();
    let c = cluster.create(network("c")).await.unwrap();
    assert_eq!((c.vni, c.subnets[0].subnet.as_str()), (4096, "10.64.0.0/20"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_concurrent_creations_share_no_subnet_and_no_vni() {
    let cluster = Cluster::start().await;
    let mut tasks = JoinSet::new();
    for n in 0..200 {
        let mut control = cluster.control();
        // Every fifth name is requested twice: one of the two requests succeeds.
        tasks.spawn(async move { control.create_network(network(&format!("n{}", n - n % 5 / 4))).await });
    }
    let (mut created, mut refused) = (Vec::new(), 0);
    while let Some(result) = tasks.join_next().await {
        match result.unwrap() {
            Ok(network) => created.push(network.into_inner()),
            Err(status) => {
                assert_eq!(Problem::from(status).kind, ProblemKind::Conflict);
                refused += 1;
            }
        }
    }
    assert_eq!((created.len(), refused), (160, 40));
    let distinct = |of: &dyn Fn(&Network) -> String| created.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(distinct(&|network| network.name.clone()), 160);
    assert_eq!(distinct(&|network| network.vni.to_string()), 160);
    assert_eq!(distinct(&|network| network.subnets[0].subnet.clone()), 160);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_concurrent_managers_allocate_nothing_twice() {
    let cluster = Cluster::start().await;
    let h2 = cluster.join_as("h2", mesh_proto::v1::Role::Manager).await;
    // Another manager's process on the same store, as with a replicated store.
    let second = cluster.second_manager(&h2).await;
    let mut tasks = JoinSet::new();
    for n in 0..40 {
        // With distinct VNIs, so that only the subnets can reveal a conflict.
        let request = CreateNetworkRequest { vni: Some(100 + n), ..network(&format!("n{n}")) };
        let channel = if n % 2 == 0 { cluster.manager.local_channel() } else { second.local_channel() };
        let mut control = mesh_control::session_client::control_client(channel);
        tasks.spawn(async move { control.create_network(request).await.unwrap().into_inner() });
    }
    let created: Vec<Network> = tasks.join_all().await;
    assert_eq!(created.iter().map(|network| network.vni).collect::<BTreeSet<_>>().len(), 40);
    assert_eq!(created.iter().map(|network| &network.subnets[0].subnet).collect::<BTreeSet<_>>().len(), 40);
}

#[tokio::test]
async fn bad_requests_are_usage_errors_that_name_the_value() {
    let cluster = Cluster::start().await;
    let with = |change: &dyn Fn(&mut CreateNetworkRequest)| {
        let mut request = network_of("app", "10.1.0.0/24");
        change(&mut request);
        request
    };
    let cases: Vec<(CreateNetworkRequest, &str)> = vec![
        (network("-x"), "\"-x\" is no valid name"),
        (with(&|r| r.driver = "bridge".into()), "\"bridge\""),
        (with(&|r| r.subnets = vec!["10.1.2.3/24".into()]), "10.1.2.0/24"),
        (with(&|r| r.subnets = vec!["10.1.0.0/33".into()]), "33"),
        (with(&|r| r.subnets = vec!["rubbish".into()]), "rubbish"),
        (with(&|r| r.subnets = vec!["10.1.0.0/24".into(), "10.1.0.128/25".into()]), "10.1.0.128/25"),
        (with(&|r| r.subnets = vec!["127.1.0.0/24".into()]), "loopback"),
        (with(&|r| r.subnets = vec!["10.1.0.0/32".into()]), "too small"),
        (with(&|r| r.gateways = vec!["10.2.0.1".into()]), "gateway 10.2.0.1 is not in any"),
        (with(&|r| r.gateways = vec!["10.1.0.0".into()]), "network address"),
        (with(&|r| r.gateways = vec!["10.1.0.1".into(), "10.1.0.2".into()]), "two gateways"),
        (with(&|r| r.gateways = vec!["x".into()]), "\"x\" is not an IP address"),
        (with(&|r| r.ip_ranges = vec!["10.2.0.0/25".into()]), "IP range 10.2.0.0/25 is not in any"),
        (with(&|r| r.ip_ranges = vec!["10.1.0.0/25".into(), "10.1.0.128/25".into()]), "two IP ranges"),
        (with(&|r| r.ip_ranges = vec!["10.1.0.1/25".into()]), "10.1.0.0/25"),
        (with(&|r| r.aux = [("dns".into(), "10.2.0.1".into())].into()), "dns=10.2.0.1 is not in any"),
        (with(&|r| r.aux = [("dns".into(), "10.1.0.1".into())].into()), "gateway"),
        (with(&|r| r.mtu = Some(67)), "67"),
        (with(&|r| r.mtu = Some(65536)), "65536"),
        (with(&|r| (r.mtu, r.ipv6) = (Some(1279), true)), "1280"),
        (with(&|r| r.vni = Some(0)), "0"),
        (with(&|r| r.vni = Some(0x80_0000)), "8388608"),
        (
            with(&|r| r.options = [("foo".into(), "bar".into())].into()),
            "network option \"foo\" does not exist",
        ),
        (with(&|r| r.options = [("mtu".into(), "x".into())].into()), "option mtu=x"),
        (with(&|r| (r.mtu, r.options) = (Some(1400), [("mtu".into(), "1300".into())].into())), "1400"),
        (with(&|r| r.labels = [(String::new(), "x".into())].into()), "label"),
    ];
    for (request, expected) in cases {
        let text = format!("{request:?}");
        let problem = cluster.create(request).await.expect_err(&text);
        assert_eq!(problem.kind, ProblemKind::Usage, "{text}: {problem}");
        assert!(problem.message.contains(expected), "{text}: {problem}");
    }
}

#[tokio::test]
async fn dockers_spelling_of_encryption_is_accepted_and_never_ignored() {
    let cluster = Cluster::start().await;
    let options = [("encrypted".to_owned(), "false".to_owned())].into();
    for request in [
        CreateNetworkRequest { encrypted: true, ..network("app") },
        CreateNetworkRequest { options, ..network("web") },
    ] {
        assert!(cluster.create(request).await.unwrap().encrypted);
    }
    assert!(!cluster.create(network("clear")).await.unwrap().encrypted);
}

#[tokio::test]
async fn conflicts_name_the_other_side() {
    let cluster = Cluster::start().await;
    let h2 = cluster.join("h2").await;
    let _agent =
        Agent::start(&h2, Behaviour { routes: vec!["172.20.0.0/16".into()], ..Behaviour::default() }).await;
    cluster.create(CreateNetworkRequest { vni: Some(77), ..network_of("app", "10.1.0.0/24") }).await.unwrap();
    for (request, expected) in [
        (network("app"), "network app exists already"),
        (network_of("b", "10.1.0.128/25"), "subnet 10.1.0.128/25 overlaps subnet 10.1.0.0/24 of network app"),
        (network_of("b", "192.168.77.8/30"), "overlaps data-path address 192.168.77.11 of node h1"),
        (network_of("b", "172.20.3.0/24"), "overlaps route 172.20.0.0/16 of node h2"),
        (CreateNetworkRequest { vni: Some(77), ..network("b") }, "VNI 77 belongs to network app"),
    ] {
        let problem = cluster.create(request).await.unwrap_err();
        assert_eq!(problem.kind, ProblemKind::Conflict);
        assert!(problem.message.contains(expected), "{problem}");
    }
    // A host whose underlay is inside a network cannot join either.
    let mut parameters = cluster.parameters("h3");
    parameters.data_path_addr = "10.1.0.9".parse().unwrap();
    let token = cluster.token(mesh_proto::v1::Role::Worker).await;
    let problem = mesh_control::join(&cluster.address, &token, parameters).await.unwrap_err();
    assert!(problem.message.contains("network app"), "{problem}");
}

#[tokio::test]
async fn exhausted_pools_give_an_error_with_a_hint() {
    let cluster = Cluster::with_pools(&["10.9.0.0/24"], 25).await;
    cluster.create(network("a")).await.unwrap();
    cluster.create(network("b")).await.unwrap();
    let problem = cluster.create(network("c")).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Exhausted);
    assert!(problem.message.contains("10.9.0.0/24"), "{problem}");
    assert!(problem.hint.unwrap().contains("--subnet"));
}

#[tokio::test]
async fn the_record_contains_the_requested_values() {
    let cluster = Cluster::start().await;
    let request = CreateNetworkRequest {
        subnets: vec!["fd77::/64".into(), "10.1.0.0/24".into()],
        gateways: vec!["10.1.0.254".into()],
        ip_ranges: vec!["10.1.0.128/25".into()],
        aux: [("dns".into(), "10.1.0.2".into())].into(),
        internal: true,
        mtu: Some(1400),
        vni: Some(5),
        labels: [("team".into(), "a".into())].into(),
        ..network("app")
    };
    let created = cluster.create(request).await.unwrap();
    let request = InspectNetworkRequest { network: created.id[..6].into() };
    let app = cluster.control().inspect_network(request).await.unwrap().into_inner().network.unwrap();
    assert_eq!(app, created);
    assert_eq!((app.vni, app.mtu, app.internal, app.attachable), (5, Some(1400), true, true));
    let v4 = &app.subnets[0];
    assert_eq!((v4.subnet.as_str(), v4.gateway.as_str()), ("10.1.0.0/24", "10.1.0.254"));
    assert_eq!((v4.ip_range.as_deref(), v4.aux["dns"].as_str()), (Some("10.1.0.128/25"), "10.1.0.2"));
    assert_eq!((app.subnets[1].subnet.as_str(), app.subnets[1].gateway.as_str()), ("fd77::/64", "fd77::1"));
}

#[tokio::test]
async fn a_network_in_use_stays_and_the_error_names_the_user() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let web = endpoint(&app, "web", "10.64.0.2");
    let agent = Agent::start(&h2, Behaviour { endpoints: vec![web.clone()], ..Behaviour::default() }).await;
    h2.lease(&app, "").await.unwrap();
    let problem = remove(&cluster, "app").await.unwrap_err();
    assert_eq!(
        (problem.kind, problem.message.as_str()),
        (ProblemKind::Conflict, "network app is in use by web on h2")
    );
    let request = ListEndpointsRequest { network: "app".into(), node: "h2".into() };
    let listed = h2.control().list_endpoints(request).await.unwrap().into_inner().endpoints;
    assert_eq!((listed[0].network_name.as_str(), listed[0].node_name.as_str()), ("app", "h2"));

    agent.report(Vec::new(), vec![web.id]).await;
    agent.until(|known| known.networks.contains_key(&app.id)).await;
    // The report is on its way: the refusal ends as soon as it arrives.
    let deadline = std::time::Instant::now() + crate::cluster::PATIENCE;
    while let Err(problem) = remove(&cluster, "app").await {
        assert!(std::time::Instant::now() < deadline, "{problem}");
    }
    agent.until(|known| known.networks.is_empty() && known.leases.is_empty()).await;
}

#[tokio::test]
async fn a_removal_that_conflicts_with_an_attach_is_aborted() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let agent = Agent::start(&h2, Behaviour { applies: false, ..Behaviour::default() }).await;
    h2.lease(&app, "").await.unwrap();
    let mut control = cluster.control();
    let removing = tokio::spawn(async move {
        control.remove_network(RemoveNetworkRequest { network: "app".into() }).await.map_err(Problem::from)
    });
    let known =
        agent.until(|known| known.networks.get(&app.id).is_some_and(|network| network.removing)).await;
    // While it is marked, no node gets a lease.
    let problem = h2.lease(&app, "").await.unwrap_err();
    assert_eq!(problem.message, "network app is being removed");
    // The attach in progress wins: it is reported before the mark is reported as applied.
    agent.report(vec![endpoint(&app, "web", "10.64.0.2")], Vec::new()).await;
    agent.applied(known.revision).await;
    let problem = removing.await.unwrap().unwrap_err();
    assert_eq!(problem.message, "network app is in use by web on h2");
    agent.until(|known| !known.networks[&app.id].removing).await;
    h2.lease(&app, "").await.unwrap();
}

#[tokio::test]
async fn a_network_that_an_absent_node_may_use_stays_until_the_node_is_removed() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let agent = Agent::start(&h2, Behaviour::default()).await;
    h2.lease(&app, "").await.unwrap();
    drop(agent);
    let own = Agent::start(&cluster.own(), Behaviour::default()).await;
    own.until(|known| known.states[h2.id.as_str()] != mesh_proto::v1::NodeState::Ready).await;
    let problem = remove(&cluster, "app").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Conflict);
    assert!(problem.message.contains("may be in use on h2"), "{problem}");
    assert!(problem.hint.unwrap().contains("node rm h2"));
    let request = RemoveNodeRequest { node: "h2".into(), force: false };
    cluster.control().remove_node(request).await.unwrap();
    remove(&cluster, "app").await.unwrap();
}

#[tokio::test]
async fn a_removal_that_a_restart_interrupted_leaves_the_network_usable() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let agent = Agent::start(&h2, Behaviour { applies: false, ..Behaviour::default() }).await;
    h2.lease(&app, "").await.unwrap();
    let mut control = cluster.control();
    let removing =
        tokio::spawn(
            async move { control.remove_network(RemoveNetworkRequest { network: "app".into() }).await },
        );
    agent.until(|known| known.networks.get(&app.id).is_some_and(|network| network.removing)).await;
    // The process is killed: only the next start clears the mark.
    let cluster = cluster.copy_of_store().await;
    removing.abort();
    let request = InspectNetworkRequest { network: "app".into() };
    assert!(
        !cluster.control().inspect_network(request).await.unwrap().into_inner().network.unwrap().removing
    );
}

#[tokio::test]
async fn prune_removes_unused_networks() {
    let cluster = Cluster::start().await;
    let used = cluster.create(network("used")).await.unwrap();
    cluster.create(network("idle")).await.unwrap();
    let h2 = cluster.join("h2").await;
    h2.lease(&used, "").await.unwrap();
    let endpoints = vec![endpoint(&used, "web", "10.64.0.2")];
    let _agent = Agent::start(&h2, Behaviour { endpoints, ..Behaviour::default() }).await;
    let removed =
        cluster.control().prune_networks(PruneNetworksRequest {}).await.unwrap().into_inner().removed;
    assert_eq!(removed.iter().map(|network| network.name.as_str()).collect::<Vec<_>>(), ["idle"]);
    let problem = remove(&cluster, "idle").await.unwrap_err();
    assert_eq!(
        (problem.kind, problem.message.as_str()),
        (ProblemKind::NotFound, "network idle does not exist")
    );
}

#[tokio::test]
async fn names_that_differ_only_in_case_are_the_same_name() {
    use mesh_proto::v1::Role;
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let problem = cluster.create(network("APP")).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Conflict, "{problem}");
    assert!(problem.message.contains("network app exists"), "{problem}");
    let request = InspectNetworkRequest { network: "App".into() };
    let found = cluster.control().inspect_network(request).await.unwrap().into_inner().network.unwrap();
    assert_eq!(found.id, app.id);
    // Services and their aliases.
    let aliases = vec!["www".into(), "WWW".into()];
    let web = crate::cluster::service("Web", "app");
    let web = mesh_proto::v1::CreateServiceRequest { aliases, ..web };
    let made = cluster.create_service(web.clone()).await.unwrap().service.unwrap();
    assert_eq!(made.aliases, ["www"]);
    let (a, b) = tokio::join!(
        cluster.create_service(crate::cluster::service("web", "app")),
        cluster.create_service(crate::cluster::service("WEB", "app"))
    );
    assert!(a.is_err() && b.is_err());
    let request = mesh_proto::v1::RemoveServiceRequest { service: "wEB".into() };
    cluster.control().remove_service(request).await.unwrap();
    cluster.create_service(crate::cluster::service("web", "app")).await.unwrap();
    // Nodes.
    cluster.join("h2").await;
    let token = cluster.token(Role::Worker).await;
    let problem = mesh_control::join(&cluster.address, &token, cluster.parameters("H2")).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Conflict, "{problem}");
}
