//! Malformed and hostile packets.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use hickory_proto::op::ResponseCode;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::lab::{APP, Lab, OTHER, query, receive};

fn connect(lab: &Lab) -> TcpStream {
    let server = SocketAddr::new(APP.parse().unwrap(), 53);
    let stream = lab.netns.enter(|| TcpStream::connect(server)).unwrap().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(12))).unwrap();
    stream
}

#[test]
fn what_is_not_to_be_answered_is_refused_by_its_proper_code() {
    let lab = Lab::start();
    for (words, status) in [
        ("-c CH version.bind TXT", "REFUSED"),
        ("-c ANY web A", "REFUSED"),
        ("web.app AXFR +notcp", "none"),
        ("+opcode=NOTIFY web A", "NOTIMP"),
        ("+opcode=UPDATE web A", "NOTIMP"),
        ("+edns=5 +noednsnegotiation web A", "BADVERS"),
        ("+header-only web A", "FORMERR"),
    ] {
        let answer = lab.dig(&format!("@{APP} {words}"));
        assert_eq!(answer.status(), status, "{words}: {}", answer.text());
    }
    assert!(lab.dig(&format!("@{APP} web.app AXFR")).text().contains("Transfer failed"));
}

#[test]
fn a_response_is_never_answered() {
    let lab = Lab::start();
    let client = lab.client(APP);
    let mut response = query(1, "web.");
    response[2] |= 0x80;
    client.send(&response).unwrap();
    client.send(&query(2, "web.")).unwrap();
    assert_eq!(receive(&client).unwrap(), (2, ResponseCode::NoError));
    assert_eq!(lab.server.status()["app"].malformed, 1);
}

#[test]
fn any_bytes_at_all_leave_the_server_answering() {
    let lab = Lab::start();
    let client = lab.client(APP);
    client.set_nonblocking(true).unwrap();
    let mut random = StdRng::seed_from_u64(4711);
    let mut buffer = [0; 4096];
    for round in 0..20_000 {
        let mut bytes = if round % 2 == 0 {
            let mut bytes = vec![0; random.random_range(0..600)];
            random.fill(&mut bytes[..]);
            bytes
        } else {
            query(round, ["web.", "tasks.web.app.", "5.0.64.10.in-addr.arpa."][usize::from(round % 3)])
        };
        for _ in 0..random.random_range(0..4) {
            if !bytes.is_empty() {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
        }
        if random.random_ratio(1, 4) {
            bytes.truncate(random.random_range(0..=bytes.len()));
        }
        // A full buffer drops some; there are enough.
        let _ = client.send(&bytes);
        if let Ok(length) = client.recv(&mut buffer) {
            assert!(length <= 1232);
        }
        if round % 200 == 0 {
            let _ = connect(&lab).write_all(&bytes);
        }
    }
    assert_eq!(lab.short(&format!("@{APP} web A")), ["10.64.255.1"]);
    assert_eq!(lab.short(&format!("@{APP} +tcp web A")), ["10.64.255.1"]);
    let status = lab.server.status()["app"];
    assert!(status.malformed > 500 && status.queries > 500, "{status:?}");
}

#[test]
fn one_connection_takes_one_question_after_the_other_in_any_pieces() {
    let lab = Lab::start();
    let mut stream = connect(&lab);
    stream.set_nodelay(true).unwrap();
    for id in 0..3_u16 {
        let message = query(id, "web.");
        let framed = [&u16::try_from(message.len()).unwrap().to_be_bytes(), &message[..]].concat();
        for octet in framed {
            stream.write_all(&[octet]).unwrap();
        }
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..2], id.to_be_bytes());
    }
}

fn ask(stream: &mut TcpStream, id: u16, name: &str) {
    let message = query(id, name);
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, &message[..]].concat()).unwrap();
}

/// The id of the next answer.
fn answer(stream: &mut TcpStream) -> u16 {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    u16::from_be_bytes([answer[0], answer[1]])
}

#[test]
fn answers_over_one_connection_come_as_they_are_there() {
    let lab = Lab::start();
    // A resolver that takes the connection and answers nothing.
    let _silent = lab.bind("127.0.2.2");
    lab.resolvers(&["127.0.2.2"]);
    let start = Instant::now();
    let mut stream = connect(&lab);
    ask(&mut stream, 1, "www.example.com.");
    ask(&mut stream, 2, "web.");
    assert_eq!(answer(&mut stream), 2);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    // What was asked before the client's end of the connection is still answered.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(answer(&mut stream), 1);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn idle_connections_make_room_for_new_ones_and_end() {
    let lab = Lab::start();
    let start = Instant::now();
    let mut idle: Vec<TcpStream> = (0..300).map(|_| connect(&lab)).collect();
    for stream in &mut idle {
        let _ = stream.write_all(&[0]);
    }
    let mut next = connect(&lab);
    ask(&mut next, 1, "web.");
    assert_eq!(answer(&mut next), 1, "the client's own oldest ones were closed for it");
    let server = SocketAddr::new(OTHER.parse().unwrap(), 53);
    let mut other = lab.netns.enter(|| TcpStream::connect(server)).unwrap().unwrap();
    ask(&mut other, 2, "db.");
    assert_eq!(answer(&mut other), 2, "and another client's are its own");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    let closed = |stream: &mut TcpStream| !matches!(stream.read(&mut [0]), Ok(length) if length > 0);
    assert!(closed(&mut idle[0]));
    assert!(closed(&mut idle[299]), "it had its time");
}

#[test]
fn what_arrives_while_nobody_serves_is_answered_by_the_next_who_does() {
    let lab = Lab::start();
    lab.stop("app");
    let kept = lab.bind(APP);
    let (udp, tcp) = (kept.udp.try_clone().unwrap(), kept.tcp.try_clone().unwrap());
    lab.serve("app", kept);
    assert_eq!(lab.short(&format!("@{APP} web A")), ["10.64.255.1"]);
    lab.stop("app");

    let client = lab.client(APP);
    client.send(&query(1, "web.")).unwrap();
    let mut stream = connect(&lab);
    let message = query(2, "web.");
    stream.write_all(&[&u16::try_from(message.len()).unwrap().to_be_bytes(), &message[..]].concat()).unwrap();

    lab.serve("app", mesh_dns::Sockets { udp, tcp });
    assert_eq!(receive(&client).unwrap(), (1, ResponseCode::NoError));
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[2..], 2_u16.to_be_bytes());
}
