//! Tokens, certificates and TLS.

use std::time::Duration;

use mesh_control::{JoinToken, join};
use mesh_proto::v1::{
    GetClusterRequest, JoinTokenRequest, ListNodesRequest, RemoveNodeRequest, RenewCertificateRequest, Role,
};
use mesh_proto::{Problem, ProblemKind};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::cluster::{Cluster, Member};

#[tokio::test]
async fn a_host_joins_with_a_token_and_is_listed() {
    let cluster = Cluster::start().await;
    let worker = cluster.join("h2").await;
    assert_eq!(worker.identity.peer_identity().unwrap().role, mesh_model::Role::Worker);
    let nodes = worker.control().list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes;
    let names: Vec<_> = nodes.iter().map(|status| status.node.clone().unwrap().name).collect();
    assert_eq!(names, ["h1", "h2"]);
}

#[tokio::test]
async fn a_manager_token_makes_a_manager() {
    let cluster = Cluster::start().await;
    let manager = cluster.join_as("h2", Role::Manager).await;
    let request = JoinTokenRequest { role: Role::Worker.into(), rotate: false };
    assert!(manager.control().join_token(request).await.is_ok());
}

#[tokio::test]
async fn a_foreign_token_is_distinguished_from_a_wrong_one() {
    let (cluster, other) = (Cluster::start().await, Cluster::start().await);
    let foreign = other.token(Role::Worker).await;
    let error = join(&cluster.address, &foreign, cluster.parameters("h2")).await.unwrap_err();
    assert_eq!(
        error.message,
        format!("the manager at {} has a different CA than this token", cluster.address)
    );

    let mut wrong: JoinToken = cluster.token(Role::Worker).await.parse().unwrap();
    wrong.secret = other.token(Role::Worker).await.parse::<JoinToken>().unwrap().secret;
    let error = join(&cluster.address, &wrong.to_string(), cluster.parameters("h2")).await.unwrap_err();
    assert_eq!(error.message, "the token was rotated or mistyped");
}

#[tokio::test]
async fn a_rotated_token_is_refused_and_the_new_one_works() {
    let cluster = Cluster::start().await;
    let old = cluster.token(Role::Worker).await;
    let request = JoinTokenRequest { role: Role::Worker.into(), rotate: true };
    let new = cluster.control().join_token(request).await.unwrap().into_inner().token;
    assert_ne!(old, new);
    assert_eq!(cluster.token(Role::Worker).await, new);
    let error = join(&cluster.address, &old, cluster.parameters("h2")).await.unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ProblemKind::Denied, "the token was rotated or mistyped")
    );
    join(&cluster.address, &new, cluster.parameters("h2")).await.unwrap();
}

#[tokio::test]
async fn an_address_without_a_manager_is_unreachable() {
    let cluster = Cluster::start().await;
    let token = cluster.token(Role::Worker).await;
    let error = join("127.0.0.1:1", &token, cluster.parameters("h2")).await.unwrap_err();
    assert_eq!(error.kind, ProblemKind::Unreachable);
    assert!(error.message.contains("127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn a_taken_node_name_or_address_is_a_conflict_that_names_the_other_side() {
    let cluster = Cluster::start().await;
    let token = cluster.token(Role::Worker).await;
    let error = join(&cluster.address, &token, cluster.parameters("h1")).await.unwrap_err();
    assert_eq!(error.kind, ProblemKind::Conflict);
    assert!(error.message.contains("h1") && error.message.contains("192.168.77.11"), "{error}");
    assert!(error.hint.unwrap().contains("--node-name"));

    let mut twin = cluster.parameters("h2");
    twin.data_path_addr = "192.168.77.11".parse().unwrap();
    let error = join(&cluster.address, &token, twin).await.unwrap_err();
    assert_eq!(error.message, "data-path address 192.168.77.11 belongs to node h1");
}

#[tokio::test]
async fn a_host_that_kept_its_state_joins_again_as_the_same_node() {
    let cluster = Cluster::start().await;
    let before = cluster.join("h2").await;
    let mut parameters = cluster.parameters("h2-renamed");
    parameters.previous = Some(before.identity.clone());
    let token = cluster.token(Role::Worker).await;
    let joined = join(&cluster.address, &token, parameters).await.unwrap();
    assert_eq!(joined.node.id, before.id);
    // The old name is free again.
    cluster.join("h2").await;
}

#[tokio::test]
async fn a_removed_host_joins_again_as_a_new_node() {
    let cluster = Cluster::start().await;
    let before = cluster.join("h2").await;
    remove(&cluster, "h2").await.unwrap();
    let mut parameters = cluster.parameters("h2");
    parameters.previous = Some(before.identity.clone());
    let joined = join(&cluster.address, &cluster.token(Role::Worker).await, parameters).await.unwrap();
    assert_ne!(joined.node.id, before.id);
    let error = before.control().get_cluster(GetClusterRequest {}).await.unwrap_err();
    assert!(error.message().contains("was removed"), "{error}");
}

#[tokio::test]
async fn a_removed_node_is_refused_everywhere() {
    let cluster = Cluster::start().await;
    let worker = cluster.join("h2").await;
    remove(&cluster, "h2").await.unwrap();
    // On the existing connection and on a new one.
    let again = Member::connect(&cluster.address, worker.identity.clone()).await.unwrap();
    for member in [&worker, &again] {
        let problem = Problem::from(member.control().list_nodes(ListNodesRequest {}).await.unwrap_err());
        assert_eq!(problem.kind, ProblemKind::Denied);
        assert!(problem.message.contains("was removed"), "{problem}");
    }
}

#[tokio::test]
async fn a_node_renews_its_certificate_and_keeps_its_identity() {
    let cluster = Cluster::start().await;
    let worker = cluster.join("h2").await;
    let key = mesh_control::NodeKey::generate().unwrap();
    let request = RenewCertificateRequest { csr_pem: key.csr_pem.clone() };
    let renewed = worker.control().renew_certificate(request).await.unwrap().into_inner().certificate_pem;
    let identity = key.into_identity(renewed, worker.identity.ca_pem.clone());
    assert!(identity.renew_at().unwrap() < identity.expires_at().unwrap());
    let member = Member::connect(&cluster.address, identity).await.unwrap();
    assert_eq!(member.id, worker.id);
    assert!(member.control().get_cluster(GetClusterRequest {}).await.is_ok());
}

#[tokio::test]
async fn a_workers_certificate_is_not_accepted_as_a_managers() {
    let cluster = Cluster::start().await;
    let worker = cluster.join("h2").await;
    // A server with the worker's certificate: members must not accept it.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = mesh_control::identity::tls::server_config(&worker.identity).unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = tokio_rustls::TlsAcceptor::from(config).accept(stream).await;
    });
    let Err(error) = Member::connect(&address, worker.identity.clone()).await else {
        panic!("a worker passed for a manager");
    };
    assert_eq!(error.kind, ProblemKind::Denied);
    server.await.unwrap();
}

#[tokio::test]
async fn silent_connections_do_not_delay_others() {
    let cluster = Cluster::start().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(&cluster.address).await.unwrap());
    }
    tokio::time::timeout(Duration::from_secs(3), cluster.join("h2")).await.expect("the join was held up");
    // They are closed in the end.
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(10), silent[0].read(&mut byte)).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
}

#[tokio::test]
async fn an_identity_is_unchanged_after_saving_and_loading() {
    let cluster = Cluster::start().await;
    let worker = cluster.join("h2").await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.pem");
    worker.identity.save(&path).unwrap();
    worker.identity.save(&path).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let loaded = mesh_control::NodeIdentity::load(&path).unwrap();
    assert_eq!(loaded.peer_identity().unwrap(), worker.identity.peer_identity().unwrap());
    Member::connect(&cluster.address, loaded).await.unwrap();
}

async fn remove(cluster: &Cluster, node: &str) -> Result<(), Problem> {
    cluster.control().remove_node(RemoveNodeRequest { node: node.into(), force: true }).await?;
    Ok(())
}

/// The manager's clock was far ahead or behind when it issued the certificate.
#[tokio::test]
async fn a_certificate_issued_with_a_wrong_clock_is_valid_and_is_replaced() {
    use mesh_control::{CertificateAuthority, NodeKey};
    let directory = tempfile::tempdir().unwrap();
    let authority = CertificateAuthority::create(directory.path(), "c").unwrap();
    let day = Duration::from_hours(24);
    let validity = mesh_control::identity::NODE_VALIDITY;
    let now = std::time::SystemTime::now();
    let node = mesh_model::NodeId::random().unwrap();
    let made_at = |clock| {
        let key = NodeKey::generate().unwrap();
        let made =
            authority.issue_at(clock, &key.csr_pem, &node, mesh_model::Role::Manager, validity).unwrap();
        key.into_identity(made, authority.cert_pem().to_owned())
    };
    let at = |clock: std::time::SystemTime| jiff::Timestamp::try_from(clock).unwrap();
    for (made, is_valid, is_due) in [
        (now, true, false),
        (now + day * 70, true, true),
        (now + day * 3650, true, true),
        (now - day * 29, true, false),
        (now - day * 70, true, true),
        (now - day * 200, false, true),
    ] {
        let identity = made_at(made);
        assert_eq!(identity.is_valid(at(now)).unwrap(), is_valid, "made at {made:?}");
        assert_eq!(identity.is_due(at(now)).unwrap(), is_due, "made at {made:?}");
    }
    // A host whose clock was reset accepts it.
    assert!(made_at(now).is_valid(jiff::Timestamp::from_second(60).unwrap()).unwrap());
}

/// TLS itself uses the same validity.
#[tokio::test]
async fn a_manager_that_renewed_its_certificate_with_a_wrong_clock_is_trusted() {
    use mesh_control::CertificateAuthority;
    let cluster = Cluster::start().await;
    let worker = cluster.join("h2").await;
    let authority = CertificateAuthority::load(cluster.directory(), &cluster.manager.cluster().id).unwrap();
    let key = mesh_control::NodeKey::generate().unwrap();
    let (ahead, validity) = (Duration::from_hours(70 * 24), mesh_control::identity::NODE_VALIDITY);
    let clock = std::time::SystemTime::now() + ahead;
    let own = cluster.manager.node_id();
    let made = authority.issue_at(clock, &key.csr_pem, own, mesh_model::Role::Manager, validity).unwrap();
    cluster.manager.set_identity(&key.into_identity(made, authority.cert_pem().to_owned())).unwrap();
    Member::connect(&cluster.address, worker.identity.clone()).await.unwrap();
    cluster.join("h3").await;
}

#[tokio::test]
async fn a_node_with_a_wrong_clock_is_reported() {
    use crate::agent::{Agent, Behaviour};
    let cluster = Cluster::start().await;
    let (h2, h3) = (cluster.join("h2").await, cluster.join("h3").await);
    let ahead = 70 * 86_400_000;
    let _wrong = Agent::start(&h2, Behaviour { clock_ahead_ms: ahead, ..Behaviour::default() }).await;
    let _right = Agent::start(&h3, Behaviour::default()).await;
    let deadline = tokio::time::Instant::now() + crate::cluster::PATIENCE;
    while cluster.manager.problems() != ["the clock of node h2 is 70 days ahead of this manager's"] {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", cluster.manager.problems());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_thousand_idle_connections_without_a_certificate_exclude_no_member() {
    let cluster = Cluster::start().await;
    let worker = cluster.join("h2").await;
    let token = cluster.token(Role::Worker).await;
    let ca = token.parse::<JoinToken>().unwrap().ca;
    let config = mesh_control::identity::tls::join_client_config(ca, None).unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut idle = Vec::new();
    for _ in 0..1000 {
        let stream = TcpStream::connect(&cluster.address).await.unwrap();
        let name = "mesh-manager".try_into().unwrap();
        // A connection that is closed for a newer one may be closed in its handshake.
        if let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_secs(20), connector.connect(name, stream)).await
        {
            idle.push(stream);
        }
    }
    // A member continues, on its connection and on a new one, and a host joins.
    assert!(worker.control().get_cluster(GetClusterRequest {}).await.is_ok());
    let again = Member::connect(&cluster.address, worker.identity.clone()).await.unwrap();
    assert!(again.control().get_cluster(GetClusterRequest {}).await.is_ok());
    cluster.join("h3").await;
    // The first ones were closed long ago.
    let mut open = 0;
    for stream in &mut idle {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(1), async {
            // HTTP/2 begins with the server's settings.
            while matches!(stream.read(&mut byte).await, Ok(1..)) {}
        });
        open += usize::from(read.await.is_err());
    }
    assert!(open <= 64, "{open} connections of one address without a certificate are held");
}

#[tokio::test]
async fn wrong_tokens_are_counted_shown_and_limited() {
    let cluster = Cluster::start().await;
    let mut wrong: JoinToken = cluster.token(Role::Worker).await.parse().unwrap();
    let other = Cluster::start().await;
    wrong.secret = other.token(Role::Worker).await.parse::<JoinToken>().unwrap().secret;
    let mut messages = Vec::new();
    for _ in 0..14 {
        let error = join(&cluster.address, &wrong.to_string(), cluster.parameters("h2")).await.unwrap_err();
        assert_eq!(error.kind, ProblemKind::Denied);
        messages.push(error.message);
    }
    assert_eq!(messages[0], "the token was rotated or mistyped");
    assert!(messages[13].starts_with("too many joins with a wrong token"), "{messages:?}");
    assert_eq!(cluster.manager.refused_joins(), 14);
    let problems = cluster.manager.problems();
    assert!(problems.iter().any(|line| line.contains("127.0.0.1")), "{problems:?}");
}
