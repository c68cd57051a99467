//! A host's own programs reach published ports at its addresses, which never hide another program's
//! socket.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use mesh_e2e::service::{both, web};
use mesh_e2e::{ENCAPSULATIONS, create_network};
use mesh_harness::traffic::ask;
use mesh_harness::{Host, Lab, Netns, Result};

const PORTS: [&str; 4] = ["-p", "8080:80", "-p", "8080:80/udp"];
/// Much longer than an answer takes, and much less than a TCP timeout.
const SOON: Duration = Duration::from_secs(5);

fn local(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), port)
}

/// Returns whether a program of the host that listens on an address receives TCP and UDP from
/// another program of the host.
fn heard(host: &Host, address: SocketAddr) -> Result<[bool; 2]> {
    host.netns().enter(|| {
        let (tcp, udp) = (TcpListener::bind(address).expect("free"), UdpSocket::bind(address).expect("free"));
        tcp.set_nonblocking(true).expect("a socket");
        udp.set_read_timeout(Some(SOON)).expect("a socket");
        let connection = TcpStream::connect_timeout(&address, SOON).expect("somebody listens");
        let caller = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
        caller.send_to(b"one", address).expect("a datagram");
        let by_sendto = udp.recv(&mut [0; 8]).is_ok();
        caller.connect(address).and_then(|()| caller.send(b"two").map(drop)).expect("a datagram");
        let by_connect = udp.recv(&mut [0; 8]).is_ok();
        let accepted = tcp.accept().is_ok_and(|(_, from)| Some(from) == connection.local_addr().ok());
        [accepted, by_sendto && by_connect]
    })
}

#[test]
fn a_published_port_does_not_hide_a_socket_of_the_host() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &[])?;
    let _backend = web(&lab, &[2], &["-p", "8099:80", "-p", "8099:80/udp"])?;
    let host = lab.host(1);
    let own = |port| SocketAddr::new(host.address().into(), port);
    for target in [local(1, 8099), own(8099)] {
        both(host.netns(), target)?;
    }
    // Of 127.0.0.0/8 only 127.0.0.1 is answered, and only without a listener there.
    for address in [local(2, 8099), local(53, 8099), local(1, 8099), own(8099)] {
        assert_eq!(heard(&host, address)?, [true, true], "{address}");
    }
    let wildcard = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 8099);
    assert!(host.netns().enter(|| TcpListener::bind(wildcard).is_ok())?);
    for address in [local(2, 8099), local(53, 8099)] {
        let error = ask(host.netns(), address).expect_err("nobody listens").to_string();
        assert!(error.contains("refused"), "{address}: {error}");
    }
    for target in [local(1, 8099), own(8099)] {
        both(host.netns(), target)?;
    }
    Ok(())
}

#[test]
fn queries_of_the_name_server_to_the_hosts_resolver_enter_no_service() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("mesh-own-calls-{}", std::process::id()));
    std::fs::write(&directory, "nameserver 127.0.0.1\n").expect("a file");
    let path = directory.to_string_lossy().into_owned();
    let lab = Lab::builder().hosts(1).meshd_args(["--resolv-conf", &path]).start()?;
    create_network(&lab, "app", &[])?;
    let host = lab.host(1);
    let backend = web(&lab, &[1], &["-p", "53:5353/udp", "-p", "53:5353"])?;
    let container = lab.container(1, "c1", ["--network", "app"])?;
    let server = backend[0].container.netns().enter(|| UdpSocket::bind("0.0.0.0:5353").expect("a port"))?;
    server.set_read_timeout(Some(SOON)).expect("a socket");
    // The host's other programs do reach the service.
    host.netns().enter(|| {
        let caller = UdpSocket::bind("0.0.0.0:0").expect("a port");
        caller.send_to(b"canary", "127.0.0.1:53").expect("a datagram");
    })?;
    let mut buffer = [0; 512];
    assert_eq!(
        server.recv(&mut buffer).map(|length| buffer[..length].to_vec()).ok(),
        Some(b"canary".to_vec())
    );
    for protocol in ["+notcp", "+tcp"] {
        let dig = ["dig", "+time=3", "+tries=1", protocol, "@10.64.0.1", "name.example"];
        let answer = container.exec(dig)?;
        assert!(answer.stdout.contains("SERVFAIL"), "{protocol}: {answer:?}");
    }
    server.set_nonblocking(true).expect("a socket");
    assert!(server.recv(&mut buffer).is_err(), "a query entered the service");
    // A listening resolver gets the queries, whatever is published.
    let resolver = host.netns().enter(|| UdpSocket::bind("127.0.0.1:53").expect("a port"))?;
    resolver.set_read_timeout(Some(SOON)).expect("a socket");
    let asked = container.cmd(["dig", "+time=1", "+tries=1", "@10.64.0.1", "other.example"]);
    let asking = std::thread::spawn(move || asked.output());
    assert!(resolver.recv(&mut buffer).is_ok(), "the resolver heard nothing");
    drop(asking.join());
    let _ = std::fs::remove_file(directory);
    Ok(())
}

/// A TCP connection that was answered once, and a connected UDP socket that was answered once.
struct Open {
    name: String,
    tcp: TcpStream,
    udp: UdpSocket,
}

fn open(netns: &Netns, target: SocketAddr) -> Result<Open> {
    let name = format!("{} at {target}", netns.name());
    let exchanged = netns.enter(|| {
        let mut tcp = TcpStream::connect_timeout(&target, SOON)?;
        tcp.set_read_timeout(Some(SOON))?;
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
        let _any = tcp.read(&mut [0; 4096])?;
        let any: IpAddr = if target.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let udp = UdpSocket::bind(SocketAddr::new(any, 0))?;
        udp.set_read_timeout(Some(SOON))?;
        udp.connect(target)?;
        udp.send(b"who")?;
        udp.recv(&mut [0; 4096])?;
        std::io::Result::Ok((tcp, udp))
    })?;
    let (tcp, udp) = exchanged.map_err(|error| mesh_harness::Error::Traffic(format!("{name}: {error}")))?;
    Ok(Open { name, tcp, udp })
}

/// Asserts that both get an error at their next use, because there is no backend any more.
fn assert_told(mut open: Open) {
    let name = &open.name;
    let told = open
        .tcp
        .write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        .and_then(|()| open.tcp.read(&mut [0; 4096]));
    let told = told.map_err(|error| error.kind());
    assert_eq!(told, Err(std::io::ErrorKind::ConnectionReset), "over TCP from {name}");
    let told =
        open.udp.send(b"who").and_then(|_| open.udp.recv(&mut [0; 4096])).map_err(|error| error.kind());
    assert_eq!(told, Err(std::io::ErrorKind::ConnectionRefused), "over UDP from {name}");
}

/// Returns every kind of client of published ports, with each address.
fn callers(lab: &Lab) -> Result<Vec<(Netns, SocketAddr)>> {
    let at = |address: IpAddr| SocketAddr::new(address, 8080);
    let container = lab.container(1, "caller", ["--network", "app"])?;
    let host = lab.host(1);
    let own = host.netns();
    let (outside, second) = (lab.client(), lab.second_client());
    let six = host.address6().expect("an IPv6 underlay");
    let targets = [
        (own, local(1, 8080)),
        (own, at(host.address().into())),
        (own, at(host.second_address().into())),
        (own, at(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]))),
        (own, at(six.into())),
        (own, at(lab.host(2).address().into())),
        (container.netns(), at(host.address().into())),
        (container.netns(), at(lab.host(2).address().into())),
        (&outside, at(host.address().into())),
        (&second, at(host.second_address().into())),
    ];
    Ok(targets.into_iter().map(|(netns, target)| (netns.clone(), target)).collect())
}

#[test]
fn clients_get_an_error_at_once_when_a_port_is_no_longer_published() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder()
            .hosts(2)
            .encapsulation(encapsulation)
            .underlay_ipv6(true)
            .second_nic(true)
            .start()?;
        create_network(&lab, "app", &["--ipv6"])?;
        let _backends = web(&lab, &[1, 2], &PORTS)?;
        let callers = callers(&lab)?;
        let all = || callers.iter().map(|(netns, target)| open(netns, *target)).collect::<Result<Vec<_>>>();
        let before = all()?;
        let port = ["service", "update", "web", "--publish-rm", "8080:80", "--publish-rm", "8080:80/udp"];
        lab.host(1).meshctl(port)?.ok()?;
        before.into_iter().for_each(assert_told);
        for (netns, target) in &callers {
            let error = ask(netns, *target).expect_err("published no more").to_string();
            assert!(error.contains("refused"), "{} at {target}: {error}", netns.name());
        }
        let port = ["service", "update", "web", "--publish-add", "8080:80", "--publish-add", "8080:80/udp"];
        lab.host(1).meshctl(port)?.ok()?;
        let before = all()?;
        lab.host(1).meshctl(["service", "rm", "web"])?.ok()?;
        before.into_iter().for_each(assert_told);
    }
    Ok(())
}
