//! `meshctl service`, and what else concerns names and keys.

use mesh_proto::v1;
use serde_json::json;

use crate::agent::{Agent, Asked, NODE, State, backend, network, node, service};

const APP: &str = "aaa000000000000000000001";
const WEB: &str = "bbb000000000000000000001";

fn port(published: u32, target: u32) -> v1::PublishedPort {
    v1::PublishedPort {
        published,
        target,
        protocol: v1::Protocol::Tcp.into(),
        mode: v1::PublishMode::Ingress.into(),
        host_ip: String::new(),
    }
}

fn tcp_check(port: u32, interval_ms: u64, retries: u32) -> v1::HealthCheck {
    let kind = v1::health_check::Kind::Tcp(v1::TcpCheck { port });
    v1::HealthCheck { kind: Some(kind), interval_ms, retries, ..Default::default() }
}

fn agent() -> Agent {
    let app = network(APP, "app", 4096);
    let request = v1::CreateServiceRequest {
        name: "web".into(),
        ports: vec![port(8080, 80)],
        health: Some(tcp_check(80, 2000, 3)),
        aliases: vec!["www".into()],
        labels: [("tier".into(), "front".into())].into(),
        ..Default::default()
    };
    let mut web = service(WEB, &app, request);
    let made = web.service.clone().unwrap();
    let mut second = backend(3, "c2", &made);
    second.health = "unhealthy".into();
    second.health_error = "it answers 503".into();
    (second.receives_traffic, second.traffic_reason) = (false, "draining".into());
    second.backend.as_mut().unwrap().state = v1::BackendState::Draining.into();
    web.backends = vec![second, backend(2, "c1", &made)];
    let dnsrr = v1::CreateServiceRequest {
        name: "api".into(),
        endpoint_mode: v1::EndpointMode::Dnsrr.into(),
        ..Default::default()
    };
    let api = service("bbb000000000000000000002", &app, dnsrr);
    Agent::start(State { networks: vec![app], services: vec![web, api], ..State::default() })
}

fn asked(agent: &Agent) -> Asked {
    agent.services.with(|state| state.asked.pop()).unwrap()
}

#[test]
fn service_create_passes_on_every_flag_and_prints_the_id_and_the_chosen_ports() {
    let agent = agent();
    let line = "service create --name shop --network app --endpoint-mode vip -p 8081:80 --publish :443 \
                -p published=53,target=5353,protocol=udp,mode=host,host-ip=192.0.2.11 --vip 10.64.15.250 \
                --vip6 fd00::f000 --affinity client-ip --health-http 8080/up --health-interval 500ms \
                --health-retries 5 --alias store --label tier=front --when-all-unhealthy none";
    assert_eq!(agent.run(line).text(), format!("{:024x}\n30000:443/tcp\n", 0x5e02));
    let http = v1::HttpCheck { port: 8080, path: "/up".into() };
    let expected = v1::CreateServiceRequest {
        name: "shop".into(),
        network: "app".into(),
        endpoint_mode: v1::EndpointMode::Vip.into(),
        vip: "10.64.15.250".into(),
        vip6: "fd00::f000".into(),
        ports: vec![
            port(8081, 80),
            port(0, 443),
            v1::PublishedPort {
                published: 53,
                target: 5353,
                protocol: v1::Protocol::Udp.into(),
                mode: v1::PublishMode::Host.into(),
                host_ip: "192.0.2.11".into(),
            },
        ],
        affinity: v1::Affinity::ClientIp.into(),
        health: Some(v1::HealthCheck {
            kind: Some(v1::health_check::Kind::Http(http)),
            interval_ms: 500,
            retries: 5,
            ..Default::default()
        }),
        aliases: vec!["store".into()],
        labels: [("tier".into(), "front".into())].into(),
        when_all_unhealthy: v1::WhenAllUnhealthy::None.into(),
    };
    assert_eq!(asked(&agent), Asked::Create(expected));
    let made = agent.run("service create --name x --network app -p 80 --format json").json();
    assert_eq!((&made["name"], &made["ports"][0]["published"]), (&json!("x"), &json!(30000)));
}

#[test]
fn services_have_the_documented_shape() {
    let backend = |id: u32, name: &str, state: &str, health: &str| {
        json!({
            "id": format!("{:024x}", 0x00ee_0000 + id), "name": name, "node": "h1",
            "ipv4": format!("10.64.0.{id}"), "ipv6": null, "state": state, "health": health,
            "node_state": "ready", "backend": id, "node_availability": "active", "service": "web", "network": "app",
            "receives_traffic": state == "active", "traffic_reason": (state != "active").then_some("draining"),
            "health_error": (state != "active").then_some("it answers 503"),
        })
    };
    let web = json!({
        "id": WEB, "name": "web", "network": "app", "vip": "10.64.15.240", "vip6": null, "endpoint_mode": "vip",
        "ports": [{"published": 8080, "target": 80, "protocol": "tcp", "mode": "ingress", "host_ip": null}],
        "affinity": "none", "health": {
            "check": "tcp 80", "interval_ms": 2000, "retries": 3, "timeout_ms": 1000,
            "start_period_ms": 0, "start_interval_ms": null,
        },
        "when_all_unhealthy": "all",
        "aliases": ["www"], "labels": {"tier": "front"}, "created_at": "2026-11-21T10:00:02Z",
        "endpoints": [backend(2, "c1", "active", "healthy"), backend(3, "c2", "draining", "unhealthy")],
    });
    let agent = agent();
    assert_eq!(agent.run("service inspect web").json(), web);
    let listed = agent.run("service ls --format json").json();
    assert_eq!((&listed[0]["name"], &listed[1]), (&json!("api"), &web));
    assert_eq!(agent.run("service ps web --format json").json(), web["endpoints"]);
}

#[test]
fn services_and_backends_are_tables_for_people() {
    let agent = agent();
    assert_eq!(
        agent.run("service ls").text(),
        "SERVICE ID     NAME   NETWORK   MODE    VIP            BACKENDS   PORTS         NOT IN USE\n\
         bbb000000000   api    app       dnsrr   10.64.15.240   0/0        -             -\n\
         bbb000000000   web    app       vip     10.64.15.240   1/2        8080:80/tcp   1 draining\n"
    );
    assert_eq!(
        agent.run("service ps web").text(),
        "ENDPOINT ID    NAME   NODE   NODE STATE   ADDRESSES   STATE      HEALTH      AVAILABILITY   TRAFFIC        \
         LAST CHECK ERROR\n\
         000000000000   c1     h1     ready        10.64.0.2   active     healthy     active         yes            -\n\
         000000000000   c2     h1     ready        10.64.0.3   draining   unhealthy   active         no: draining   \
         it answers 503\n"
    );
    let several = agent.run("service ps api web").text();
    let rows: Vec<Vec<&str>> = several.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows[0][0], rows[1][0], rows[2][0]), ("SERVICE", "app/web", "app/web"), "{several}");
    let inspected = agent.run("service inspect web --format table").text();
    assert!(inspected.contains("Health check:             tcp 80 every 2000 ms, 3 retries\n"), "{inspected}");
}

#[test]
fn of_services_that_are_not_there_only_errors_are_shown() {
    let agent = agent();
    for line in ["service ps missing", "service ps --format json missing", "service ps -q missing"] {
        let missing = agent.run(line);
        assert_eq!((missing.code, missing.out.as_str()), (3, ""), "{line}: {}", missing.err);
    }
    let other = agent.run("service ps -q web missing");
    assert_eq!((other.code, other.out.lines().count()), (3, 2));
}

#[test]
fn services_and_backends_are_filtered_by_every_documented_key() {
    let agent = agent();
    for (line, found) in [
        ("service ls -q --filter mode=dnsrr", "bbb000000000000000000002\n"),
        ("service ls -q --filter label=tier=front", "bbb000000000000000000001\n"),
        ("service ls -q --filter name=we --filter network=app --filter id=bbb", "bbb000000000000000000001\n"),
        ("service ls -q --network db", ""),
        ("service ps -q --filter state=draining web", "000000000000000000ee0003\n"),
        ("service ps -q --filter health=healthy --filter node=h1 web", "000000000000000000ee0002\n"),
        ("service ps -q --filter traffic=no web", "000000000000000000ee0003\n"),
        ("service ps -q --filter name=c2 --filter id=0000 web", "000000000000000000ee0003\n"),
    ] {
        assert_eq!(agent.run(line).text(), found, "{line}");
    }
}

#[test]
fn an_update_sends_only_what_changes() {
    let agent = agent();
    let line = "service update --publish-add :81 --publish-rm 8080:80 --affinity client-ip web";
    assert_eq!(agent.run(line).text(), "web\n30000:81/tcp\n");
    let expected = v1::UpdateServiceRequest {
        service: "web".into(),
        add_ports: vec![port(0, 81)],
        remove_ports: vec![port(8080, 80)],
        affinity: v1::Affinity::ClientIp.into(),
        ..Default::default()
    };
    assert_eq!(asked(&agent), Asked::Update(expected));

    agent.run("service update --health-retries 7 web").text();
    let Asked::Update(sent) = asked(&agent) else { panic!("an update") };
    assert_eq!(sent.health, Some(tcp_check(80, 2000, 7)), "what is not said stays");

    agent.run("service update --health-tcp 81 web").text();
    let Asked::Update(sent) = asked(&agent) else { panic!("an update") };
    assert_eq!(sent.health, Some(tcp_check(81, 2000, 7)));

    agent.run("service update --no-health app/web").text();
    let Asked::Update(sent) = asked(&agent) else { panic!("an update") };
    assert_eq!((sent.clear_health, sent.health, sent.service.as_str()), (true, None, "app/web"));

    let refused = agent.run("service update --health-interval 1s web");
    assert_eq!(refused.code, 4, "{}", refused.err);
    assert!(refused.err.contains("web, its endpoints are not checked"), "{}", refused.err);
}

#[test]
fn removing_several_services_goes_on_after_an_error() {
    let agent = agent();
    let done = agent.run("service rm missing web busy api");
    assert_eq!((done.code, done.out.as_str()), (3, "web\napi\n"));
    assert_eq!(done.err.matches("error: ").count(), 2, "{}", done.err);
    assert_eq!(agent.run("service ls -q").text(), "");
}

#[test]
fn backends_are_added_drained_activated_and_removed() {
    let agent = agent();
    for (command, what) in [("add", "add"), ("rm", "remove"), ("drain", "drain"), ("activate", "activate")] {
        assert_eq!(agent.run(&format!("service backend {command} app/web c9")).text(), "c9\n");
        assert_eq!(asked(&agent), Asked::Backend(what, "app/web".into(), "c9".into()));
    }
    assert_eq!(agent.run("service backend drain web c9 --format json").json()["name"], "c9");
    assert_eq!(agent.run("service backend drain missing c9").code, 3);
}

#[test]
fn attach_tells_what_belongs_into_resolv_conf() {
    let agent = agent();
    let dns = v1::Dns {
        nameservers: vec!["10.64.0.1".into()],
        search: vec!["app".into()],
        options: vec!["ndots:0".into()],
    };
    agent.services.with(|state| state.dns = Some(dns));
    let line = "endpoint attach --network app --netns web --service app/web";
    assert_eq!(
        agent.run(line).text(),
        "eee000000000000000000001 10.64.0.2\nnameserver 10.64.0.1\nsearch app\noptions ndots:0\n"
    );
    assert_eq!(
        agent.run(&format!("{line} --format json")).json()["dns"],
        json!({"nameserver": ["10.64.0.1"], "search": ["app"], "options": ["ndots:0"]})
    );
    let sent = agent.services.with(|state| state.attached.take()).unwrap();
    assert_eq!(sent.service, "app/web");
}

#[test]
fn rotated_keys_are_told_with_the_nodes_that_follow_later() {
    let text = agent().run("cluster rotate-keys").text();
    assert_eq!(
        text,
        "Every node creates a key of generation 2.\nNodes that have not announced their keys yet: h3\n"
    );
    assert_eq!(
        agent().run("cluster rotate-keys --format json").json(),
        json!({"generation": 2, "pending": ["h3"]})
    );
}

#[test]
fn an_inspected_node_has_its_tunnels() {
    let agent = agent();
    let peer = v1::WireguardPeer {
        node_id: "111111111111111111111111".into(),
        node_name: "h2".into(),
        endpoint: "192.0.2.12:51820".into(),
        last_handshake: String::new(),
        received_bytes: 5,
        sent_bytes: 7,
        generation: 2,
    };
    let keys = [(1, "old".to_owned()), (2, "new".to_owned())].into();
    agent.services.with(|state| {
        state.wireguard = Some(v1::Wireguard { port: 51820, keys });
        state.status.node = Some(node());
        state.status.wireguard_engine = "userspace".into();
        state.status.wireguard_engine_reason = "set by option".into();
        state.status.wireguard_peers = vec![peer];
    });
    let inspected = agent.run("node inspect h1").json();
    let peer = json!({
        "node": "h2", "endpoint": "192.0.2.12:51820", "last_handshake": null, "received_bytes": 5,
        "sent_bytes": 7, "generation": 2,
    });
    assert_eq!(inspected["id"], NODE);
    assert_eq!(
        inspected["wireguard"],
        json!({
            "port": 51820,
            "generation": 2,
            "engine": "userspace",
            "engine_reason": "set by option",
            "peers": [peer],
        })
    );
    let text = agent.run("node inspect h1 --format table").text();
    assert!(text.contains("192.0.2.12:51820") && text.contains("userspace (set by option)"), "{text}");
}

#[test]
fn wrong_service_command_lines_are_found_without_an_agent() {
    for line in [
        "service create --name web",
        "service create --name web --network app -p 80:80:80:80",
        "service create --name web --network app -p 8080:80/icmp",
        "service create --name web --network app -p published=8080",
        "service create --name web --network app -p target=80,mode=swarm",
        "service create --name web --network app --vip fd00::1",
        "service create --name web --network app --health-tcp 80 --health-http 80/",
        "service create --name web --network app --health-http 80",
        "service create --name web --network app --health-tcp 0",
        "service create --name web --network app --health-tcp 80 --health-interval 2",
        "service create --name web --network app --health-tcp 80 --health-interval 1ms",
        "service create --name web --network app --health-retries 3",
        "service create --name web --network app --endpoint-mode swarm",
        "service create --name web --network app --affinity cookie",
        "service create --name -web --network app",
        "service update web",
        "service update --no-health --health-tcp 80 web",
        "service ls --filter colour=red",
        "service ps",
        "service rm",
        "service backend add web",
        "apply",
    ] {
        let done = crate::agent::Done::from(crate::agent::meshctl(line).output().unwrap());
        assert_eq!((done.code, done.out.as_str()), (2, ""), "{line}: {}", done.err);
        let lines: Vec<_> = done.err.lines().collect();
        assert_eq!(lines.len(), 2, "{line}: {}", done.err);
        assert!(lines[0].starts_with("error: ") && lines[1].starts_with("hint: "), "{line}: {}", done.err);
    }
}
