//! Nodes' keys for encrypted networks.

use std::time::Instant;

use mesh_control::limits::APPLIED;
use mesh_proto::v1::{RotateKeysRequest, RotateKeysResponse, SetWireguardRequest, Wireguard};
use mesh_proto::{Problem, ProblemKind};

use crate::agent::{Agent, Behaviour, Known};
use crate::cluster::{Cluster, Member};

const KEY: &str = "GSbxL3oHmgXcZmSPPmrpIYMcdcA7/YEP4zSJ0jZ2nBM=";
const OTHER_KEY: &str = "GSbxL3oHmgXcZmSPPmrpIYMcdcA7/YEP4zSJ0jZ2nBA=";

async fn set(member: &Member, port: u32, keys: &[(u32, &str)]) -> Result<(), Problem> {
    let keys = keys.iter().map(|&(generation, key)| (generation, key.to_owned())).collect();
    let request = SetWireguardRequest { wireguard: Some(Wireguard { port, keys }) };
    member.control().set_wireguard(request).await?;
    Ok(())
}

async fn rotate(cluster: &Cluster) -> RotateKeysResponse {
    cluster.control().rotate_keys(RotateKeysRequest {}).await.unwrap().into_inner()
}

#[tokio::test]
async fn every_node_knows_a_nodes_keys_when_the_call_returns() {
    let cluster = Cluster::start().await;
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let a3 = Agent::start(&h3, Behaviour::default()).await;
    set(&h2, 51820, &[(1, KEY)]).await.unwrap();
    let wireguard = a3.known().nodes[h2.id.as_str()].wireguard.clone().unwrap();
    assert_eq!((wireguard.port, wireguard.keys[&1].as_str()), (51820, KEY));
    assert_eq!(a3.known().nodes[h3.id.as_str()].wireguard, None, "a node sets its own only");
    for (port, keys) in
        [(0, vec![(1, KEY)]), (51820, vec![]), (51820, vec![(1, "key")]), (70000, vec![(1, KEY)])]
    {
        let problem = set(&h2, port, &keys).await.unwrap_err();
        assert_eq!(problem.kind, ProblemKind::Usage, "{problem}");
    }
    let problem = h2.control().set_wireguard(SetWireguardRequest::default()).await.unwrap_err();
    assert_eq!(Problem::from(problem).kind, ProblemKind::Usage);
}

#[tokio::test]
async fn only_a_nodes_later_keys_wait_for_agents_that_prepare_their_kernels() {
    let cluster = Cluster::start().await;
    let preparing = cluster.join("h2").await;
    let behaviour = Behaviour { applies: false, ..Behaviour::default() };
    let agent = Agent::start(&preparing, behaviour).await;
    // Measure several, since the machine may be busy: if they had waited, all would have taken
    // longer.
    let mut took = Vec::new();
    let mut nodes = Vec::new();
    for (name, last) in [("h3", 'M'), ("h4", 'E'), ("h5", 'I')] {
        let node = cluster.join(name).await;
        // A key belongs to one node only.
        let key = KEY.replace("BM=", &format!("B{last}="));
        let begin = Instant::now();
        set(&node, 51820, &[(1, &key)]).await.unwrap();
        took.push(begin.elapsed());
        nodes.push(node);
    }
    assert!(took.iter().any(|&took| took < APPLIED), "{took:?}");

    let node = &nodes[0];
    let known = async {
        let knows = |known: &Known| known.nodes[node.id.as_str()].wireguard.as_ref().unwrap().keys.len() == 2;
        agent.until(knows).await.revision
    };
    let announced = set(node, 51820, &[(1, KEY), (2, OTHER_KEY)]);
    tokio::pin!(announced);
    let revision = tokio::select! {
        biased;
        result = &mut announced => panic!("answered before everybody knew: {result:?}"),
        revision = known => revision,
    };
    agent.applied(revision).await;
    announced.await.unwrap();
}

#[tokio::test]
async fn a_rotation_waits_for_the_nodes_that_have_keys() {
    let cluster = Cluster::start().await;
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let (a2, _a3) =
        (Agent::start(&h2, Behaviour::default()).await, Agent::start(&h3, Behaviour::default()).await);
    // No node has keys yet.
    let first = rotate(&cluster).await;
    assert_eq!((first.generation, first.pending), (1, vec![]));
    a2.until(|known| known.generation == 1).await;
    set(&h2, 51820, &[(4, KEY)]).await.unwrap();
    let rotation = rotate(&cluster);
    let follow = async {
        a2.until(|known| known.generation == 5).await;
        set(&h2, 51820, &[(4, KEY), (5, KEY)]).await.unwrap();
    };
    let (second, ()) = tokio::join!(rotation, follow);
    assert_eq!((second.generation, second.pending), (5, vec![]), "past every key that there is");
    // A node without a session is not waited for; it gets the request in its next session.
    drop(a2);
    let third = rotate(&cluster).await;
    assert_eq!((third.generation, third.pending), (6, vec!["h2".to_owned()]));
    let a2 = Agent::start(&h2, Behaviour::default()).await;
    a2.until(|known| known.generation == 6).await;
}
