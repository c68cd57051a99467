//! One port of a client in several connections to one backend. There they would be the same tuple,
//! so its port is changed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use mesh_e2e::service::{TARGET, assert_kept, change_backend, create_service, vip, web};
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, create_network};
use mesh_harness::traffic::{Answer, Connection, UdpClient, ask_from};
use mesh_harness::{Container, Encapsulation, Lab, Netns, Result};

/// The client ports to try.
const PORTS: std::ops::Range<u16> = 20_000..20_050;

/// A client that reaches the backend through several addresses.
struct Caller<'a> {
    netns: &'a Netns,
    address: IpAddr,
    ways: Vec<SocketAddr>,
}

impl Caller<'_> {
    const fn from(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    fn assert_seen(&self, answer: &Answer) {
        assert_eq!((answer.backend.as_str(), answer.client.ip()), ("b1", self.address));
    }
}

/// Starts a lab of two services with the same single backend on its second host, and a container on
/// each host.
fn lab(encapsulation: Encapsulation) -> Result<(Lab, mesh_e2e::service::Backend, [Container; 2])> {
    let lab = Lab::builder().hosts(2).encapsulation(encapsulation).start()?;
    create_network(&lab, "app", &[])?;
    let backend = web(&lab, &[2], &["-p", "8080:80", "-p", "8080:80/udp"])?.remove(0);
    create_service(&lab, "second", &["-p", "8081:80", "-p", "8081:80/udp"])?;
    change_backend(&lab.host(1), "add", "second", backend.container.name())?.ok()?;
    let containers =
        [lab.container(1, "away", ["--network", "app"])?, lab.container(2, "beside", ["--network", "app"])?];
    Ok((lab, backend, containers))
}

fn callers<'a>(lab: &Lab, outside: &'a Netns, containers: &'a [Container; 2]) -> Result<Vec<Caller<'a>>> {
    let vips = vec![vip(lab, "web")?, vip(lab, "second")?];
    let published = |host: usize, port| SocketAddr::new(lab.host(host).address().into(), port);
    let [away, beside] = containers;
    // One host translates its connections to all of these addresses.
    let of_beside = [vips.clone(), vec![published(2, 8080), published(2, 8081)]].concat();
    let of_outside = [(1, 8080), (2, 8080), (1, 8081), (2, 8081)].map(|(host, port)| published(host, port));
    Ok(vec![
        Caller { netns: away.netns(), address: away.ipv4()?.into(), ways: vips },
        Caller { netns: beside.netns(), address: beside.ipv4()?.into(), ways: of_beside },
        Caller { netns: outside, address: lab.client_address(), ways: of_outside.to_vec() },
    ])
}

#[test]
fn one_port_of_a_client_may_be_in_several_connections_to_one_backend() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, _backend, containers) = lab(encapsulation)?;
        let outside = lab.client();
        for caller in callers(&lab, &outside, &containers)? {
            let mut open = Vec::new();
            for port in PORTS {
                let mut seen = BTreeSet::new();
                for way in &caller.ways {
                    let mut connection = Connection::open_from(caller.netns, Some(caller.from(port)), *way)?;
                    let answer = connection.ask()?;
                    caller.assert_seen(&answer);
                    assert!(seen.insert(answer.client.port()), "one tuple twice, from {port} to {way}");
                    open.push((answer.backend, connection));
                }
                assert!(seen.contains(&port), "the first one's own: {seen:?}");
            }
            assert_kept(&mut open)?;
            let Some((_, connection)) = open.last_mut() else { continue };
            connection.download(8 << 20)?;
        }
    }
    Ok(())
}

#[test]
fn datagrams_of_one_socket_to_several_services_of_one_backend_are_answered_by_each() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, _backend, containers) = lab(encapsulation)?;
        let outside = lab.client();
        for caller in callers(&lab, &outside, &containers)? {
            let socket = UdpClient::bind(caller.netns, caller.from(PORTS.start))?;
            let mut known = Vec::new();
            for _ in 0..3 {
                let mut seen = Vec::new();
                for way in &caller.ways {
                    let answer = socket.ask(*way, PATIENCE)?;
                    let answer = answer.unwrap_or_else(|| panic!("{way} does not answer"));
                    caller.assert_seen(&answer);
                    seen.push(answer.client.port());
                    // In fragments, of which only the first has ports.
                    let whole = socket.ask_with(&[0x5a; 4000], *way, PATIENCE)?;
                    assert_eq!(whole, Some(answer), "in fragments, to {way}");
                }
                assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), caller.ways.len(), "{seen:?}");
                if known.is_empty() {
                    known.clone_from(&seen);
                }
                assert_eq!(known, seen, "a flow keeps its port");
            }
        }
    }
    Ok(())
}

/// The backend closes first, and has the connection in TIME-WAIT (RFC 9293, section 3.6.1). Half of
/// the time it would treat a SYN of the same tuple as old, and the client would retry after a
/// second.
#[test]
fn a_recently_used_client_port_is_replaced_at_the_backend() -> Result<()> {
    let (lab, backend, containers) = lab(Encapsulation::Direct)?;
    let outside = lab.client();
    for caller in callers(&lab, &outside, &containers)? {
        for port in PORTS {
            let mut seen = BTreeSet::new();
            for way in &caller.ways {
                let answer = ask_from(caller.netns, caller.from(port), *way)?;
                caller.assert_seen(&answer);
                assert!(seen.insert(answer.client.port()), "one tuple twice, from {port} to {way}");
            }
        }
    }
    let waiting =
        backend.container.exec(["ss", "-Htn", "state", "time-wait", "sport", "=", &TARGET.to_string()])?;
    assert!(!waiting.ok()?.stdout.is_empty(), "the backend closed first");
    Ok(())
}
