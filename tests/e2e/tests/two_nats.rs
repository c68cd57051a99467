//! Published ports and the kernel's own NAT share the ports of the hosts' addresses. Answers to a
//! flow of a host, or of a machine behind its NAT, reach that flow, whatever is published.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use mesh_e2e::service::{change_backend, create_service, web};
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, create_network};
use mesh_harness::traffic::{UdpClient, UdpEcho, WebServer, ask, ask_from, udp_request};
use mesh_harness::{Capture, Encapsulation, Lab, Netns, Result, eventually};

/// Starts a lab whose network `app` has a backend on its last host, published on port 8080 of all
/// hosts.
fn lab(encapsulation: Encapsulation) -> Result<Lab> {
    let lab = Lab::builder().hosts(2).encapsulation(encapsulation).start()?;
    create_network(&lab, "app", &[])?;
    Ok(lab)
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)
}

/// Asserts that TCP and UDP from port 8080 are answered.
#[track_caller]
fn is_answered(from: &Netns, target: SocketAddr, expected: IpAddr) -> Result<()> {
    let answer = ask_from(from, any(8080), target)?;
    assert_eq!(
        (answer.backend.as_str(), answer.client.ip()),
        ("outside", expected),
        "TCP from {}",
        from.name()
    );
    let socket = UdpClient::bind(from, any(8080))?;
    for _ in 0..3 {
        let answer = socket.ask(target, PATIENCE)?.unwrap_or_else(|| panic!("UDP from {}", from.name()));
        assert_eq!(
            (answer.backend.as_str(), answer.client.ip()),
            ("outside", expected),
            "UDP from {}",
            from.name()
        );
    }
    Ok(())
}

#[test]
fn answers_to_flows_from_a_published_port_reach_their_sender() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(encapsulation)?;
        let (host, client) = (lab.host(1), lab.client());
        let own: IpAddr = host.address().into();
        let container = lab.container(1, "c1", ["--network", "app"])?;
        let docker = lab.docker_like(1)?;
        let chosen: Vec<String> = (50000..50010).map(|port| format!("{port}:80/udp")).collect();
        let mut options = vec!["-p", "8080:80", "-p", "8080:80/udp"];
        options.extend(chosen.iter().flat_map(|port| ["-p", port.as_str()]));
        let _backends = web(&lab, &[2], &options)?;
        let _outside = WebServer::start(&client, "outside", 9990)?;
        let target = SocketAddr::new(lab.client_address(), 9990);
        for from in [container.netns(), host.netns(), docker.netns()] {
            is_answered(from, target, own)?;
        }
        // Every port that the container chooses is published.
        container.netns().sysctl("net.ipv4.ip_local_port_range", "50000 50009")?;
        for number in 0..60 {
            let socket = UdpClient::bind(container.netns(), any(0))?;
            let answer = socket.ask(target, PATIENCE)?.unwrap_or_else(|| panic!("query {number}"));
            assert_eq!(answer.backend, "outside");
        }
        // The service continues, also for the ports that were just used.
        for answer in [
            ask(&client, SocketAddr::new(own, 8080))?,
            ask_from(&client, any(9991), SocketAddr::new(own, 8080))?,
        ] {
            assert_eq!(answer.backend, "b1");
        }
        let answer = UdpClient::bind(&client, any(0))?.ask(SocketAddr::new(own, 8080), PATIENCE)?;
        assert_eq!(answer.expect("an answer").backend, "b1");
    }
    Ok(())
}

#[test]
fn ipv6_answers_to_flows_from_a_published_port_reach_their_sender() -> Result<()> {
    let lab = Lab::builder().hosts(2).underlay_ipv6(true).start()?;
    create_network(&lab, "app", &["--ipv6"])?;
    let host = lab.host(1);
    let container = lab.container(1, "c1", ["--network", "app"])?;
    let _backends = web(&lab, &[2], &["-p", "8080:80", "-p", "8080:80/udp"])?;
    let _outside = WebServer::start(&lab.client(), "outside", 9990)?;
    let target: SocketAddr = "[fd77::200]:9990".parse().expect("an address");
    let any: SocketAddr = "[::]:8080".parse().expect("an address");
    for from in [container.netns(), host.netns()] {
        assert_eq!(ask_from(from, any, target)?.backend, "outside", "TCP from {}", from.name());
        let answer = UdpClient::bind(from, any)?.ask(target, PATIENCE)?;
        assert_eq!(
            answer.map(|answer| answer.backend).as_deref(),
            Some("outside"),
            "UDP from {}",
            from.name()
        );
    }
    let own = host.address6().expect("an IPv6 underlay");
    assert_eq!(ask(&lab.client(), SocketAddr::new(own.into(), 8080))?.backend, "b1");
    Ok(())
}

/// A server outside that sends on request.
struct Outside {
    datagrams: UdpSocket,
    listener: TcpListener,
}

/// A flow over UDP and one over TCP: both ends of each.
struct Begun {
    datagrams: UdpSocket,
    stream: TcpStream,
    peer: SocketAddr,
    accepted: TcpStream,
}

impl Outside {
    fn start(netns: &Netns, address: IpAddr) -> io::Result<Self> {
        let (datagrams, listener) =
            within(netns, || Ok((UdpSocket::bind((address, 9990))?, TcpListener::bind((address, 9990))?)))?;
        datagrams.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { datagrams, listener })
    }

    /// Begins a flow of each kind from `port` in `netns`.
    fn begun_from(&self, netns: &Netns, port: u16) -> io::Result<Begun> {
        let target = self.datagrams.local_addr()?;
        netns.sysctl("net.ipv4.ip_local_port_range", &format!("{port} {port}")).map_err(io::Error::other)?;
        let (datagrams, stream) = within(netns, || {
            let datagrams = UdpSocket::bind(any(port))?;
            datagrams.send_to(b"hello", target)?;
            Ok((datagrams, TcpStream::connect(target)?))
        })?;
        datagrams.set_read_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (_, peer) = self.datagrams.recv_from(&mut [0; 16])?;
        let (accepted, _) = self.listener.accept()?;
        Ok(Begun { datagrams, stream, peer, accepted })
    }

    /// Sends first, in flows that have been silent since they began.
    fn speak_to(&self, begun: &mut Begun) -> io::Result<()> {
        let mut heard = [0; 4];
        self.datagrams.send_to(b"news", begun.peer)?;
        begun.datagrams.recv(&mut heard)?;
        assert_eq!(&heard, b"news", "UDP");
        begun.accepted.write_all(b"talk")?;
        begun.stream.read_exact(&mut heard)?;
        assert_eq!(&heard, b"talk", "TCP");
        Ok(())
    }
}

fn within<T: Send>(netns: &Netns, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    netns.enter(body).map_err(io::Error::other)?
}

#[test]
fn flows_that_began_before_their_port_was_published_continue() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(encapsulation)?;
        let (host, client) = (lab.host(1), lab.client());
        let container = lab.container(1, "c1", ["--network", "app"])?;
        let docker = lab.docker_like(1)?;
        let _backends = web(&lab, &[2], &["-p", "8080:80"])?;
        let failed = |error: io::Error| mesh_harness::Error::Traffic(error.to_string());
        let outside = Outside::start(&client, lab.client_address()).map_err(failed)?;
        let mut begun = Vec::new();
        for (netns, port) in [(container.netns(), 40000), (docker.netns(), 8090)] {
            let flows = outside.begun_from(netns, port).map_err(failed)?;
            assert_eq!(flows.peer, SocketAddr::new(host.address().into(), port), "the NAT keeps the port");
            begun.push(flows);
        }
        let ports = ["8090:80/tcp", "8090:80/udp", "40000:80/tcp", "40000:80/udp"];
        let options = ports.iter().flat_map(|port| ["--publish-add", port]);
        lab.host(1).meshctl(["service", "update", "web"].into_iter().chain(options))?.ok()?;
        for flows in &mut begun {
            outside.speak_to(flows).map_err(failed)?;
        }
        for port in [8090, 40000] {
            assert_eq!(ask(&client, SocketAddr::new(host.address().into(), port))?.backend, "b1");
        }
        // Flows that the container begins now soon get another port outside.
        drop(begun);
        let _web = WebServer::start(&client, "outside", 9991)?;
        let target = SocketAddr::new(lab.client_address(), 9991);
        eventually("the NAT's ports exclude the published one", PATIENCE, || {
            let table = host.run(["nft", "list", "table", "inet", "mesh"]);
            table.is_ok_and(|table| table.stdout.contains(":40001-"))
        })?;
        // From another container, since the first one's port is in TIME-WAIT.
        let other = lab.container(1, "c2", ["--network", "app"])?;
        let answer = ask_from(other.netns(), any(40000), target)?;
        assert_ne!(answer.client.port(), 40000, "{encapsulation:?}");
    }
    Ok(())
}

#[test]
fn an_answer_from_outside_does_not_loop_through_a_service() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(encapsulation)?;
        let (host, client) = (lab.host(1), lab.client());
        let container = lab.container(1, "c1", ["--network", "app"])?;
        let docker = lab.docker_like(1)?;
        let backend = lab.container(2, "b1", ["--network", "app"])?;
        let _echo = UdpEcho::start(backend.netns(), any(80))?;
        create_service(&lab, "web", &["-p", "8080:80/udp"])?;
        change_backend(&lab.host(1), "add", "web", "b1")?.ok()?;
        let outside = UdpEcho::start(&client, SocketAddr::new(lab.client_address(), 7777))?;
        let capture = Capture::options().with_outgoing().start(&client)?;
        for from in [container.netns(), host.netns(), docker.netns()] {
            let answer = udp_request(from, any(8080), outside.address(), b"round-trip", PATIENCE)?;
            assert_eq!(answer.as_deref(), Some(&b"round-trip"[..]), "from {}", from.name());
        }
        // A second echo request arrives before another container's answer.
        container.ping(lab.client_address())?.all_answered()?;
        let seen = capture.stop()?.containing(b"round-trip").count();
        assert_eq!(seen, 6, "{encapsulation:?}");
    }
    Ok(())
}
