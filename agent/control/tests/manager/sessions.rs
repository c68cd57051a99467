//! The messages to agents, and that none is missing.

use std::time::Duration;

use mesh_control::limits::APPLIED;
use mesh_proto::v1::{CreateNetworkRequest, NodeState, RemoveNetworkRequest, RemoveNodeRequest};
use mesh_store::{Key, Op, Txn};
use tonic::Code;

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, PATIENCE, network};

#[tokio::test]
async fn a_node_receives_a_networks_leases_while_it_has_one_there() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let (first, second) =
        (Agent::start(&h2, Behaviour::default()).await, Agent::start(&h3, Behaviour::default()).await);
    // Only the record, so that packets to its addresses do not leave by another route.
    assert_eq!((first.known().networks.len(), first.known().leases.len()), (1, 0));

    let earlier = h2.lease(&app, "").await.unwrap();
    first.until(|known| known.revision >= earlier.revision).await;
    assert_eq!((first.known().networks.len(), first.known().leases.len()), (1, 1));
    let lease = h3.lease(&app, "").await.unwrap();
    // It receives the network with the lease that existed before.
    second.until(|known| known.revision >= lease.revision).await;
    assert_eq!((second.known().networks.len(), second.known().leases.len()), (1, 2));

    let held = lease.lease.unwrap();
    let request = mesh_proto::v1::ReleaseLeaseRequest {
        network: app.id.clone(),
        prefix: held.prefix.clone(),
        revision: held.revision,
    };
    h3.control().release_lease(request).await.unwrap();
    second.until(|known| known.leases.is_empty()).await;
    assert!(second.known().networks.contains_key(&app.id));
    first.until(|known| known.leases.len() == 1).await;
}

#[tokio::test]
async fn a_lease_is_granted_only_when_the_other_agents_have_applied_it() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let slow = Agent::start(&h2, Behaviour::default()).await;
    let _other = Agent::start(&h3, Behaviour::default()).await;
    h2.lease(&app, "").await.unwrap();
    slow.behave(|behaviour| behaviour.applies = false);
    let leasing = tokio::spawn({
        let app = app.clone();
        async move { h3.lease(&app, "").await }
    });
    let known = slow.until(|known| known.leases.len() == 2).await;
    // The manager knows that the slow agent has received it, and still waits.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!leasing.is_finished());
    slow.applied(known.revision).await;
    leasing.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_agent_that_never_applies_delays_only_one_lease() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    // A manager, which has no quota.
    let (h2, h3) = (cluster.join("h2").await, cluster.join_as("h3", mesh_proto::v1::Role::Manager).await);
    let slow = Agent::start(&h2, Behaviour::default()).await;
    let _other = Agent::start(&h3, Behaviour::default()).await;
    h2.lease(&app, "").await.unwrap();
    slow.behave(|behaviour| behaviour.applies = false);
    let leasing = tokio::time::timeout(APPLIED * 2, h3.lease(&app, ""));
    leasing.await.expect("the lease was held up").unwrap();
    for _ in 0..3 {
        let leasing = tokio::time::timeout(APPLIED / 2, h3.lease(&app, ""));
        leasing.await.expect("another lease was held up").unwrap();
    }
    // Once the manager knows that it has caught up, calls wait for it again.
    let lease = h3.lease(&app, "").await.unwrap();
    slow.until(|known| known.revision >= lease.revision).await;
    slow.applied(lease.revision).await;
    let waited_for = async { while tokio::time::timeout(APPLIED / 2, h3.lease(&app, "")).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, waited_for).await.expect("it is waited for again");
}

#[tokio::test]
async fn snapshot_and_deltas_leave_no_gap_while_everything_changes() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let own = cluster.own();
    let writer = Agent::start(&own, Behaviour::default()).await;
    own.lease(&app, "").await.unwrap();
    // Nodes, networks and leases change while sessions begin.
    let mut members = Vec::new();
    for n in 0..6 {
        members.push(cluster.join(&format!("w{n}")).await);
    }
    let changes = async {
        for round in 0..12 {
            let name = format!("net{round}");
            let network = cluster.create(network(&name)).await.unwrap();
            own.lease(&network, "").await.unwrap();
            own.lease(&app, "").await.unwrap();
            if round % 2 == 0 {
                let request = RemoveNetworkRequest { network: name };
                cluster.control().remove_network(request).await.unwrap();
            }
        }
    };
    let sessions = async {
        let mut agents = Vec::new();
        for member in &members {
            let agent = Agent::start(member, Behaviour::default()).await;
            member.lease(&app, "").await.unwrap();
            agents.push(agent);
        }
        agents
    };
    let ((), mut agents) = tokio::join!(changes, sessions);
    agents.push(writer);
    // A session that begins now gets the current state at once; the others must have reached the
    // same.
    let late = cluster.join("late").await;
    let last = Agent::start(&late, Behaviour::default()).await;
    let leased = late.lease(&app, "").await.unwrap();
    for agent in agents.iter().chain([&last]) {
        agent.until(|known| known.revision >= leased.revision).await;
    }
    let truth = last.known();
    for agent in &agents[..6] {
        let known = agent.known();
        assert_eq!(known.nodes, truth.nodes);
        assert_eq!(known.networks, truth.networks);
        assert_eq!(known.leases, truth.leases);
    }
    // The manager's own agent has leases in the remaining networks too.
    let all = agents[6].known();
    assert_eq!(all.networks.len(), 1 + 6);
    assert_eq!(all.nodes, truth.nodes);
    let of_app = |(network, _): &(String, String)| *network == app.id;
    assert_eq!(
        all.leases.iter().filter(|(key, _)| of_app(key)).collect::<Vec<_>>(),
        truth.leases.iter().collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn an_agent_receives_revisions_that_do_not_concern_it() {
    let cluster = Cluster::start().await;
    let h2 = cluster.join("h2").await;
    let agent = Agent::start(&h2, Behaviour::default()).await;
    let before = agent.known().revision;
    cluster.create(network("app")).await.unwrap();
    agent.until(|known| known.revision > before).await;
    let before = agent.known().revision;
    cluster.own().lease(&agent.known().networks.values().next().unwrap().clone(), "").await.unwrap();
    agent.until(|known| known.revision > before).await;
    assert!(agent.known().leases.is_empty());
}

#[tokio::test]
async fn a_newer_session_of_a_node_replaces_the_older_one() {
    let cluster = Cluster::start().await;
    let h2 = cluster.join("h2").await;
    let old = Agent::start(&h2, Behaviour::default()).await;
    let new = Agent::start(&h2, Behaviour::default()).await;
    let ended = old.until(|known| known.ended.is_some()).await.ended.unwrap();
    assert!(ended.message().contains("newer session"), "{ended}");
    let before = new.known().revision;
    cluster.create(network("app")).await.unwrap();
    assert!(new.until(|known| known.revision > before).await.ended.is_none());
}

#[tokio::test]
async fn the_session_of_a_removed_node_ends() {
    let cluster = Cluster::start().await;
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let agent = Agent::start(&h2, Behaviour::default()).await;
    let other = Agent::start(&h3, Behaviour::default()).await;
    let request = RemoveNodeRequest { node: "h2".into(), force: true };
    cluster.control().remove_node(request).await.unwrap();
    let ended = agent.until(|known| known.ended.is_some()).await.ended.unwrap();
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert!(ended.message().contains("was removed"), "{ended}");
    other
        .until(|known| {
            !known.nodes.contains_key(h2.id.as_str()) && !known.states.contains_key(h2.id.as_str())
        })
        .await;
    let again = Agent::open(&h2, Behaviour::default()).await;
    again.until(|known| known.ended.as_ref().is_some_and(|s| s.code() == Code::PermissionDenied)).await;
}

#[tokio::test]
async fn hello_updates_the_mtu_in_the_nodes_record() {
    let cluster = Cluster::start().await;
    let h2 = cluster.join("h2").await;
    let agent = Agent::start(&h2, Behaviour { mtu: 9000, ..Behaviour::default() }).await;
    agent.until(|known| known.nodes[h2.id.as_str()].data_path_mtu == 9000).await;
}

#[tokio::test]
async fn a_silent_agent_loses_its_session() {
    let cluster = Cluster::start().await;
    let h2 = cluster.join("h2").await;
    let agent = Agent::start(&h2, Behaviour { sends_heartbeats: false, ..Behaviour::default() }).await;
    let ended = agent.within(Duration::from_secs(4), |known| known.ended.is_some()).await;
    assert!(ended.unwrap().ended.unwrap().message().contains("no message from the agent"));
}

#[tokio::test]
async fn agents_find_the_manager_again_after_its_restart() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let agent = Agent::start(&h2, Behaviour::default()).await;
    let lease = h2.lease(&app, "").await.unwrap().lease.unwrap();
    let cluster = cluster.restart().await;
    drop(agent);
    let h2 = crate::cluster::Member::connect(&cluster.address, h2.identity).await.unwrap();
    let agent = Agent::start(&h2, Behaviour::default()).await;
    let known = agent.until(|known| known.states[h2.id.as_str()] == NodeState::Ready).await;
    assert_eq!(known.leases.values().collect::<Vec<_>>(), [&lease]);
}

/// More data than a connection and a session's queue hold without being read.
async fn flood(cluster: &Cluster, member: &crate::cluster::Member) {
    for n in 0..4 {
        let labels = [("ballast".to_owned(), "x".repeat(1_000_000))].into();
        let request = CreateNetworkRequest { labels, ..network(&format!("big{n}")) };
        let big = cluster.create(request).await.unwrap();
        member.lease(&big, "").await.unwrap();
    }
}

/// Makes this many changes that every agent receives, quickly: a session that accepts none is given
/// up after some seconds.
async fn rewrite(cluster: &Cluster, times: usize) {
    let key = Key::from(format!("/node/{}", cluster.manager.node_id()));
    let node = cluster.store.get(key.clone()).await.unwrap().unwrap().value;
    for _ in 0..times {
        cluster.store.txn(Txn::always([Op::put(key.clone(), node.clone())])).await.unwrap();
    }
}

#[tokio::test]
async fn an_agent_that_fell_behind_starts_again_with_a_snapshot() {
    let cluster = Cluster::start().await;
    let h2 = cluster.join("h2").await;
    let agent = Agent::start(&h2, Behaviour::default()).await;
    agent.behave(|behaviour| behaviour.reads = false);
    flood(&cluster, &h2).await;
    rewrite(&cluster, 1100).await;
    agent.behave(|behaviour| behaviour.reads = true);
    let known = agent.until(|known| known.snapshots == 2).await;
    assert_eq!((known.networks.len(), known.leases.len()), (4, 4));
    assert!(known.ended.is_none());
}

#[tokio::test]
async fn an_agent_that_does_not_read_loses_its_session_without_effect_on_others() {
    let cluster = Cluster::start().await;
    let h2 = cluster.join("h2").await;
    let own = Agent::start(&cluster.own(), Behaviour::default()).await;
    let stuck = Agent::start(&h2, Behaviour::default()).await;
    stuck.behave(|behaviour| behaviour.reads = false);
    flood(&cluster, &h2).await;
    rewrite(&cluster, 40).await;
    let known =
        own.within(Duration::from_secs(10), |known| known.states[h2.id.as_str()] != NodeState::Ready).await;
    assert!(known.is_some(), "the session went on");
}

#[tokio::test]
async fn a_server_ends_without_waiting_for_its_sessions() {
    let cluster = Cluster::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let manager = cluster.manager.clone();
    let server = tokio::spawn(async move {
        manager.serve(listener, async { stopped.await.unwrap() }).await.unwrap();
    });
    let h2 = cluster.join("h2").await;
    let h2 = crate::cluster::Member::connect(&address, h2.identity).await.unwrap();
    let agent = Agent::start(&h2, Behaviour::default()).await;
    stop.send(()).unwrap();
    agent.until(|known| known.ended.is_some()).await;
    tokio::time::timeout(Duration::from_secs(4), server).await.expect("the server went on").unwrap();
}
