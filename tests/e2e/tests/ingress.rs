//! Published ports: every host answers, whoever calls from wherever, and the backend sees who it was.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use mesh_e2e::service::{add_backend, any_port, change_backend, create_service, web};
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, create_network, json, refused};
use mesh_harness::traffic::{Answer, Connection, UdpClient, ask, load};
use mesh_harness::{Encapsulation, Host, Lab, Netns, Result, eventually};

const PORTS: [&str; 4] = ["-p", "8080:80", "-p", "8080:80/udp"];

fn lab(hosts: u8, encapsulation: Encapsulation) -> Result<Lab> {
    let lab = Lab::builder().hosts(hosts).encapsulation(encapsulation).start()?;
    create_network(&lab, "app", &[])?;
    Ok(lab)
}

fn published(host: &Host) -> SocketAddr {
    SocketAddr::new(host.address().into(), 8080)
}

/// The answers over TCP and over UDP.
fn both(netns: &Netns, target: SocketAddr) -> Result<[Answer; 2]> {
    let any: IpAddr = if target.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let socket = UdpClient::bind(netns, SocketAddr::new(any, 0))?;
    let datagram = socket.ask(target, PATIENCE)?;
    let datagram = datagram.ok_or_else(|| {
        mesh_harness::Error::Traffic(format!("no answer over UDP from {target} to {}", netns.name()))
    })?;
    Ok([ask(netns, target)?, datagram])
}

#[test]
fn containers_call_published_ports_like_everyone_else() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(3, encapsulation)?;
        create_network(&lab, "other", &[])?;
        let _backends = web(&lab, &[1, 2], &PORTS)?;
        for (name, network) in [("mine", "app"), ("foreign", "other")] {
            let container = lab.container(1, name, ["--network", network])?;
            for answer in both(container.netns(), published(&lab.host(1)))? {
                assert_eq!(answer.client.ip(), IpAddr::V4(container.ipv4()?), "{name} by its own host");
            }
            for number in [2, 3] {
                for answer in both(container.netns(), published(&lab.host(number)))? {
                    assert_eq!(
                        answer.client.ip(),
                        IpAddr::V4(lab.host(1).address()),
                        "{name} by host {number}"
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_datagram_flow_from_outside_goes_on_with_the_first_datagram_after_its_backend_was_removed() -> Result<()>
{
    let lab = lab(3, Encapsulation::Direct)?;
    let _backends = web(&lab, &[1, 2, 2], &PORTS)?;
    let socket = UdpClient::bind(&lab.client(), SocketAddr::new(lab.client_address(), 5353))?;
    let target = published(&lab.host(3));
    for _ in 0..2 {
        let first = socket.ask(target, PATIENCE)?.expect("an answer");
        change_backend(&lab.host(1), "rm", "web", &first.backend)?.ok()?;
        let next = socket.ask(target, PATIENCE)?.expect("an answer to the very next datagram");
        assert_ne!(next.backend, first.backend);
    }
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_refused_and_names_who_has_it() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct)?;
    let create = |name: &str, spec: &str| {
        lab.host(1).meshctl(["service", "create", "--name", name, "--network", "app", "-p", spec])
    };
    create("web", "8080:80")?.ok()?;
    assert!(refused(&create("twin", "8080:81")?, 4).contains("web"));
    assert!(refused(&create("twin", "192.168.77.11:8080:81")?, 4).contains("web"));
    // Another protocol is another port, and so is another address.
    create("datagrams", "8080:80/udp")?.ok()?;
    create("one", "192.168.77.11:8081:80")?.ok()?;
    create("two", "192.168.77.12:8081:80")?.ok()?;
    refused(&create("three", "8081:80")?, 4);

    let host = lab.host(2);
    let listener = host.netns().enter(|| TcpListener::bind(("0.0.0.0", 9090)))?.expect("a free port");
    let error = refused(&create("late", "9090:80")?, 4);
    assert!(error.contains("h2") && error.contains("9090"), "{error}");
    drop(listener);
    create("late", "9090:80")?.ok()?;
    // What is refused leaves nothing behind.
    let names = lab.host(1).meshctl(["service", "ls", "--format", "json"])?.text()?;
    assert!(!names.contains("twin") && !names.contains("three"), "{names}");
    Ok(())
}

#[test]
fn five_hundred_ports_are_published_and_unpublished_at_once() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct)?;
    let specs: Vec<String> = (0..500).map(|number| format!("{}:80/udp", 20_000 + number)).collect();
    let options: Vec<&str> = specs.iter().flat_map(|spec| ["-p", spec]).collect();
    create_service(&lab, "web", &options)?;
    let _backend = add_backend(&lab, 2, "b1", "web")?;
    let service = json(&lab.host(1), &["service", "inspect", "web"])?;
    assert_eq!(service["ports"].as_array().map(Vec::len), Some(500));
    let socket = UdpClient::bind(&lab.client(), any_port())?;
    for port in [20_000, 20_128, 20_129, 20_499] {
        let target = SocketAddr::new(lab.host(1).address().into(), port);
        assert_eq!(socket.ask(target, PATIENCE)?.expect("an answer").client.ip(), lab.client_address());
    }
    lab.host(1).meshctl(["service", "update", "web", "--publish-rm", "20499:80/udp"])?.ok()?;
    let closed = SocketAddr::new(lab.host(1).address().into(), 20_499);
    assert_eq!(socket.ask(closed, Duration::from_millis(500))?, None);
    lab.host(1).meshctl(["service", "rm", "web"])?.ok()?;
    let closed = SocketAddr::new(lab.host(1).address().into(), 20_000);
    assert_eq!(socket.ask(closed, Duration::from_millis(500))?, None);
    Ok(())
}

#[test]
fn a_port_published_in_host_mode_is_answered_where_a_backend_is() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct)?;
    let _backends = web(&lab, &[1], &["-p", "published=8080,target=80,mode=host"])?;
    let answer = ask(&lab.client(), published(&lab.host(1)))?;
    assert_eq!((answer.backend.as_str(), answer.client.ip()), ("b1", lab.client_address()));
    assert!(ask(&lab.client(), published(&lab.host(2))).is_err());
    let _second = add_backend(&lab, 2, "b2", "web")?;
    assert_eq!(ask(&lab.client(), published(&lab.host(2)))?.backend, "b2");
    assert_eq!(ask(&lab.client(), published(&lab.host(1)))?.backend, "b1");
    Ok(())
}

#[test]
fn sixty_thousand_short_connections_from_outside_have_no_failure_and_no_stall() -> Result<()> {
    let lab = lab(3, Encapsulation::Direct)?;
    let _backends = web(&lab, &[1, 2, 3], &PORTS)?;
    let report = load(&lab.client(), published(&lab.host(1)), 60_000, 16)?.all_answered()?;
    assert_eq!(report.by_backend.len(), 3, "{:?}", report.by_backend);
    assert_eq!(report.seen_clients.iter().collect::<Vec<_>>(), [&lab.client_address()]);
    assert!(report.slowest() < Duration::from_secs(1), "the slowest took {:?}", report.slowest());
    Ok(())
}

#[test]
fn the_same_flow_gets_the_same_backend_on_every_host() -> Result<()> {
    let lab = lab(3, Encapsulation::Direct)?;
    let _backends = web(&lab, &[1, 2, 3], &PORTS)?;
    let floating = std::net::Ipv4Addr::new(192, 168, 77, 250);
    let target = SocketAddr::new(floating.into(), 8080);
    let ask_from = |port| -> Result<String> {
        let source = SocketAddr::new(lab.client_address(), port);
        Ok(Connection::open_from(&lab.client(), Some(source), target)?.ask()?.backend)
    };
    lab.host(1).add_address(floating)?;
    eventually("the address is published too", PATIENCE, || ask(&lab.client(), target).is_ok())?;
    let mut before = Vec::new();
    for port in 20_000..20_050 {
        before.push(ask_from(port)?);
    }
    lab.move_address(floating, &lab.host(1), &lab.host(2))?;
    eventually("the address is published there", PATIENCE, || ask(&lab.client(), target).is_ok())?;
    for (port, backend) in (20_000..20_050).zip(before) {
        assert_eq!(ask_from(port)?, backend);
    }
    Ok(())
}
