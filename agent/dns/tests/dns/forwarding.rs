//! Names that are not ours.

use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;

use crate::lab::{APP, INNER, Lab, OUTSIDE, query, receive};

/// Bound, and silent: a resolver that is down behind a router that drops.
const SILENT: &str = "127.0.2.2";
/// Nobody listens there.
const CLOSED: &str = "127.0.2.3";
/// Answers SERVFAIL.
const FAILING: &str = "127.0.2.4";

#[test]
fn other_names_are_answered_by_the_hosts_resolvers_over_either_transport() {
    let lab = Lab::start();
    for transport in ["+notcp", "+tcp"] {
        let answer = lab.dig(&format!("@{APP} {transport} www.Example.com A"));
        assert_eq!(answer.section("ANSWER"), [["www.Example.com.", "1", "IN", "A", "198.51.100.1"]]);
        assert!(!answer.text().contains("WARNING"), "{}", answer.text());
        let answer = lab.dig(&format!("@{APP} {transport} nobody.example.com A"));
        assert_eq!(answer.status(), "NXDOMAIN");
    }
    let status = lab.server.status()["app"];
    assert_eq!((status.queries, status.forwarded, status.failed), (4, 4, 0));
}

#[test]
fn a_large_answer_from_outside_is_truncated_over_udp_and_whole_over_tcp() {
    let lab = Lab::start();
    assert!(lab.dig(&format!("@{APP} +ignore many.example.com A")).has_flag("tc"));
    assert!(lab.dig(&format!("@{APP} +ignore +noedns many.example.com A")).has_flag("tc"));
    let whole = lab.dig(&format!("@{APP} many.example.com A"));
    assert_eq!((whole.data().len(), whole.has_flag("tc")), (300, false));
}

#[test]
fn nothing_leaves_an_internal_network() {
    let lab = Lab::start();
    for words in ["www.example.com A", "-x 198.51.100.1", "com NS", ". NS", "+tcp www.example.com A"] {
        let answer = lab.dig(&format!("@{INNER} {words}"));
        assert_eq!(answer.status(), "NXDOMAIN", "{words}: {}", answer.text());
    }
    let status = lab.server.status();
    assert_eq!((status["inner"].queries, status["inner"].forwarded, status["outside"].queries), (5, 0, 0));
    // The C library says so at once.
    let start = Instant::now();
    let (code, _) = lab.getent(&format!("nameserver {INNER}\n"), &["ahosts", "www.example.com"]);
    assert_eq!(code, 2);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn dead_resolvers_are_passed_over_and_remembered() {
    let lab = Lab::start();
    let _silent = lab.bind(SILENT);
    lab.resolvers(&[CLOSED, SILENT, OUTSIDE]);
    let took = |name: &str| {
        let start = Instant::now();
        assert_eq!(lab.short(&format!("@{APP} {name} A")), ["198.51.100.1"], "{name}");
        start.elapsed()
    };
    let first = took("www.example.com");
    assert!(first > Duration::from_secs(2) && first < Duration::from_secs(4), "{first:?}");
    let second = took("www.example.com");
    assert!(second < Duration::from_secs(1), "{second:?}");
}

#[test]
fn a_resolver_that_fails_is_passed_over_and_its_failure_passed_on_only_if_none_knows() {
    let lab = Lab::start();
    lab.serve("no such network", lab.bind(FAILING));
    lab.resolvers(&[FAILING, OUTSIDE]);
    assert_eq!(lab.short(&format!("@{APP} www.example.com A")), ["198.51.100.1"]);
    lab.resolvers(&[FAILING]);
    assert_eq!(lab.dig(&format!("@{APP} www.example.com A")).status(), "SERVFAIL");
}

#[test]
fn without_resolvers_the_answer_is_servfail_at_once_until_there_are_some() {
    let lab = Lab::start();
    lab.resolvers(&[APP]);
    let start = Instant::now();
    assert_eq!(lab.dig(&format!("@{APP} www.example.com A")).status(), "SERVFAIL");
    assert!(start.elapsed() < Duration::from_secs(1), "our own address is not asked");
    lab.resolvers(&[OUTSIDE]);
    assert_eq!(lab.short(&format!("@{APP} www.example.com A")), ["198.51.100.1"]);
}

#[test]
fn a_resolver_that_asks_us_back_makes_no_storm() {
    let lab = Lab::start();
    // A network that forwards to itself, at an address that is not known to be ours.
    lab.zones.send_modify(|zones| drop(zones.networks.insert("mirror".into(), std::sync::Arc::default())));
    lab.serve("mirror", lab.bind("127.0.2.5"));
    lab.resolvers(&["127.0.2.5"]);
    assert_eq!(lab.dig(&format!("@{APP} www.example.com A")).status(), "SERVFAIL");
    let status = lab.server.status()["mirror"];
    assert!(status.queries <= 6, "{status:?}");
}

#[test]
fn equal_questions_are_asked_once_and_each_asker_gets_its_answer() {
    let lab = Lab::start();
    // The first resolver keeps them waiting together.
    let _silent = lab.bind(SILENT);
    lab.resolvers(&[SILENT, OUTSIDE]);
    let client = lab.client(APP);
    for id in 0..50 {
        let name = if id % 2 == 0 { "www.example.com." } else { "WWW.example.COM." };
        client.send(&query(id, name)).unwrap();
    }
    let mut ids: Vec<u16> = (0..50)
        .map(|_| {
            let (id, code) = receive(&client).unwrap();
            assert_eq!(code, ResponseCode::NoError);
            id
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..50).collect::<Vec<_>>());
    assert_eq!(lab.server.status()["outside"].queries, 1);
}

#[test]
fn questions_beyond_the_limit_fail_at_once_and_our_own_names_are_answered_meanwhile() {
    let lab = Lab::start();
    let _silent = lab.bind(SILENT);
    lab.resolvers(&[SILENT]);
    let client = lab.client(APP);
    for id in 0..200 {
        client.send(&query(id, &format!("host{id}.example.com."))).unwrap();
    }
    client.send(&query(1000, "web.")).unwrap();
    let start = Instant::now();
    let answers: Vec<_> = (0..73).map(|_| receive(&client).unwrap()).collect();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(answers.contains(&(1000, ResponseCode::NoError)));
    assert_eq!(answers.iter().filter(|(_, code)| *code == ResponseCode::ServFail).count(), 72);
}
