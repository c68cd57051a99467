//! Checking changes without making any.

use std::collections::BTreeSet;

use mesh_proto::v1::proposed_change::Kind;
use mesh_proto::v1::{
    self, ChangeFault, CheckChangesRequest, CreateServiceRequest, ProposedChange, RemoveNetworkRequest,
    RemoveServiceRequest, UpdateServiceRequest,
};

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, endpoint, network, network_of, port, service};

async fn check(cluster: &Cluster, changes: Vec<Kind>) -> Vec<ChangeFault> {
    let changes = changes.into_iter().map(|kind| ProposedChange { kind: Some(kind) }).collect();
    let answer = cluster.control().check_changes(CheckChangesRequest { changes }).await.unwrap();
    answer.into_inner().faults
}

fn publishing(name: &str, network: &str, ports: &[&str]) -> CreateServiceRequest {
    CreateServiceRequest { ports: ports.iter().map(|text| port(text)).collect(), ..service(name, network) }
}

fn remove_network(name: &str) -> Kind {
    Kind::RemoveNetwork(RemoveNetworkRequest { network: name.into() })
}

fn remove_service(name: &str) -> Kind {
    Kind::RemoveService(RemoveServiceRequest { service: name.into() })
}

/// Asserts which changes have faults, with the expected messages.
fn assert_faults(faults: &[ChangeFault], expected: &[(u32, &str, &str)]) {
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    for (fault, (change, kind, message)) in faults.iter().zip(expected) {
        assert_eq!((fault.change, fault.kind.as_str()), (*change, *kind), "{fault:?}");
        assert!(fault.message.contains(message), "{fault:?}");
    }
}

#[tokio::test]
async fn every_change_that_would_fail_is_reported_and_nothing_is_changed() {
    let cluster = Cluster::start().await;
    let old = cluster.create(network_of("old", "10.1.0.0/24")).await.unwrap();
    cluster.create_service(publishing("web", "old", &["8080:80"])).await.unwrap();
    let h2 = cluster.join("h2").await;
    let used_ports = Some(BTreeSet::from([9000, 9001, 9003]));
    let endpoints = vec![endpoint(&old, "c1", "10.1.0.2")];
    h2.lease(&old, "").await.unwrap();
    let routes = vec!["172.20.0.0/16".into()];
    let _h2 = Agent::start(&h2, Behaviour { endpoints, routes, used_ports, ..Behaviour::default() }).await;
    let before =
        (cluster.services().await, cluster.store.range(mesh_store::KeyRange::all(), None, None).await);
    let faults = check(
        &cluster,
        vec![
            Kind::CreateNetwork(network_of("a", "10.1.0.128/25")),
            Kind::CreateService(service("lost", "a")),
            Kind::CreateNetwork(network_of("b", "172.20.3.0/24")),
            Kind::CreateNetwork(network("OLD")),
            Kind::CreateService(publishing("api", "old", &["8080:81"])),
            Kind::CreateService(publishing("logs", "old", &["9000:1", "9001:2", "9002:3", "9003:4"])),
            Kind::CreateService(service("WEB", "old")),
            Kind::CreateService(CreateServiceRequest { vip: "10.9.9.9".into(), ..service("vip", "old") }),
            remove_network("old"),
            Kind::UpdateService(UpdateServiceRequest {
                service: "old/web".into(),
                add_ports: vec![port("9003:4")],
                ..Default::default()
            }),
            Kind::CreateService(service("fine", "old")),
            Kind::CreateService(service("fine", "old")),
        ],
    )
    .await;
    assert_faults(
        &faults,
        &[
            (0, "conflict", "subnet 10.1.0.128/25 overlaps subnet 10.1.0.0/24 of network old"),
            (2, "conflict", "overlaps route 172.20.0.0/16 of node h2"),
            (3, "conflict", "network old exists already"),
            (4, "conflict", "port 8080/tcp is published by service web of network old already"),
            (5, "conflict", "ports 9000-9001/tcp, 9003/tcp are in use on node h2"),
            (6, "conflict", "service web exists on network old already"),
            (7, "usage", "virtual address 10.9.9.9 is in no subnet of network old"),
            (8, "conflict", "network old is in use by c1 on h2"),
            (9, "conflict", "port 9003/tcp is published by service logs"),
            (11, "conflict", "service fine exists on network old already"),
        ],
    );
    let after =
        (cluster.services().await, cluster.store.range(mesh_store::KeyRange::all(), None, None).await);
    assert_eq!(before.0, after.0);
    assert_eq!(before.1.unwrap().kvs, after.1.unwrap().kvs);
}

#[tokio::test]
async fn values_that_a_change_releases_are_free_for_later_changes() {
    let cluster = Cluster::start().await;
    cluster.create(network_of("old", "10.1.0.0/24")).await.unwrap();
    cluster.create_service(publishing("web", "old", &["8080:80"])).await.unwrap();
    let changes = || {
        vec![
            remove_service("old/web"),
            remove_network("old"),
            Kind::CreateNetwork(network_of("new", "10.1.0.0/24")),
            Kind::CreateService(publishing("web", "new", &["8080:80", ":81"])),
            Kind::UpdateService(UpdateServiceRequest {
                service: "new/web".into(),
                remove_ports: vec![v1::PublishedPort { published: 8080, ..Default::default() }],
                ..Default::default()
            }),
            Kind::CreateService(publishing("api", "new", &["8080:80"])),
        ]
    };
    assert_faults(&check(&cluster, changes()).await, &[]);
    let without_the_first = changes().split_off(1);
    let faults = check(&cluster, without_the_first).await;
    assert!(faults[0].message.contains("network old is in use by service web"), "{faults:?}");
}
