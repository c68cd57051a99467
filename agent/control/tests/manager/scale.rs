//! Many services: the cost of listing is linear, and the cost of changing one is constant.

use jiff::Timestamp;
use mesh_model::{Affinity, Backend, BackendId, BackendState, EndpointMode, Service};
use mesh_proto::v1::{CreateServiceRequest, UpdateServiceRequest};
use mesh_store::{Op, Txn};
use tokio::task::JoinSet;

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, network_of, service};
use crate::counting::Work;

const BACKENDS: u32 = 10;

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(n: u32) -> T {
    format!("{n:024x}").parse().unwrap()
}

/// Writes services with backends as the manager does.
async fn fill(cluster: &Cluster, network: &str, services: u32) {
    let network: mesh_model::NetworkId = network.parse().unwrap();
    let node = cluster.own().id;
    let key = |kind: &str, rest: String| format!("/{kind}/{rest}");
    for n in 0..services {
        let service = Service {
            id: id(n),
            name: format!("s{n}").parse().unwrap(),
            network: network.clone(),
            endpoint_mode: EndpointMode::Dnsrr,
            vip: None,
            vip6: None,
            ports: Vec::new(),
            affinity: Affinity::None,
            when_all_unhealthy: mesh_model::WhenAllUnhealthy::All,
            health: None,
            aliases: Vec::new(),
            labels: std::collections::BTreeMap::new(),
            created_at: Timestamp::UNIX_EPOCH,
        };
        let mut ops = vec![
            Op::put(key("service", service.id.to_string()), serde_json::to_vec(&service).unwrap()),
            Op::put(
                key("name/service", format!("{network}/{}", service.name)),
                serde_json::to_vec(&service.id).unwrap(),
            ),
        ];
        for b in 0..BACKENDS {
            let backend = Backend {
                id: BackendId::try_from(1 + n * BACKENDS + b).unwrap(),
                service: service.id.clone(),
                network: network.clone(),
                endpoint: id(n * BACKENDS + b),
                name: format!("c{b}").parse().unwrap(),
                node: node.clone(),
                ipv4: Some(std::net::Ipv4Addr::from_bits(0x0A00_0000 + n * BACKENDS + b)),
                ipv6: None,
                state: BackendState::Active,
                created_at: Timestamp::UNIX_EPOCH,
            };
            let place = format!("{}/{}", backend.service, backend.endpoint);
            ops.push(Op::put(key("backend", place), serde_json::to_vec(&backend).unwrap()));
        }
        cluster.store.txn(Txn::always(ops)).await.unwrap();
    }
}

/// Returns the store operations of updates of a service.
async fn updates(cluster: &Cluster, count: u32) -> Work {
    let before = cluster.work();
    for n in 0..count {
        let affinity = if n % 2 == 0 { Affinity::ClientIp } else { Affinity::None };
        let affinity = mesh_proto::v1::Affinity::from(affinity).into();
        let request = UpdateServiceRequest { service: "s0".into(), affinity, ..Default::default() };
        cluster.control().update_service(request).await.unwrap();
    }
    cluster.work().since(before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_update_costs_the_same_among_thousands_of_services() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network_of("app", "10.0.0.0/12")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let agent = Agent::start(&h2, Behaviour::default()).await;
    h2.lease(&app, "").await.unwrap();
    fill(&cluster, &app.id, 1).await;
    let few = updates(&cluster, 50).await;
    fill(&cluster, &app.id, 3000).await;
    agent.until(|known| known.backends.len() == 30_000).await;
    let many = updates(&cluster, 50).await;
    assert_eq!(many, few, "among 3000 services, and among one");

    let before = cluster.work();
    let services = cluster.services().await;
    assert_eq!(services.iter().map(|service| service.backends.len()).sum::<usize>(), 30_000);
    drop(agent);
    let agent = Agent::start(&h2, Behaviour::default()).await;
    assert_eq!((agent.known().services.len(), agent.known().backends.len()), (3000, 30_000));
    let new = CreateServiceRequest { ports: vec![crate::cluster::port(":80")], ..service("new", "app") };
    cluster.create_service(new).await.unwrap();
    let read = cluster.work().since(before).read;
    assert!(read < 2 * 33_000, "a list, a session and a service read {read} keys, of 33,000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_publishing_writes_no_more_to_disk_than_sequential() {
    const SERVICES: u32 = 250;
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::with_file(&directory.path().join("store.redb")).await;
    cluster.create(network_of("app", "10.1.0.0/16")).await.unwrap();
    let members = [cluster.own(), cluster.join("h2").await, cluster.join("h3").await];
    let mut agents = Vec::new();
    for member in &members {
        agents.push(Agent::start(member, Behaviour::default()).await);
    }
    let request = |n: u32| CreateServiceRequest {
        ports: vec![crate::cluster::port(":80")],
        ..service(&format!("s{n}"), "app")
    };
    let before = cluster.work();
    for n in 0..SERVICES {
        cluster.create_service(request(n)).await.unwrap();
    }
    let in_turn = cluster.work().since(before);
    let before = cluster.work();
    let mut tasks = JoinSet::new();
    for worker in 0..8 {
        let (mut control, requests) =
            (cluster.control(), (SERVICES..2 * SERVICES).filter(move |n| n % 8 == worker).map(request));
        let requests: Vec<_> = requests.collect();
        tasks.spawn(async move {
            for request in requests {
                control.create_service(request).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let at_once = cluster.work().since(before);
    assert_eq!(in_turn.transactions, 2 * SERVICES as usize, "one reads, one writes");
    assert_eq!(at_once, in_turn, "nobody has to try again");
}
