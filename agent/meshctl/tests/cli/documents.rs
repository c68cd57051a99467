//! The documents against the program: the JSON shapes of the reference, and the example file.

use std::collections::BTreeSet;
use std::path::Path;

use mesh_proto::v1;
use serde_json::Value;

use crate::agent::{Agent, State, backend, cluster, endpoint, network, node, service};

/// An agent with one of everything.
fn agent() -> Agent {
    let mut app = network("aaa000000000000000000001", "app", 4096);
    app.subnets.truncate(1);
    let mut web = endpoint("eee000000000000000000001", "web", &app);
    web.dns = Some(v1::Dns::default());
    let request = v1::CreateServiceRequest {
        name: "web".into(),
        ports: vec![v1::PublishedPort {
            published: 8080,
            target: 80,
            protocol: v1::Protocol::Tcp.into(),
            mode: v1::PublishMode::Ingress.into(),
            host_ip: String::new(),
        }],
        health: Some(v1::HealthCheck {
            kind: Some(v1::health_check::Kind::Tcp(v1::TcpCheck { port: 80 })),
            interval_ms: 2000,
            retries: 3,
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut front = service("bbb000000000000000000001", &app, request);
    front.backends = vec![backend(2, "web", front.service.as_ref().unwrap())];
    let wireguard = v1::Wireguard { port: 51820, ..Default::default() };
    let status = v1::StatusResponse {
        membership: "member".into(),
        cluster: Some(cluster()),
        node: Some(node()),
        name_servers: vec![v1::NameServer::default()],
        wireguard_engine: "userspace".into(),
        wireguard_drops: vec![v1::WireguardDrops::default()],
        wireguard_peers: vec![v1::WireguardPeer { node_id: node().id, ..Default::default() }],
        connections: Some(v1::Connections { capacity: 1, networks: vec![v1::NetworkConnections::default()] }),
        counters: vec![v1::Counter::default()],
        ..Default::default()
    };
    Agent::start(State {
        status,
        networks: vec![app],
        endpoints: vec![web],
        services: vec![front],
        wireguard: Some(wireguard),
        ..State::default()
    })
}

/// Adds the paths of all keys, except inside those keys whose value the reference describes
/// elsewhere or whose keys the user chooses.
fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    const OPAQUE: [&str; 6] = ["subnets[].aux", "labels", "options", "endpoints", "cluster", "node"];
    match value {
        Value::Object(object) if !OPAQUE.contains(&path) => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                paths(value, &path, found);
            }
        }
        Value::Array(items) if items.first().is_some_and(Value::is_object) && !OPAQUE.contains(&path) => {
            for item in items {
                paths(item, &format!("{path}[]"), found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn the_reference_has_every_key_of_the_json_output() {
    let page = include_str!("../../../../docs/reference/json.md");
    let agent = agent();
    for (section, command) in [
        ("Network", "network inspect app"),
        ("Endpoint", "endpoint inspect web"),
        ("Service", "service inspect web"),
        ("Backend", "service ps web --format json"),
        ("Node", "node inspect h1"),
        ("Status", "status --format json"),
        ("Cluster status", "cluster status --format json"),
    ] {
        let (_, text) = page.split_once(&format!("## {section}\n")).unwrap();
        let (text, _) = text.split_once("\n## ").unwrap();
        let documented: BTreeSet<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(key, _)| key.to_owned())
            .collect();
        let output = agent.run(command).json();
        let mut printed = BTreeSet::new();
        paths(output.get(0).unwrap_or(&output), "", &mut printed);
        assert_eq!(documented, printed, "{section}");
    }
}

#[test]
fn the_example_compose_file_is_applied_without_warnings() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/compose.yaml");
    let agent = Agent::start(State::default());
    let mut command = agent.command("apply --dry-run -f");
    let output = command.arg(&file).env_remove("COMPOSE_PROFILES").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    for line in
        ["would create network front", "would create service front/web", "would create service back/db"]
    {
        assert!(out.contains(line), "{out}");
    }
    assert_eq!(err.trim(), "ignored: environment, image", "only keys of containers are ignored");
    agent.services.with(|state| {
        assert!(state.created.is_none() && state.asked.is_empty(), "a dry run changes nothing");
    });
}
