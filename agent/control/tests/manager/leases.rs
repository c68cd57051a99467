//! Leases and borrows.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_ipam::Prefix;
use mesh_proto::ProblemKind;
use mesh_proto::v1::{CreateNetworkRequest, InspectNetworkRequest, Lease, LeaseRequest, Network};
use tokio::task::JoinSet;

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, Member, endpoint, network, network_of};

async fn leases(cluster: &Cluster, network: &Network) -> Vec<Lease> {
    let request = InspectNetworkRequest { network: network.id.clone() };
    cluster.control().inspect_network(request).await.unwrap().into_inner().leases
}

/// Creates a network in which `owner` holds all blocks: a /28 has blocks of four addresses.
async fn full(cluster: &Cluster, owner: &Member) -> Network {
    let network = cluster.create(network_of("small", "10.1.0.0/28")).await.unwrap();
    while let Ok(lease) = owner.lease(&network, "").await {
        assert_eq!(lease.lease.unwrap().node, owner.id.as_str());
    }
    network
}

#[tokio::test]
async fn concurrent_leases_of_many_nodes_never_overlap() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network_of("app", "10.1.0.0/22")).await.unwrap();
    let mut agents = Vec::new();
    let mut tasks = JoinSet::new();
    for n in 0..5 {
        let member = cluster.join(&format!("w{n}")).await;
        agents.push(Agent::start(&member, Behaviour::default()).await);
        let app = app.clone();
        tasks.spawn(async move {
            for _ in 0..4 {
                member.lease(&app, "").await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let prefixes: Vec<Prefix> =
        leases(&cluster, &app).await.iter().map(|lease| lease.prefix.parse().unwrap()).collect();
    assert_eq!(prefixes.len(), 20);
    for (index, prefix) in prefixes.iter().enumerate() {
        assert!(prefixes[..index].iter().all(|other| !other.overlaps(prefix)), "{prefixes:?}");
    }
    let last = agents[0].until(|known| known.leases.len() == 20).await;
    for agent in &agents {
        agent.until(|known| known.leases == last.leases).await;
    }
}

#[tokio::test]
async fn the_same_address_for_two_nodes_is_a_conflict_that_names_the_endpoint() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network_of("app", "10.1.0.0/24")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let endpoints = vec![endpoint(&app, "web", "10.1.0.77")];
    let _owner = Agent::start(&h2, Behaviour { endpoints, cedes: Some(false), ..Behaviour::default() }).await;
    let _other = Agent::start(&h3, Behaviour::default()).await;
    let lease = h2.lease(&app, "10.1.0.77").await.unwrap().lease.unwrap();
    assert_eq!(lease.prefix, "10.1.0.77/32");
    // A repeated request returns the same lease.
    assert_eq!(h2.lease(&app, "10.1.0.77").await.unwrap().lease.unwrap(), lease);
    let problem = h3.lease(&app, "10.1.0.77").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Conflict);
    assert_eq!(problem.message, "address 10.1.0.77 is in use on node h2 by endpoint web");
    // The owner still has it.
    let after = leases(&cluster, &app).await;
    assert_eq!(
        (after.len(), after[0].node.as_str(), after[0].pending_from.as_str()),
        (1, h2.id.as_str(), "")
    );
}

#[tokio::test]
async fn an_address_that_no_node_can_have_is_refused_with_the_reason() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network_of("app", "10.1.0.0/24")).await.unwrap();
    let h2 = cluster.join("h2").await;
    for (address, expected) in [
        ("10.1.0.1", "gateway"),
        ("10.1.0.0", "network address"),
        ("10.2.0.1", "in no subnet of network app"),
    ] {
        let problem = h2.lease(&app, address).await.unwrap_err();
        assert!(problem.message.contains(expected), "{problem}");
    }
}

#[tokio::test]
async fn a_full_network_is_served_from_another_nodes_block() {
    let cluster = Cluster::start().await;
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let owner = Agent::start(&h2, Behaviour::default()).await;
    let borrower = Agent::start(&h3, Behaviour::default()).await;
    let small = full(&cluster, &h2).await;
    let granted = h3.lease(&small, "").await.unwrap();
    let lease = granted.lease.unwrap();
    assert_eq!((lease.node.as_str(), lease.pending_from.as_str()), (h3.id.as_str(), ""));
    assert!(lease.prefix.ends_with("/32"));
    let asked = owner.known().asked;
    assert_eq!(asked.len(), 1);
    assert_eq!(format!("{}/32", asked[0].address), lease.prefix);
    // Both know it when the call returns: the call waited for the owner.
    let key = (small.id.clone(), lease.prefix.clone());
    assert_eq!(owner.known().leases[&key], lease);
    borrower
        .until(|known| known.revision >= granted.revision && known.leases.get(&key) == Some(&lease))
        .await;
}

#[tokio::test]
async fn a_refused_borrow_is_tried_elsewhere_until_the_network_is_truly_full() {
    let cluster = Cluster::start().await;
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let owner = Agent::start(&h2, Behaviour { cedes: Some(false), ..Behaviour::default() }).await;
    let _borrower = Agent::start(&h3, Behaviour::default()).await;
    let small = full(&cluster, &h2).await;
    let before = leases(&cluster, &small).await;
    let problem = h3.lease(&small, "").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Exhausted, "{problem}");
    assert!(
        problem.message.contains("network small") && problem.message.contains("10.1.0.0/28"),
        "{problem}"
    );
    let asked: BTreeSet<String> = owner.known().asked.into_iter().map(|cede| cede.address).collect();
    assert!(asked.len() > 3, "{asked:?}");
    assert_eq!(leases(&cluster, &small).await, before);
}

#[tokio::test]
async fn an_address_of_an_absent_node_is_refused_with_a_hint() {
    let cluster = Cluster::start().await;
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let owner = Agent::start(&h2, Behaviour::default()).await;
    let other = Agent::start(&h3, Behaviour::default()).await;
    let small = full(&cluster, &h2).await;
    drop(owner);
    other.until(|known| known.states[h2.id.as_str()] != mesh_proto::v1::NodeState::Ready).await;
    let problem = h3.lease(&small, "10.1.0.4").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Unreachable);
    assert!(problem.message.contains("node h2, whose agent does not respond"), "{problem}");
    let problem = h3.lease(&small, "").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Exhausted);
    assert!(problem.hint.unwrap().contains("node h2 does not respond"));
}

#[tokio::test]
async fn a_call_waits_for_an_owner_that_is_away_briefly() {
    let cluster = Cluster::start().await;
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let owner = Agent::start(&h2, Behaviour::default()).await;
    let other = Agent::start(&h3, Behaviour::default()).await;
    let small = full(&cluster, &h2).await;
    drop(owner);
    for address in ["10.1.0.4", ""] {
        other.until(|known| known.states[h2.id.as_str()] != mesh_proto::v1::NodeState::Ready).await;
        let mut asking = Box::pin(h3.lease(&small, address));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut asking).await;
        assert!(early.is_err(), "it was not waited for: {early:?}");
        let _owner = Agent::start(&h2, Behaviour::default()).await;
        let lease = asking.await.unwrap().lease.unwrap();
        assert_eq!(lease.node, h3.id.as_str(), "asked for {address:?}");
    }
}

#[tokio::test]
async fn an_unanswered_borrow_is_withdrawn() {
    let cluster = Cluster::start().await;
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let owner = Agent::start(&h2, Behaviour { cedes: None, ..Behaviour::default() }).await;
    let _other = Agent::start(&h3, Behaviour::default()).await;
    let small = full(&cluster, &h2).await;
    let before = leases(&cluster, &small).await;
    let problem = h3.lease(&small, "10.1.0.4").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Unreachable);
    assert_eq!(leases(&cluster, &small).await, before);
    // A late answer changes nothing.
    let asked = owner.known().asked.pop().unwrap();
    owner.answer(&asked, true).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(leases(&cluster, &small).await, before);
}

#[tokio::test]
async fn a_borrow_that_is_pending_at_a_managers_restart_is_requested_again() {
    let cluster = Cluster::start().await;
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let owner = Agent::start(&h2, Behaviour { cedes: None, ..Behaviour::default() }).await;
    let _other = Agent::start(&h3, Behaviour::default()).await;
    let small = full(&cluster, &h2).await;
    let waiting = tokio::spawn({
        let small = small.clone();
        let h3 = Member::connect(&cluster.address, h3.identity.clone()).await.unwrap();
        async move { h3.lease(&small, "10.1.0.4").await }
    });
    let asked = owner.until(|known| !known.asked.is_empty()).await.asked.pop().unwrap();
    // The manager is killed before the answer.
    let cluster = cluster.copy_of_store().await;
    waiting.abort();
    let h2 = Member::connect(&cluster.address, h2.identity).await.unwrap();
    let h3 = Member::connect(&cluster.address, h3.identity).await.unwrap();
    let _other = Agent::start(&h3, Behaviour::default()).await;
    let owner = Agent::start(&h2, Behaviour { cedes: None, ..Behaviour::default() }).await;
    let again = owner.until(|known| !known.asked.is_empty()).await.asked.pop().unwrap();
    assert_eq!(again.address, asked.address);
    owner.answer(&again, true).await;
    let lease = h3.lease(&small, "10.1.0.4").await.unwrap().lease.unwrap();
    assert_eq!((lease.node.as_str(), lease.pending_from.as_str()), (h3.id.as_str(), ""));
}

#[tokio::test]
async fn two_nodes_that_request_the_same_free_address_do_not_both_get_it() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    // Each refuses to release it again, like a node that uses it.
    let refuses = || Behaviour { cedes: Some(false), ..Behaviour::default() };
    let (_first, _second) = (Agent::start(&h2, refuses()).await, Agent::start(&h3, refuses()).await);
    for host in 10..20 {
        let address = format!("10.64.0.{host}");
        let (a, b) = tokio::join!(h2.lease(&app, &address), h3.lease(&app, &address));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        let problem = a.err().or(b.err()).unwrap();
        assert_eq!(problem.kind, ProblemKind::Conflict, "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leases_of_two_managers_at_once_never_overlap() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network_of("app", "10.1.0.0/16")).await.unwrap();
    let h2 = cluster.join_as("h2", mesh_proto::v1::Role::Manager).await;
    let second = cluster.second_manager(&h2).await;
    let mut tasks = JoinSet::new();
    for n in 0..200 {
        let manager = if n % 2 == 0 { &cluster.manager } else { &second };
        let mut control = mesh_control::session_client::control_client(manager.local_channel());
        let request = LeaseRequest { network: app.id.clone(), address: String::new(), family: 4 };
        tasks.spawn(async move { control.lease(request).await.unwrap().into_inner().lease.unwrap().prefix });
    }
    let granted: BTreeSet<String> = tasks.join_all().await.into_iter().collect();
    assert_eq!(granted.len(), 200);
    assert_eq!(leases(&cluster, &app).await.len(), 200);
}

#[tokio::test]
async fn an_exhausted_range_is_reported_as_the_range_and_not_as_the_subnet() {
    let cluster = Cluster::start().await;
    let request =
        CreateNetworkRequest { ip_ranges: vec!["10.1.0.128/30".into()], ..network_of("app", "10.1.0.0/24") };
    let app = cluster.create(request).await.unwrap();
    let h2 = cluster.join("h2").await;
    let _agent = Agent::start(&h2, Behaviour { cedes: Some(false), ..Behaviour::default() }).await;
    let h3 = cluster.join("h3").await;
    let _other = Agent::start(&h3, Behaviour { cedes: Some(false), ..Behaviour::default() }).await;
    let problem = loop {
        match h2.lease(&app, "").await {
            Ok(_) => {}
            // Addresses that one node holds without using them are not available to the other.
            Err(_) => break h3.lease(&app, "").await.unwrap_err(),
        }
    };
    assert_eq!(problem.kind, ProblemKind::Exhausted, "{problem}");
    assert!(problem.message.contains("IP range 10.1.0.128/30 of subnet 10.1.0.0/24"), "{problem}");
    assert!(problem.hint.as_deref().unwrap().contains("--ip-range"), "{problem:?}");
}
