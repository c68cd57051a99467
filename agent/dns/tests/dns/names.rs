//! The networks' own names.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use mesh_dns::{Client, List, Zones};
use mesh_harness::eventually;

use crate::lab::{APP, APP_V6, INNER, Lab, OTHER, endpoint};

const RESOLV_CONF: &str = "nameserver 10.64.0.1\nsearch app\n";

#[test]
fn every_kind_of_name_is_answered_over_udp_and_tcp_ipv4_and_ipv6() {
    let lab = Lab::start();
    for server in [APP, APP_V6] {
        for transport in ["+notcp", "+tcp"] {
            let ask = |words: &str| lab.short(&format!("@{server} {transport} {words}"));
            assert_eq!(ask("db A"), ["10.64.0.5"]);
            assert_eq!(ask("db AAAA"), ["fd00:64::5"]);
            assert_eq!(ask("DataBase.App A"), ["10.64.0.5"]);
            assert_eq!(ask("web A"), ["10.64.255.1"]);
            assert_eq!(ask("web.app A"), ["10.64.255.1"]);
            assert_eq!(ask("tasks.web A"), ["10.64.1.0", "10.64.1.1", "10.64.1.2"]);
            assert_eq!(ask("rr.app A"), ["10.64.2.0", "10.64.2.1", "10.64.2.2", "10.64.2.3"]);
            assert_eq!(ask("db ANY"), ["10.64.0.5", "fd00:64::5"]);
            assert_eq!(ask("-x 10.64.0.6"), ["web.1.app."]);
            assert_eq!(ask("-x fd00:64::5"), ["db.app."]);
            assert_eq!(ask("-x 10.64.255.1"), ["web.app."]);
        }
    }
    let status = lab.server.status()["app"];
    assert_eq!((status.queries, status.forwarded, status.failed, status.malformed), (44, 0, 0, 0));
}

#[test]
fn an_answer_is_authoritative_and_kept_for_a_second_only() {
    let lab = Lab::start();
    let answer = lab.dig(&format!("@{APP} web A"));
    assert!(answer.has_flag("aa") && answer.has_flag("ra") && !answer.has_flag("tc"), "{}", answer.text());
    assert_eq!(answer.section("ANSWER"), [["web.", "1", "IN", "A", "10.64.255.1"]]);
    assert!(!answer.text().contains("WARNING"), "{}", answer.text());
}

#[test]
fn a_known_name_without_an_address_of_the_asked_family_is_empty_and_an_unknown_one_does_not_exist() {
    let lab = Lab::start();
    for (words, status, apex) in [
        ("web AAAA", "NOERROR", "."),
        ("web.app AAAA", "NOERROR", "app."),
        ("web.app TXT", "NOERROR", "app."),
        ("web.app TYPE4711", "NOERROR", "app."),
        ("nobody A", "NXDOMAIN", "."),
        ("app A", "NOERROR", "app."),
        ("-x 10.64.77.77", "NXDOMAIN", "64.10.in-addr.arpa."),
    ] {
        let answer = lab.dig(&format!("@{APP} {words}"));
        assert_eq!(answer.status(), status, "{words}: {}", answer.text());
        assert!(answer.section("ANSWER").is_empty() && answer.has_flag("aa"), "{words}");
        let authority = answer.section("AUTHORITY");
        assert_eq!((authority[0][0], authority[0][3]), (apex, "SOA"), "{words}");
    }
    assert_eq!(lab.server.status()["app"].forwarded, 0);
}

#[test]
fn a_large_answer_is_truncated_over_udp_and_whole_over_tcp() {
    let lab = Lab::start();
    let udp = lab.dig(&format!("@{APP} +ignore large A"));
    assert!(udp.has_flag("tc"));
    let part = udp.section("ANSWER").len();
    assert!((60..80).contains(&part), "as many as fit 1232 octets: {part}");
    let small = lab.dig(&format!("@{APP} +ignore +noedns large A"));
    assert!(small.has_flag("tc") && small.section("ANSWER").len() < 32);
    let whole = lab.dig(&format!("@{APP} large A"));
    assert!(whole.text().contains("Truncated, retrying in TCP mode"));
    assert_eq!(whole.data().len(), 1000);
    assert!(!whole.has_flag("tc"));
}

#[test]
fn the_addresses_of_a_round_robin_service_come_in_every_order() {
    let lab = Lab::start();
    let firsts: BTreeSet<String> =
        (0..60).map(|_| lab.dig(&format!("@{APP} rr A")).section("ANSWER")[0][4].to_owned()).collect();
    assert_eq!(firsts.len(), 4);
}

#[test]
fn names_are_visible_on_their_own_network_only() {
    let lab = Lab::start();
    assert_eq!(lab.short(&format!("@{APP} db A")), ["10.64.0.5"]);
    assert_eq!(lab.short(&format!("@{OTHER} db A")), ["10.65.0.5"]);
    assert_eq!(lab.short(&format!("@{INNER} db A")), ["10.66.0.5"]);
    for unknown in ["secret", "secret.other", "db.inner", "-x 10.65.0.6"] {
        let answer = lab.dig(&format!("@{APP} {unknown}"));
        assert_eq!((answer.status(), answer.data().len()), ("NXDOMAIN", 0), "{unknown}");
    }
}

#[test]
fn a_container_in_several_networks_is_answered_from_all_by_whichever_server_it_asks() {
    let lab = Lab::start();
    // The namespace's own address is a container's in `inner` and then in `other`.
    let both =
        Client { addresses: vec![APP.parse().unwrap()], networks: vec!["inner".into(), "other".into()] };
    lab.zones.send_modify(|zones| zones.clients = Arc::new(Zones::clients_of([both])));
    for server in [OTHER, INNER] {
        let ask = |words: &str| lab.short(&format!("@{server} -b {APP} {words}"));
        assert_eq!(ask("db A"), ["10.66.0.5"], "the first network's");
        assert_eq!(ask("db.other A"), ["10.65.0.5"]);
        assert_eq!(ask("secret A"), ["10.65.0.6"]);
        assert_eq!(ask("-x 10.66.0.5"), ["db.inner."]);
        assert_eq!(ask("-x 10.65.0.6"), ["secret.other."]);
        assert_eq!(ask("www.example.com A"), ["198.51.100.1"], "through the network with a way out");
    }
    // Names of theirs that exist, and bare names that do not, went nowhere.
    assert_eq!(lab.server.status()["outside"].queries, 1 + 1);
    assert_eq!(lab.dig(&format!("@{OTHER} -b {APP} nobody A")).status(), "NXDOMAIN");
    assert_eq!(lab.server.status()["outside"].queries, 2);
    // A server of a network that it is not in answers for that one alone, as do the others to
    // strangers.
    assert_eq!(lab.short(&format!("@{APP} -b {APP} db A")), ["10.64.0.5"]);
    assert_eq!(lab.dig(&format!("@{OTHER} -b {OTHER} db.inner A")).status(), "NXDOMAIN");
}

#[test]
fn a_change_is_answered_at_once() {
    let lab = Lab::start();
    assert_eq!(lab.dig(&format!("@{APP} late A")).status(), "NXDOMAIN");
    lab.change("app", |zone| {
        zone.endpoints = zone.endpoints.iter().cloned().chain([endpoint("late", "10.64.0.99")]).collect();
    });
    assert_eq!(lab.short(&format!("@{APP} late A")), ["10.64.0.99"]);
    lab.change("app", |zone| {
        let others = zone.endpoints.iter().filter(|endpoint| endpoint.name != "late");
        zone.endpoints = others.cloned().collect();
    });
    assert_eq!(lab.dig(&format!("@{APP} late A")).status(), "NXDOMAIN");
    assert_eq!(lab.dig(&format!("@{APP} -x 10.64.0.99")).status(), "NXDOMAIN");
}

#[test]
fn networks_come_and_go_while_others_are_served() {
    let lab = Lab::start();
    lab.stop("app");
    assert!(!lab.server.status().contains_key("app"));
    // The port is closed now.
    lab.netns.run(["dig", "+tries=1", "+time=1", "@10.64.0.1", "web"]).unwrap().ok().unwrap_err();
    assert_eq!(lab.short(&format!("@{OTHER} db A")), ["10.65.0.5"]);
    lab.serve("app", lab.bind(APP));
    assert_eq!(lab.short(&format!("@{APP} web A")), ["10.64.255.1"]);
    lab.zones.send_modify(|zones| drop(zones.networks.remove("app")));
    assert_eq!(lab.dig(&format!("@{APP} web A")).status(), "SERVFAIL", "its names are not known");
}

#[test]
fn a_socket_can_be_bound_before_its_address_is_there() {
    let lab = Lab::start();
    let sockets = [lab.bind("10.67.0.1"), lab.bind("fd00:67::1")];
    for sockets in sockets {
        lab.serve("app", sockets);
    }
    mesh_harness::ip_batch_in(
        &lab.netns,
        &["addr add 10.67.0.1/32 dev lo", "addr add fd00:67::1/128 dev lo nodad"],
    )
    .unwrap();
    for server in ["10.67.0.1", "fd00:67::1"] {
        assert_eq!(lab.short(&format!("@{server} web A")), ["10.64.255.1"]);
    }
}

#[test]
fn the_c_library_finds_names_with_and_without_a_search_domain() {
    let lab = Lab::start();
    for resolv_conf in
        [RESOLV_CONF, "nameserver 10.64.0.1\n", "nameserver 10.64.0.1\nsearch app\noptions ndots:0 edns0\n"]
    {
        let getent = |words: &[&str]| {
            let (code, text) = lab.getent(resolv_conf, words);
            (code, text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let (code, words) = getent(&["ahostsv4", "web"]);
        assert_eq!((code, words[0].as_str()), (0, "10.64.255.1"), "{resolv_conf:?}");
        let (code, words) = getent(&["hosts", "db"]);
        assert_eq!((code, words[0].as_str()), (0, "fd00:64::5"));
        assert_eq!(getent(&["hosts", "10.64.0.5"]), (0, vec!["10.64.0.5".into(), "db.app".into()]));
        assert_eq!(getent(&["ahosts", "nobody"]), (2, vec![]));
        let (code, words) = getent(&["ahostsv4", "www.example.com"]);
        assert_eq!((code, words[0].as_str()), (0, "198.51.100.1"), "forwarded");
        let (_, words) = getent(&["ahostsv4", "large"]);
        let addresses: BTreeSet<&String> = words.iter().filter(|word| word.starts_with("10.")).collect();
        assert_eq!(addresses.len(), 1000, "over TCP");
    }
}

#[test]
fn a_removed_endpoint_is_gone_for_the_c_library_within_a_second() {
    let lab = Lab::start();
    assert_eq!(lab.getent(RESOLV_CONF, &["hosts", "web.1"]).0, 0);
    lab.change("app", |zone| zone.endpoints = List::default());
    eventually("the name to be gone", Duration::from_secs(1), || {
        lab.getent(RESOLV_CONF, &["hosts", "web.1"]).0 == 2
    })
    .unwrap();
}
