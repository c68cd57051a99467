//! The meaning of Compose files, valid or not.

use mesh_model::{Affinity, EndpointMode};
use proptest::prelude::*;

use super::*;

fn read_file(text: &str) -> Result<Declared, Invalid> {
    let variables = [("TAG".to_owned(), "1".to_owned())].into();
    read(text, Given { project: "folder".into(), variables, profiles: Vec::new() })
}

fn networks_of(text: &str) -> Vec<String> {
    read_file(text).unwrap().networks.iter().map(|network| network.name.to_string()).collect()
}

fn services_of(declared: &Declared) -> Vec<String> {
    declared.services.iter().map(|service| format!("{}/{}", service.network, service.name)).collect()
}

#[test]
fn networks_keep_their_names_and_the_default_one_is_named_after_the_project() {
    assert_eq!(networks_of("networks:\n  app:\n  db: {name: prod-db}\n"), ["app", "prod-db"]);
    assert_eq!(networks_of("services:\n  web:\n"), ["folder_default"]);
    assert_eq!(networks_of("name: shop\nnetworks:\n  default:\nservices:\n  web:\n"), ["shop_default"]);
    assert_eq!(networks_of("networks:\n  default: {name: app}\nservices:\n  web:\n"), ["app"]);
    assert_eq!(networks_of("networks:\n  app:\nservices:\n  web: {networks: [app]}\n"), ["app"]);
}

#[test]
fn external_networks_are_only_named() {
    for text in [
        "networks:\n  a: {external: true, name: app}\n",
        "networks:\n  a: {external: {name: app}}\n",
        "networks:\n  app: {external: true}\n",
    ] {
        let declared = read_file(text).unwrap();
        assert!(declared.networks[0].external, "{text}");
        assert_eq!(declared.networks[0].name.as_str(), "app", "{text}");
    }
}

#[test]
fn a_networks_settings_are_read_in_composes_and_meshs_forms() {
    let declared = read_file(
        "networks:
  app:
    driver: overlay
    internal: true
    enable_ipv6: true
    attachable: false
    labels: [tier=front, bare, mesh.apply=x]
    driver_opts: {encrypted: \"\", com.docker.network.driver.mtu: 1400, other: 1}
    ipam:
      driver: default
      config:
        - {subnet: 10.80.0.0/16, gateway: 10.80.0.1, ip_range: 10.80.4.0/22, aux_addresses: {printer: 10.80.0.9}}
        - subnet: fd00:80::/64
    x-mesh: {vni: 77}
",
    )
    .unwrap();
    let network = &declared.networks[0];
    assert!(network.internal && network.ipv6 && network.encrypted && !network.attachable);
    assert_eq!((network.mtu.unwrap().get(), network.vni.unwrap().get()), (1400, 77));
    assert_eq!(
        network.labels,
        [("tier", "front"), ("bare", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    );
    assert_eq!(network.subnets.len(), 2);
    assert_eq!(network.subnets[0].aux["printer"].to_string(), "10.80.0.9");
    assert_eq!(network.subnets[0].ip_range.unwrap().to_string(), "10.80.4.0/22");
    let ignored: Vec<_> = declared.ignored.iter().map(ToString::to_string).collect();
    assert_eq!(ignored, ["line 7: networks.app.labels", "line 8: networks.app.driver_opts.other"]);
}

#[test]
fn a_service_is_one_on_each_of_its_networks_and_published_on_the_first() {
    let declared = read_file(
        "networks: {front: , back: }
services:
  web:
    networks:
      front: {aliases: [www, shop], ipv4_address: 10.0.0.5}
      back:
    ports: [\"8080:80\"]
    deploy: {endpoint_mode: dnsrr, replicas: 3}
    x-mesh: {affinity: client-ip, vip: 10.80.255.1, health-tcp: 80, health-retries: 5, when-all-unhealthy: none}
",
    )
    .unwrap();
    assert_eq!(services_of(&declared), ["front/web", "back/web"]);
    let [front, back] = declared.services.as_slice() else { panic!("two services") };
    assert_eq!((front.ports.len(), back.ports.len()), (1, 0));
    assert_eq!((front.aliases.len(), back.aliases.len()), (2, 0));
    assert_eq!((front.vip.is_some(), back.vip.is_some()), (true, false));
    for service in [front, back] {
        assert_eq!((service.endpoint_mode, service.affinity), (EndpointMode::Dnsrr, Affinity::ClientIp));
        assert_eq!(service.when_all_unhealthy, mesh_model::WhenAllUnhealthy::None);
        assert_eq!(service.health.as_ref().unwrap().retries, 5);
    }
    let ignored: Vec<_> = declared.ignored.iter().map(|ignored| ignored.key.as_str()).collect();
    assert_eq!(ignored, ["services.web.networks.front.ipv4_address", "services.web.deploy.replicas"]);
}

#[test]
fn a_service_without_its_own_network_is_ignored() {
    let declared = read_file("services:\n  web: {network_mode: host, image: x}\n").unwrap();
    assert_eq!((declared.networks, declared.services), (Vec::new(), Vec::new()));
    assert_eq!(declared.ignored[0].key, "services.web");
}

#[test]
fn meshs_own_check_takes_precedence_over_a_test() {
    let check = |text: &str| {
        let declared = read_file(&format!("services:\n  web:\n{text}")).unwrap();
        let keys = declared.ignored.iter().map(|ignored| ignored.key.replace("services.web.", "")).collect();
        (
            declared.services[0].health.as_ref().map(|check| {
                let start = check.start_interval.map(|interval| format!(" {interval:?}")).unwrap_or_default();
                format!("{check} {:?} {:?} {:?}{start}", check.interval, check.timeout(), check.start_period)
            }),
            keys,
        )
    };
    let none: Vec<String> = Vec::new();
    let http = "    healthcheck: {test: [CMD, curl, -f, \"http://localhost:8080/\"], interval: 1m30s, timeout: 3s, start_period: 40s}\n";
    let wanted = "http 8080/ at localhost as localhost:8080 90s 3s 40s";
    assert_eq!(check(http), (Some(wanted.into()), none.clone()));
    let starting = http.replace("40s", "40s, start_interval: 500ms");
    let wanted = "http 8080/ at localhost as localhost:8080 90s 3s 40s 500ms";
    assert_eq!(check(&starting), (Some(wanted.into()), none.clone()));
    let usual = http.replace("40s", "40s, start_interval: 0s");
    assert_eq!(check(&usual), check(http));
    let plain = "    healthcheck: {test: nc -z 127.0.0.1 80}\n";
    let wanted = "tcp 80 at 127.0.0.1 2s 30s 0ns";
    assert_eq!(check(plain), (Some(wanted.into()), none.clone()), "with Docker's usual timeout");
    let own = format!("{http}    x-mesh: {{health-tcp: 5432, health-interval: 500ms}}\n");
    assert_eq!(check(&own), (Some("tcp 5432 500ms 3s 40s".into()), vec!["healthcheck.test".to_owned()]));
    assert_eq!(
        check("    healthcheck: {test: pg_isready, interval: 5s}\n"),
        (None, vec!["healthcheck.interval".to_owned(), "healthcheck.test".to_owned()])
    );
    assert_eq!(check("    healthcheck: {disable: true}\n"), (None, none.clone()));
    assert_eq!(check("    healthcheck: {test: [NONE]}\n"), (None, none));
}

#[test]
fn invalid_values_are_refused_with_their_line() {
    for (text, line, part) in [
        ("networks:\n  _x:\n", 2, "\"_x\""),
        ("networks:\n  a: {name: b}\n  b:\n", 3, "another network of the file"),
        ("networks:\n  a:\n    ipam:\n      config:\n        - gateway: 10.0.0.1\n", 5, "subnet is missing"),
        ("networks:\n  a:\n    ipam:\n      config:\n        - subnet: 10.0.0.1/8\n", 5, "10.0.0.1/8"),
        ("networks:\n  a:\n    x-mesh: {mtu: 20}\n", 3, "MTU 20"),
        ("networks:\n  a:\n    internal: maybe\n", 3, "true or false"),
        ("networks: {a: }\nservices:\n  w: {networks: [a, a]}\n", 3, "given twice"),
        ("services:\n  w:\n    ports: [{published: 80}]\n", 3, "target is missing"),
        ("services:\n  w:\n    ports: [{target: 80, protocol: icmp}]\n", 3, "icmp"),
        ("services:\n  w:\n    deploy: {endpoint_mode: rr}\n", 3, "vip or dnsrr"),
        ("services:\n  w:\n    x-mesh: {health-http: 80}\n", 3, "slash"),
        ("services:\n  w:\n    x-mesh: {health-tcp: 80, health-http: 80/}\n", 3, "health-tcp is also given"),
        ("services:\n  w:\n    x-mesh: {health-tcp: 80, health-interval: 1ms}\n", 3, "out of range"),
    ] {
        let error = read_file(text).unwrap_err();
        assert!(error.to_string().contains(part), "{text}: {error}");
        assert_eq!(error.line, line, "{text}: {error}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(text in "[ \\n\\-a-c:{}\\[\\]\"'&*<!|>#$0-9/.]{0,120}") {
        let _ = read_file(&text);
    }

    #[test]
    fn any_keys_are_parsed_ignored_or_refused(
        keys in prop::collection::vec("networks|services|ports|ipam|config|deploy|healthcheck|x-mesh|a|name", 1..6),
        value in "[a-z0-9:\"\\[\\]{}, -]{0,20}",
    ) {
        let mut text = String::new();
        for (depth, key) in keys.iter().enumerate() {
            text.push_str(&"  ".repeat(depth));
            text.push_str(key);
            text.push_str(if depth + 1 == keys.len() { ": " } else { ":\n" });
        }
        text.push_str(&value);
        if let Ok(declared) = read_file(&text) {
            prop_assert!(declared.ignored.iter().all(|ignored| ignored.line > 0 && !ignored.key.is_empty()));
        }
    }
}
