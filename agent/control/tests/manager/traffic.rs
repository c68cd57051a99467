//! Which backends get traffic, as shown to people, with the reasons.

use std::time::Duration;

use mesh_proto::v1::{
    self, Availability, BackendStatus, CreateServiceRequest, UpdateNodeRequest, UpdateServiceRequest,
    WhenAllUnhealthy,
};

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, Member, PATIENCE, endpoint, network, service};

const FALLBACK: &str = "no backend passes its check; all are used";

/// Two hosts with one checked backend of service `web` each.
struct Scene {
    cluster: Cluster,
    own: Agent,
    members: [Member; 2],
    agents: [Option<Agent>; 2],
    backends: [u32; 2],
}

impl Scene {
    async fn set() -> Self {
        let cluster = Cluster::start().await;
        let app = cluster.create(network("app")).await.unwrap();
        let own = Agent::start(&cluster.own(), Behaviour::default()).await;
        let members = [cluster.join("h2").await, cluster.join("h3").await];
        let kind = Some(v1::health_check::Kind::Tcp(v1::TcpCheck { port: 80 }));
        let health = Some(v1::HealthCheck { kind, ..Default::default() });
        cluster.create_service(CreateServiceRequest { health, ..service("web", "app") }).await.unwrap();
        let mut agents = [None, None];
        let mut backends = [0; 2];
        for (n, name) in ["c2", "c3"].into_iter().enumerate() {
            let endpoints = vec![endpoint(&app, name, "")];
            agents[n] =
                Some(Agent::start(&members[n], Behaviour { endpoints, ..Behaviour::default() }).await);
            backends[n] = members[n].add("web", name).await.unwrap().backend.unwrap().id;
        }
        Self { cluster, own, members, agents, backends }
    }

    async fn healthy(&self, n: usize, healthy: bool) {
        self.agents[n].as_ref().unwrap().healthy(&[(self.backends[n], healthy)], false).await;
    }

    async fn set_availability(&self, n: usize, availability: Availability) {
        let node = self.members[n].id.to_string();
        let request = UpdateNodeRequest { node, availability: availability.into(), ..Default::default() };
        self.cluster.control().update_node(request).await.unwrap();
    }

    /// Waits until the backends' traffic is shown like this. Returns the status.
    async fn until(&self, expected: [(bool, &str); 2]) -> Vec<BackendStatus> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let request = v1::InspectServiceRequest { service: "web".into() };
            let shown = self.cluster.control().inspect_service(request).await.unwrap().into_inner().backends;
            let is = |(one, (receives, why)): (&BackendStatus, &(bool, &str))| {
                (one.receives_traffic, one.traffic_reason.as_str()) == (*receives, *why)
            };
            if shown.iter().zip(&expected).all(is) {
                return shown;
            }
            assert!(tokio::time::Instant::now() < deadline, "{shown:#?}, not {expected:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn each_backend_is_shown_with_whether_it_gets_traffic_and_why_not() {
    let mut scene = Scene::set().await;
    scene.until([(true, FALLBACK); 2]).await;
    scene.healthy(0, true).await;
    scene.until([(true, ""), (false, "not checked yet")]).await;
    scene.healthy(1, true).await;
    scene.until([(true, ""); 2]).await;

    scene.set_availability(0, Availability::Drain).await;
    let shown = scene.until([(false, "node drained"), (true, "")]).await;
    assert_eq!((shown[0].node_availability(), shown[0].health.as_str()), (Availability::Drain, "healthy"));
    scene.healthy(1, false).await;
    let shown = scene.until([(false, "node drained"), (true, FALLBACK)]).await;
    assert_eq!((shown[1].health.as_str(), shown[1].health_error.as_str()), ("unhealthy", "it answers 503"));
    scene.set_availability(0, Availability::Active).await;
    scene.until([(true, ""), (false, "unhealthy")]).await;

    // A host that is down: its last report is not shown as current.
    scene.healthy(1, true).await;
    scene.until([(true, ""); 2]).await;
    scene.agents[0] = None;
    let other = scene.agents[1].as_ref().unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let down = v1::NodeState::Down;
    loop {
        scene.own.probed(&scene.members[0], false).await;
        other.probed(&scene.members[0], false).await;
        let request = v1::InspectServiceRequest { service: "web".into() };
        let shown = scene.cluster.control().inspect_service(request).await.unwrap().into_inner().backends;
        if shown[0].node_state() == down {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{shown:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let shown = scene.until([(false, "node down"), (true, "")]).await;
    assert_eq!(shown[0].health, "unknown");
}

#[tokio::test]
async fn a_service_may_refuse_connections_while_none_of_its_backends_passes() {
    let scene = Scene::set().await;
    let choose = async |choice: WhenAllUnhealthy| {
        let request = UpdateServiceRequest {
            service: "web".into(),
            when_all_unhealthy: choice.into(),
            ..Default::default()
        };
        scene.cluster.control().update_service(request).await.unwrap().into_inner().service.unwrap()
    };
    let none = choose(WhenAllUnhealthy::None).await;
    assert_eq!(none.when_all_unhealthy(), WhenAllUnhealthy::None);
    scene.until([(false, "not checked yet"); 2]).await;
    scene.healthy(0, false).await;
    scene.until([(false, "unhealthy"), (false, "not checked yet")]).await;
    // An update of another property keeps it.
    assert_eq!(choose(WhenAllUnhealthy::Unspecified).await.when_all_unhealthy(), WhenAllUnhealthy::None);
    choose(WhenAllUnhealthy::All).await;
    scene.until([(true, FALLBACK); 2]).await;
}
