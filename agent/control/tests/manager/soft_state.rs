//! Data for agents that is in no record: health of backends, and endpoints for their names.

use mesh_proto::v1::{CreateServiceRequest, Endpoint, ReleaseLeaseRequest};

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, Member, endpoint, network, port, service};

fn having(endpoints: &[&Endpoint]) -> Behaviour {
    let endpoints = endpoints.iter().map(|&endpoint| endpoint.clone()).collect();
    Behaviour { endpoints, ..Behaviour::default() }
}

fn names(agent: &Agent) -> Vec<String> {
    let mut names: Vec<String> = agent.known().endpoints.into_values().map(|one| one.name).collect();
    names.sort();
    names
}

#[tokio::test]
async fn agents_receive_other_nodes_endpoints_in_their_networks() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let db = cluster.create(network("db")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    h2.lease(&app, "").await.unwrap();
    h2.lease(&db, "").await.unwrap();
    let (c1, d1) = (endpoint(&app, "c1", "10.64.0.2"), endpoint(&db, "d1", "10.64.16.2"));
    let a2 = Agent::start(&h2, having(&[&c1, &d1])).await;
    let a3 = Agent::start(&h3, Behaviour::default()).await;
    assert_eq!(names(&a3), [""; 0]);
    // With its first lease in a network, an agent receives all endpoints.
    let lease = h3.lease(&app, "").await.unwrap().lease.unwrap();
    a3.until(|known| known.endpoints.len() == 1).await;
    let told = a3.known().endpoints.remove(&c1.id).unwrap();
    assert_eq!((told.name, told.ipv4, told.node_id), ("c1".into(), "10.64.0.2".into(), h2.id.to_string()));
    // Then it receives changes, and nothing of other networks.
    let (c2, d2) = (endpoint(&app, "c2", "10.64.0.3"), endpoint(&db, "d2", "10.64.16.3"));
    a2.report(vec![c2.clone(), d2], vec![c1.id.clone()]).await;
    a3.until(|known| known.endpoints.contains_key(&c2.id) && known.endpoints.len() == 1).await;
    // In a new session it receives all again, but never its own.
    drop((a2, a3));
    let a3 = Agent::start(&h3, having(&[&endpoint(&app, "c3", "10.64.0.66")])).await;
    a3.until(|known| known.endpoints.len() == 1).await;
    let a2 = Agent::start(&h2, having(&[&c2])).await;
    a2.until(|known| known.endpoints.values().any(|one| one.name == "c3")).await;
    assert_eq!(names(&a2), ["c3"]);
    // Without the lease, it receives nothing more of the network.
    let (prefix, revision) = (lease.prefix, lease.revision);
    let request = ReleaseLeaseRequest { network: app.id.clone(), prefix, revision };
    h3.control().release_lease(request).await.unwrap();
    a3.until(|known| known.leases.is_empty()).await;
    assert_eq!(names(&a3), [""; 0]);
}

#[tokio::test]
async fn a_new_manager_deletes_nothing_of_nodes_that_have_not_reported() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let c1 = endpoint(&app, "c1", "");
    let a2 = Agent::start(&h2, having(&[&c1])).await;
    h3.lease(&app, "").await.unwrap();
    cluster.create_service(service("web", "app")).await.unwrap();
    let id = h2.add("web", "c1").await.unwrap().backend.unwrap().id;
    a2.healthy(&[(id, false)], true).await;
    let cluster = cluster.restart().await;
    let h3 = Member::connect(&cluster.address, h3.identity.clone()).await.unwrap();
    let a3 = Agent::start(&h3, Behaviour::default()).await;
    let known = a3.until(|known| known.unheard.0.is_some() && known.unheard.1.is_some()).await;
    let (health, endpoints) = (known.unheard.0.unwrap(), known.unheard.1.unwrap());
    assert!(health.contains(&h2.id.to_string()) && endpoints.contains(&h2.id.to_string()));
    assert!(!endpoints.contains(&h3.id.to_string()), "it has said what it has");
}

#[tokio::test]
async fn agents_receive_the_health_of_the_backends_that_they_know() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let (c1, c2) = (endpoint(&app, "c1", ""), endpoint(&app, "c2", ""));
    let a2 = Agent::start(&h2, having(&[&c1, &c2])).await;
    let a3 = Agent::start(&h3, Behaviour::default()).await;
    cluster
        .create_service(CreateServiceRequest { ports: vec![port("8080:80")], ..service("web", "app") })
        .await
        .unwrap();
    cluster.create_service(service("quiet", "app")).await.unwrap();
    let web = h2.add("web", "c1").await.unwrap().backend.unwrap().id;
    let quiet = h2.add("quiet", "c2").await.unwrap().backend.unwrap().id;
    a2.healthy(&[(web, false), (quiet, false)], true).await;
    a3.until(|known| known.health.get(&web) == Some(&false)).await;
    assert_eq!(a3.known().health.len(), 1, "it does not know the other");
    // A node reports only its own backends.
    a3.healthy(&[(web, true)], false).await;
    // It receives the health of backends that become known to it.
    h3.lease(&app, "").await.unwrap();
    a3.until(|known| known.health.get(&quiet) == Some(&false)).await;
    assert!(!a3.known().health[&web]);
    a2.healthy(&[(quiet, true)], false).await;
    a3.until(|known| known.health[&quiet]).await;
    // At the session's start all are sent, also to the owner.
    drop(a3);
    let a3 = Agent::start(&h3, Behaviour::default()).await;
    a3.until(|known| known.health == [(web, false), (quiet, true)].into()).await;
    a2.healthy(&[(quiet, true)], true).await;
    a3.until(|known| !known.health.contains_key(&web)).await;
}
