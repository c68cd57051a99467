//! Names that several objects share, and commands for managers only.

use mesh_control::connect;
use mesh_control::identity::tls;
use mesh_proto::v1::proposed_change::Kind;
use mesh_proto::v1::{self, CreateServiceRequest, Role, UpdateServiceRequest};
use mesh_proto::{Problem, ProblemKind};

use crate::agent::{Agent, Behaviour};
use crate::cluster::{Cluster, endpoint, network, service};

#[tokio::test]
async fn a_service_that_shares_a_name_is_created_with_a_warning() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let endpoints = vec![endpoint(&app, "web", "")];
    let _agent = Agent::start(&h2, Behaviour { endpoints, ..Behaviour::default() }).await;
    let create = async |name: &str, aliases: &[&str]| {
        let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        let request = CreateServiceRequest { aliases, ..service(name, "app") };
        let kind = Some(Kind::CreateService(request.clone()));
        let check = v1::CheckChangesRequest { changes: vec![v1::ProposedChange { kind }] };
        let checked = cluster.control().check_changes(check).await.unwrap().into_inner().warnings;
        let made = cluster.create_service(request).await.unwrap().warnings;
        assert_eq!(checked, made);
        made
    };
    let warnings = create("WEB", &[]).await;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("endpoint web of network app has the same name as service WEB"),
        "{warnings:?}"
    );
    assert!(create("db", &["store"]).await.is_empty());
    let warnings = create("cache", &["db", "c"]).await;
    assert!(warnings[0].contains("alias db of service cache is also a name of service db"), "{warnings:?}");
    let warnings = create("store", &[]).await;
    assert!(warnings[0].contains("name store of service store is also a name of service db"), "{warnings:?}");
    // Aliases may be shared, as in Compose.
    assert!(create("other", &["c"]).await.is_empty());
    let request = UpdateServiceRequest {
        service: "other".into(),
        replace_aliases: true,
        aliases: vec!["cache".into()],
        ..Default::default()
    };
    let warnings = cluster.control().update_service(request).await.unwrap().into_inner().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[tokio::test]
async fn a_backend_is_named_with_its_network_too() {
    let cluster = Cluster::start().await;
    let app = cluster.create(network("app")).await.unwrap();
    let back = cluster.create(network("back")).await.unwrap();
    let h2 = cluster.join("h2").await;
    let endpoints = vec![endpoint(&app, "c1", ""), endpoint(&back, "c1", "")];
    let _agent = Agent::start(&h2, Behaviour { endpoints, ..Behaviour::default() }).await;
    cluster.create_service(service("web", "app")).await.unwrap();
    let added = cluster.own().add("app/web", "APP/c1").await.unwrap().backend.unwrap();
    assert_eq!((added.name.as_str(), added.network.as_str()), ("c1", app.id.as_str()));
    assert_eq!(cluster.own().add("web", "back/c1").await.unwrap_err().kind, ProblemKind::Conflict);
    assert_eq!(cluster.own().add("web", "none/c1").await.unwrap_err().kind, ProblemKind::NotFound);
    cluster.own().remove("web", "app/c1").await.unwrap();
    assert!(cluster.services().await[0].backends.is_empty());
}

#[tokio::test]
async fn the_error_on_a_worker_names_the_command_and_the_managers() {
    let cluster = Cluster::start().await;
    let h2 = cluster.join("h2").await;
    let refused: Problem = h2.control().create_network(network("app")).await.unwrap_err().into();
    assert_eq!((refused.kind, refused.kind.exit_code()), (ProblemKind::NotManager, 6));
    assert_eq!(refused.message, "meshctl network create, on node h2, needs a manager: the node is a worker");
    assert_eq!(refused.hint.as_deref(), Some("run it on a manager: h1"));
    let request = v1::CheckChangesRequest::default();
    let refused: Problem = h2.control().check_changes(request).await.unwrap_err().into();
    assert!(refused.message.starts_with("meshctl apply, on node h2, needs"), "{refused}");
}

#[tokio::test]
async fn a_cluster_with_a_single_managers_store_accepts_no_second_manager() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::with_file(&directory.path().join("store.redb")).await;
    let request = v1::JoinTokenRequest { role: Role::Manager.into(), rotate: false };
    let refused: Problem = cluster.control().join_token(request).await.unwrap_err().into();
    assert!(refused.message.contains("supports one manager"), "{refused}");
    assert!(refused.hint.unwrap().contains("meshctl cluster join-token worker"));
    cluster.join("h2").await;
}

#[tokio::test]
async fn an_unknown_manager_name_fails_at_once_and_hints_name_the_port() {
    let cluster = Cluster::start().await;
    let config = || tls::client_config(&cluster.identity).unwrap();
    let unknown = connect("nosuchhost.invalid:7444", config()).await.unwrap_err();
    assert_eq!(unknown.kind, ProblemKind::Unreachable);
    assert!(
        unknown.message.contains("the manager's name nosuchhost.invalid cannot be resolved"),
        "{unknown}"
    );
    // Nothing listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let refused = connect(&address.to_string(), config()).await.unwrap_err();
    let port = format!("TCP port {} is open", address.port());
    assert!(refused.hint.as_deref().unwrap().contains(&port), "{refused:?}");
}
