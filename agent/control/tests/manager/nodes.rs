//! States, availability and removal of nodes.

use std::time::{Duration, Instant};

use mesh_proto::v1::{
    Availability, InspectNodeRequest, LeaveRequest, NodeState, RemoveNodeRequest, Role, UpdateNodeRequest,
};
use mesh_proto::{Problem, ProblemKind};

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, Member, network};

/// Creates three nodes with agents; each probes both others.
async fn three() -> (Cluster, [Member; 3], [Agent; 3]) {
    let cluster = Cluster::start().await;
    let members = [cluster.own(), cluster.join("h2").await, cluster.join("h3").await];
    let mut agents = Vec::new();
    for member in &members {
        agents.push(Agent::start(member, Behaviour::default()).await);
    }
    let agents: [Agent; 3] = agents.try_into().ok().unwrap();
    for agent in &agents {
        agent
            .until(|known| members.iter().all(|m| known.states.get(m.id.as_str()) == Some(&NodeState::Ready)))
            .await;
    }
    (cluster, members, agents)
}

#[tokio::test]
async fn a_killed_agent_is_unknown_while_its_datapath_answers() {
    let (_cluster, members, [own, second, third]) = three().await;
    own.probed(&members[2], true).await;
    second.probed(&members[2], true).await;
    drop(third);
    let id = members[2].id.as_str();
    own.until(|known| known.states[id] == NodeState::Unknown).await;
    second.until(|known| known.states[id] == NodeState::Unknown).await;
}

#[tokio::test]
async fn an_unplugged_host_is_down_as_soon_as_its_probers_report_it() {
    let (_cluster, members, [own, second, third]) = three().await;
    // Its session does not end: no more packets come from the host.
    third.behave(|behaviour| behaviour.sends_heartbeats = false);
    let id = members[2].id.as_str();
    tokio::time::sleep(Duration::from_millis(800)).await;
    let told = Instant::now();
    own.probed(&members[2], false).await;
    assert!(
        own.within(Duration::from_millis(300), |known| known.states[id] == NodeState::Down).await.is_none()
    );
    own.probed(&members[2], false).await;
    second.probed(&members[2], false).await;
    second.until(|known| known.states[id] == NodeState::Down).await;
    assert!(told.elapsed() < Duration::from_secs(1), "{:?}", told.elapsed());
    // It is back once its agent sends messages.
    let _back = Agent::start(&members[2], Behaviour::default()).await;
    own.until(|known| known.states[id] == NodeState::Ready).await;
}

#[tokio::test]
async fn a_single_probers_report_suffices() {
    let cluster = Cluster::start().await;
    let (own, h2) = (cluster.own(), cluster.join("h2").await);
    let manager = Agent::start(&own, Behaviour::default()).await;
    let agent = Agent::start(&h2, Behaviour::default()).await;
    drop(agent);
    manager.probed(&h2, false).await;
    manager.until(|known| known.states[h2.id.as_str()] == NodeState::Down).await;
}

#[tokio::test]
async fn a_ready_node_is_removed_only_by_force_and_its_leases_are_deleted() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let own = Agent::start(&cluster.own(), Behaviour::default()).await;
    let _agent = Agent::start(&h2, Behaviour::default()).await;
    cluster.own().lease(&app, "").await.unwrap();
    h2.lease(&app, "").await.unwrap();
    own.until(|known| known.leases.len() == 2).await;
    let remove = |force| RemoveNodeRequest { node: "h2".into(), force };
    let problem = Problem::from(cluster.control().remove_node(remove(false)).await.unwrap_err());
    assert_eq!((problem.kind, problem.message.as_str()), (ProblemKind::Conflict, "node h2 is ready"));
    assert!(problem.hint.unwrap().contains("--force h2"));
    cluster.control().remove_node(remove(true)).await.unwrap();
    own.until(|known| known.leases.len() == 1 && known.nodes.len() == 1).await;
}

#[tokio::test]
async fn the_leases_of_a_node_that_leaves_are_deleted() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let own = Agent::start(&cluster.own(), Behaviour::default()).await;
    let _agent = Agent::start(&h2, Behaviour::default()).await;
    cluster.own().lease(&app, "").await.unwrap();
    h2.lease(&app, "").await.unwrap();
    own.until(|known| known.leases.len() == 2).await;
    h2.control().leave(LeaveRequest {}).await.unwrap();
    own.until(|known| known.leases.len() == 1 && known.nodes.len() == 1).await;
}

#[tokio::test]
async fn the_manager_that_keeps_the_store_cannot_be_removed() {
    let cluster = Cluster::start().await;
    for role in [None, Some(Role::Manager)] {
        if let Some(role) = role {
            cluster.join_as("h2", role).await;
        }
        let request = RemoveNodeRequest { node: "h1".into(), force: true };
        let problem = Problem::from(cluster.control().remove_node(request).await.unwrap_err());
        assert_eq!(problem.message, "node h1 keeps the store of this cluster");
    }
}

#[tokio::test]
async fn availability_is_changed_by_name_or_id_prefix() {
    let cluster = Cluster::start().await;
    let h2 = cluster.join("h2").await;
    for (node, availability) in [("h2", Availability::Drain), (&h2.id.as_str()[..10], Availability::Active)] {
        let request =
            UpdateNodeRequest { node: node.into(), availability: availability.into(), ..Default::default() };
        cluster.control().update_node(request).await.unwrap();
        let status =
            h2.control().inspect_node(InspectNodeRequest { node: "h2".into() }).await.unwrap().into_inner();
        assert_eq!(status.node.unwrap().availability(), availability);
    }
    let request = UpdateNodeRequest {
        node: "h9".into(),
        availability: Availability::Drain.into(),
        ..Default::default()
    };
    let problem = Problem::from(cluster.control().update_node(request).await.unwrap_err());
    assert_eq!((problem.kind, problem.message.as_str()), (ProblemKind::NotFound, "node h9 does not exist"));
}

#[tokio::test]
async fn draining_returns_when_every_agent_has_applied_it() {
    let (cluster, members, [_own, _second, third]) = three().await;
    third.behave(|behaviour| behaviour.applies = false);
    let mut control = cluster.control();
    let id = members[1].id.to_string();
    let request = UpdateNodeRequest {
        node: id.clone(),
        availability: Availability::Drain.into(),
        ..Default::default()
    };
    let draining = tokio::spawn(async move { control.update_node(request).await });
    let known = third.until(|known| known.nodes[&id].availability() == Availability::Drain).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!draining.is_finished(), "one still sends its backends new connections");
    third.applied(known.revision).await;
    draining.await.unwrap().unwrap();
}
