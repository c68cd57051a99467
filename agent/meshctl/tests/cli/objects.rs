//! What is printed: the JSON shapes are a contract, the tables are for people.

use mesh_proto::v1;
use serde_json::{Value, json};

use crate::agent::{Agent, NODE, State, cluster, endpoint, network, node};

const APP: &str = "aaa000000000000000000001";
const DB: &str = "aab000000000000000000002";
const WEB: &str = "eee000000000000000000001";

fn agent() -> Agent {
    let app = network(APP, "app", 4096);
    let db = v1::Network { mtu: Some(1300), internal: true, labels: [].into(), ..network(DB, "db", 4097) };
    let web = endpoint(WEB, "web", &app);
    Agent::start(State { networks: vec![db, app], endpoints: vec![web], ..State::default() })
}

fn web_json() -> Value {
    json!({
        "id": WEB, "name": "web", "network": "app", "node": "h1", "ipv4": "10.64.0.2", "ipv6": null,
        "mac": "02:42:0a:40:00:02", "ifname": "eth0", "service": null, "aliases": ["www"], "health": null, "dns": null, "owner": null,
        "created_at": "2026-11-21T10:00:01Z",
    })
}

fn app_json() -> Value {
    json!({
        "id": APP, "name": "app", "driver": "overlay", "vni": 4096,
        "subnets": [{
            "subnet": "10.64.0.0/20", "gateway": "10.64.0.1", "ip_range": null, "aux": {"printer": "10.64.0.9"},
        }],
        "mtu": 1450, "encrypted": false, "internal": false, "attachable": true, "host_access": "dns",
        "metadata": "block", "labels": {"tier": "web"}, "options": {}, "created_at": "2026-11-21T10:00:00Z", "endpoints": [web_json()],
    })
}

#[test]
fn networks_are_listed_by_name_with_their_endpoints() {
    let listed = agent().run("network ls --format json").json();
    assert_eq!(listed[0], app_json());
    assert_eq!(listed[1]["name"], "db");
    assert_eq!(listed[1]["mtu"], 1300, "its own where this host has none to tell");
    assert_eq!(listed[1]["endpoints"], json!([]));
}

#[test]
fn an_inspected_network_has_this_hosts_counters() {
    let mut expected = app_json();
    expected["counters"] = json!([{"reason": "spoofed", "packets": 3, "bytes": 180}]);
    assert_eq!(agent().run("network inspect app --format json").json(), expected);
    assert_eq!(agent().run("network inspect app").json(), expected, "JSON is the default, as with Docker");
}

#[test]
fn several_inspected_names_make_an_array_and_one_an_object() {
    let agent = agent();
    let several = agent.run("network inspect app db").json();
    assert_eq!((several[0]["name"].clone(), several[1]["name"].clone()), (json!("app"), json!("db")));
    assert_eq!(agent.run("endpoint inspect web").json(), web_json());
    assert_eq!(agent.run("endpoint inspect web eee").json(), json!([web_json(), web_json()]));
}

#[test]
fn an_endpoint_that_is_not_found_may_be_where_the_manager_has_not_heard_of() {
    let agent = agent();
    let why = agent.run("endpoint inspect nobody");
    assert!(why.code == 3 && !why.err.contains("h3"), "{why:?}");
    agent.services.with(|state| state.unheard = vec!["h3".into()]);
    let why = agent.run("endpoint inspect nobody");
    assert!(why.code == 3 && why.err.contains("has no report yet of the endpoints on h3"), "{why:?}");
}

#[test]
fn lists_are_filtered_by_every_documented_key() {
    let agent = agent();
    for (filters, names) in [
        ("", &["app", "db"][..]),
        ("--filter label=tier=web", &["app"]),
        ("--filter name=d", &["db"]),
        ("--filter id=aab --filter id=aaa", &["app", "db"]),
        ("--filter vni=4096 --filter name=db", &[]),
    ] {
        let listed = agent.run(&format!("network ls --format json {filters}")).json();
        let found: Vec<_> = listed.as_array().unwrap().iter().map(|network| &network["name"]).collect();
        assert_eq!(found, names, "{filters}");
    }
    assert_eq!(agent.run("node ls -q --filter state=down").text(), "111111111111111111111111\n");
    assert_eq!(agent.run("endpoint ls -q --filter network=db").text(), "");
    assert_eq!(agent.run("endpoint ls -q --filter network=app --filter node=h1").text(), format!("{WEB}\n"));
}

#[test]
fn quiet_lists_are_ids_a_line_each_or_an_array() {
    assert_eq!(agent().run("network ls -q").text(), format!("{APP}\n{DB}\n"));
    assert_eq!(agent().run("network ls -q --format json").json(), json!([APP, DB]));
}

#[test]
fn tables_have_upper_case_headers_and_no_borders() {
    assert_eq!(
        agent().run("network ls").text(),
        "NETWORK ID     NAME   DRIVER    VNI    SUBNETS        FLAGS\n\
         aaa000000000   app    overlay   4096   10.64.0.0/20   -\n\
         aab000000000   db     overlay   4097   10.64.0.0/20   internal\n"
    );
    assert_eq!(
        agent().run("endpoint ls").text(),
        "ENDPOINT ID    NAME   NETWORK   NODE   IPV4        IPV6   INTERFACE\n\
         eee000000000   web    app       h1     10.64.0.2   -      eth0\n"
    );
    let nodes = agent().run("node ls").text();
    assert_eq!(nodes.lines().next().unwrap().split_whitespace().next(), Some("ID"));
    assert!(nodes.contains("manager (leader)") && nodes.contains("h2 (encrypted)"), "{nodes}");
    let inspected = agent().run("network inspect app --format table").text();
    assert!(inspected.contains("MTU:          1450\n") && inspected.contains("spoofed"), "{inspected}");
}

#[test]
fn nodes_have_their_state_and_null_for_never_seen() {
    let listed = agent().run("node ls --format json").json();
    let first = json!({
        "id": NODE, "name": "h1", "role": "manager", "availability": "active", "state": "ready",
        "advertise_addr": "192.0.2.11:7377", "data_path_addr": "192.0.2.11",
        "host_addrs": ["192.0.2.11", "198.51.100.11"], "version": "0.1.0", "leader": true,
        "last_seen": "2026-11-21T10:00:02Z", "unreachable_from": [{"node": "h2", "encrypted": true}],
    });
    assert_eq!(listed[0], first);
    assert_eq!((&listed[1]["state"], &listed[1]["last_seen"]), (&json!("down"), &Value::Null));
    let mut inspected = first;
    inspected["wireguard"] = Value::Null;
    assert_eq!(agent().run("node inspect h1").json(), inspected);
    assert_eq!(agent().run("node rm h1").text(), "h1\n");
}

fn member_status() -> v1::StatusResponse {
    let counter = |vni, network: &str, reason: &str| v1::Counter {
        vni,
        reason: reason.into(),
        packets: 2,
        bytes: 120,
        network: network.into(),
    };
    let connections = |vni, network: &str, entries| v1::NetworkConnections {
        vni,
        network: network.into(),
        entries,
        forgotten: 0,
    };
    v1::StatusResponse {
        version: "0.1.0".into(),
        membership: "member".into(),
        cluster: Some(cluster()),
        node: Some(node()),
        manager: "192.0.2.11:7377".into(),
        revision: 9,
        applied_revision: 8,
        encapsulation: "direct".into(),
        encapsulation_reason: "the kernel has all it takes".into(),
        xdp: "off".into(),
        xdp_reason: "eth0 is no network card".into(),
        endpoints: 1,
        networks: 2,
        counters: vec![counter(0, "", "not_a_member"), counter(4096, "app", "spoofed")],
        connections: Some(v1::Connections {
            capacity: 131_072,
            networks: vec![connections(0, "", 2), connections(4096, "app", 10)],
        }),
        problems: vec!["mesh0, cannot set MTU: busy".into()],
        resident_bytes: 20 << 20,
        data_path_interface: "eth0".into(),
        data_path_mtu: 1500,
        wireguard_engine: "userspace".into(),
        wireguard_engine_reason: "the kernel has no WireGuard".into(),
        wireguard_drops: vec![v1::WireguardDrops { reason: "replayed".into(), packets: 3 }],
        ..v1::StatusResponse::default()
    }
}

#[test]
fn status_tells_everything_of_a_member() {
    let agent = agent();
    agent.services.with(|state| state.status = member_status());
    let cluster = json!({
        "id": "fedcba987654321001234567", "data_path_port": 4789, "default_addr_pools": ["10.64.0.0/10"],
        "default_addr_pool_mask_length": 20, "ipv6_pool": "fd00:1:2::/48", "dsr": false, "created_at": "2026-11-21T09:00:00Z",
    });
    let member = json!({
        "id": NODE, "name": "h1", "role": "manager", "availability": "active",
        "advertise_addr": "192.0.2.11:7377", "data_path_addr": "192.0.2.11", "data_path_mtu": 1500,
        "version": "0.1.0", "created_at": "2026-11-21T09:00:00Z",
    });
    let expected = json!({
        "version": "0.1.0", "membership": "member", "cluster": cluster, "node": member,
        "manager": "192.0.2.11:7377", "revision": 9, "applied_revision": 8,
        "encapsulation": {"mode": "direct", "reason": "the kernel has all it takes"},
        "xdp": {"mode": "off", "reason": "eth0 is no network card"},
        "endpoints": 1, "networks": 2, "services": 0, "name_servers": [],
        "wireguard": {
            "engine": "userspace",
            "reason": "the kernel has no WireGuard",
            "drops": [{"reason": "replayed", "packets": 3}],
        },
        "connections": {"capacity": 131_072, "networks": [
            {"vni": 0, "network": null, "entries": 2}, {"vni": 4096, "network": "app", "entries": 10},
        ]},
        "counters": [
            {"vni": 0, "network": null, "reason": "not_a_member", "packets": 2, "bytes": 120},
            {"vni": 4096, "network": "app", "reason": "spoofed", "packets": 2, "bytes": 120},
        ],
        "problems": ["mesh0, cannot set MTU: busy"], "resident_bytes": 20 << 20,
        "data_path": {"interface": "eth0", "address": "192.0.2.11", "mtu": 1500},
    });
    assert_eq!(agent.run("status --format json").json(), expected);
    let text = agent.run("status").text();
    assert!(text.contains("20.0 MiB") && text.contains("mesh0, cannot set MTU: busy"), "{text}");
    assert!(text.contains("userspace (the kernel has no WireGuard)") && text.contains("replayed"), "{text}");
    assert!(text.contains("12 of 131072 entries: published ports 2, app 10"), "{text}");
}

#[test]
fn status_of_a_host_in_no_cluster_is_mostly_null() {
    let agent = agent();
    agent.services.with(|state| state.status.membership = "none".into());
    let status = agent.run("status --format json").json();
    assert_eq!(status["membership"], "none");
    assert_eq!(
        (&status["cluster"], &status["node"], &status["manager"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(status["encapsulation"], json!({"mode": null, "reason": null}));
    assert_eq!(status["xdp"], json!({"mode": null, "reason": null}));
    assert_eq!(status["wireguard"], Value::Null);
    assert_eq!(status["data_path"], json!({"interface": null, "address": null, "mtu": null}));
    assert!(agent.run("status").text().contains("Membership:      none"));
    let cluster = agent.run("cluster status");
    assert_eq!(cluster.code, 4);
    assert!(cluster.err.contains("is not in a cluster"), "{}", cluster.err);
}

#[test]
fn metrics_are_printed_as_the_agent_writes_them() {
    let agent = agent();
    for line in ["metrics", "metrics --format json"] {
        assert_eq!(agent.run(line).text(), "# EOF\n");
    }
}

#[test]
fn status_does_not_need_a_manager() {
    let agent = agent();
    agent.services.with(|state| {
        state.status = member_status();
        state.managers_away = true;
    });
    let status = agent.run("status --format json").json();
    assert_eq!(status["counters"][1]["network"], "app");

    let cluster = agent.run("cluster status --format json");
    assert_eq!(cluster.code, 5);
    let known: Value = serde_json::from_str(&cluster.out).unwrap();
    assert_eq!((&known["nodes"], &known["node"]["name"]), (&Value::Null, &json!("h1")));
}

#[test]
fn cluster_status_counts_the_nodes() {
    let agent = agent();
    agent.services.with(|state| state.status = member_status());
    let status = agent.run("cluster status --format json").json();
    assert_eq!(status["nodes"], json!({"total": 2, "managers": 1, "ready": 1, "unknown": 0, "down": 1}));
    assert_eq!(status["id"], "fedcba987654321001234567");
    assert!(agent.run("cluster status").text().contains("2 (1 managers; 1 ready, 0 unknown, 1 down)"));
}

#[test]
fn a_list_larger_than_grpcs_usual_limit_arrives() {
    let agent = agent();
    let app = network(APP, "app", 4096);
    let many = (0..40_000).map(|n| endpoint(&format!("{n:024x}"), &format!("container-{n}"), &app)).collect();
    agent.services.with(|state| state.endpoints = many);
    assert_eq!(agent.run("endpoint ls -q").text().lines().count(), 40_000);
}
