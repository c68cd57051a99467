//! Names that are not ours.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{RData, Record},
};

use crate::lab::{APP, INNER, Lab, OTHER, OUTSIDE, endpoint, query, receive};

/// Bound, and silent: a resolver that is down behind a router that drops.
const SILENT: &str = "127.0.2.2";
/// A closed port.
const CLOSED: &str = "127.0.2.3";
/// Answers SERVFAIL.
const FAILING: &str = "127.0.2.4";
/// Answers strangely.
const STRANGE: &str = "127.0.2.6";

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
    assert!(first > Duration::from_secs(1) && first < Duration::from_secs(4), "{first:?}");
    // One of some, since a busy machine takes its time for dig itself.
    let fastest = (0..5).map(|_| took("www.example.com")).min().unwrap();
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
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
    let answers: Vec<_> = (0..137).map(|_| receive(&client).unwrap()).collect();
    assert!(start.elapsed() < Duration::from_secs(4));
    assert!(answers.contains(&(1000, ResponseCode::NoError)));
    assert_eq!(answers.iter().filter(|(_, code)| *code == ResponseCode::ServFail).count(), 136);
    // Another one's questions are asked meanwhile.
    lab.resolvers(&[OUTSIDE]);
    let other = lab.client_from(OTHER, APP);
    other.send(&query(7, "www.example.com.")).unwrap();
    assert_eq!(receive(&other).unwrap(), (7, ResponseCode::NoError));
}

#[test]
fn what_is_under_a_networks_name_and_not_here_is_public() {
    let lab = Lab::start();
    // `app` is a top-level domain, too.
    lab.change("outside", |zone| {
        let public = ["vercel.app", "db.app", "secret.other"];
        let public = public.iter().zip(1..).map(|(name, n)| endpoint(name, &format!("203.0.113.{n}")));
        zone.endpoints = zone.endpoints.iter().cloned().chain(public).collect();
    });
    assert_eq!(lab.short(&format!("@{APP} vercel.app A")), ["203.0.113.1"]);
    assert_eq!(lab.short(&format!("@{APP} db.app A")), ["10.64.0.5"], "it exists here");
    assert_eq!(lab.dig(&format!("@{APP} nobody.app A")).status(), "NXDOMAIN");
    assert_eq!(lab.short(&format!("@{APP} secret.other A")), ["203.0.113.3"], "a network that it is not in");
    assert_eq!(lab.dig(&format!("@{INNER} vercel.inner A")).status(), "NXDOMAIN");
    assert_eq!(lab.server.status()["inner"].forwarded, 0);
}

/// A resolver that takes its time for `slow`, answers nonsense to `loop`, and 203.0.113.9 to all
/// else.
fn strange_resolver(lab: &Lab) {
    let socket = lab.netns.enter(|| UdpSocket::bind((STRANGE, 53))).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, asker)) = socket.recv_from(&mut buffer) {
            let mut reply = Message::from_vec(&buffer[..length]).unwrap();
            reply.metadata.message_type = MessageType::Response;
            let name = reply.queries[0].name().clone();
            let data = RData::A(Ipv4Addr::new(203, 0, 113, 9).into());
            let (is_slow, is_loop) =
                (name.to_string().starts_with("slow"), name.to_string().starts_with("loop"));
            reply.edns = None;
            reply.add_answer(Record::from_rdata(name, 60, data));
            let mut bytes = reply.to_vec().unwrap();
            if is_loop {
                // The answer's name is a pointer to itself.
                let at = bytes.len() - 16;
                assert_eq!(bytes[at..at + 2], [0xc0, 12]);
                bytes[at + 1] = u8::try_from(at).unwrap();
            }
            let socket = socket.try_clone().unwrap();
            std::thread::spawn(move || {
                if is_slow {
                    std::thread::sleep(Duration::from_secs(3));
                }
                let _ = socket.send_to(&bytes, asker);
            });
        }
    });
}

#[test]
fn a_malformed_answer_is_dropped_and_a_late_one_is_taken() {
    let lab = Lab::start();
    strange_resolver(&lab);
    lab.resolvers(&[STRANGE]);
    let start = Instant::now();
    let broken = lab.dig(&format!("@{APP} loop.example.com A"));
    assert_eq!(broken.status(), "SERVFAIL", "{}", broken.text());
    assert!(start.elapsed() < Duration::from_secs(2), "at once");
    assert_eq!(lab.short(&format!("@{APP} slow.example.com A")), ["203.0.113.9"]);
    // Another resolver is asked for what the first one answers in no way that can be read.
    lab.resolvers(&[STRANGE, OUTSIDE]);
    lab.change("outside", |zone| zone.endpoints = vec![endpoint("loop.example.com", "198.51.100.2")].into());
    assert_eq!(lab.short(&format!("@{APP} loop.example.com A")), ["198.51.100.2"]);
}
