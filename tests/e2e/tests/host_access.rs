//! Access of containers to the hosts: only names, published ports and answers, unless their network
//! allows more.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use mesh_e2e::service::web;
use mesh_e2e::{PATIENCE, counted, create_network, json, refused};
use mesh_harness::traffic::{UdpEcho, ask, udp_request};
use mesh_harness::{Container, Host, Lab, Netns, Result, eventually};

const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// How long to wait for an answer that must not arrive.
const SILENCE: Duration = Duration::from_millis(300);
const PORT: u16 = 9000;
const MANAGER: u16 = 7377;
const METRICS: u16 = 7380;

/// Listeners on all addresses of a host, over TCP and UDP, which send first. They run as long as
/// this value lives.
struct Listeners {
    _udp: Vec<UdpEcho>,
    _tcp: TcpListener,
}

impl Listeners {
    fn start(netns: &Netns, addresses: &[IpAddr]) -> Result<Self> {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT);
        // Answers must come from the requested address.
        let udp = addresses.iter().map(|address| UdpEcho::start(netns, SocketAddr::new(*address, PORT)));
        Ok(Self {
            _udp: udp.collect::<Result<_>>()?,
            _tcp: netns.enter(|| TcpListener::bind(any))?.expect("a free port"),
        })
    }
}

fn connects(from: &Container, target: SocketAddr) -> Result<bool> {
    from.netns().enter(|| TcpStream::connect_timeout(&target, SILENCE).is_ok())
}

fn is_answered(from: &Container, target: SocketAddr) -> bool {
    let any: IpAddr = if target.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    // A refusal ("port unreachable") is an error of the socket.
    udp_request(from.netns(), SocketAddr::new(any, 0), target, b"?", SILENCE).is_ok_and(|it| it.is_some())
}

fn policy(lab: &Lab, options: &[&str]) -> Result<()> {
    lab.host(1).meshctl([&["network", "update", "app"], options].concat())?.ok().map(drop)
}

/// Returns a host's addresses on the underlay.
fn underlay(host: &Host) -> [IpAddr; 2] {
    [host.address().into(), host.address6().expect("an IPv6 underlay").into()]
}

/// Returns the other addresses at which a container might reach its own host.
fn others(host: &Host) -> [IpAddr; 4] {
    let second = (host.second_address(), host.second_address6());
    [[10, 64, 0, 1].into(), [172, 17, 0, 1].into(), second.0.into(), second.1.into()]
}

fn resolves(container: &Container) -> Result<bool> {
    let asked = container.exec(["dig", "@10.64.0.1", "+short", "+tries=1", "+time=2", "c2.app"])?;
    let over_tcp =
        container.exec(["dig", "@10.64.0.1", "+tcp", "+short", "+tries=1", "+time=2", "c2.app"])?;
    let addresses = |output: &str| output.lines().filter(|line| line.parse::<Ipv4Addr>().is_ok()).count();
    Ok(addresses(&asked.stdout) == 1 && addresses(&over_tcp.stdout) == 1)
}

/// Adds everything to a host that containers must not reach: listeners, a metadata service, a
/// bridge of another runtime.
fn furnish(host: &Host) -> Result<()> {
    for command in [
        "ip link add md0 type veth peer name md1",
        "ip addr add 169.254.169.254/32 dev md0",
        "ip addr add fd00:ec2::254/128 dev md0 nodad",
        "ip addr add 172.17.0.1/16 dev md0",
        "ip link set md0 up",
    ] {
        host.run(command.split(' '))?.ok()?;
    }
    Ok(())
}

/// These ports at both addresses of a host.
fn sockets(host: &Host, ports: &[u16]) -> Vec<SocketAddr> {
    let addresses = [host.address(), host.second_address()].map(IpAddr::from);
    let targets = addresses.map(|address| ports.iter().map(move |port| SocketAddr::new(address, *port)));
    targets.into_iter().flatten().collect()
}

/// Asserts that a container of the first host reaches the service, at every host and at its VIP.
fn reaches_published(lab: &Lab, container: &Container) -> Result<()> {
    for host in lab.hosts() {
        let [v4, v6] = underlay(&host);
        let reached = if host.name() == "h1" { vec![v4, v6] } else { vec![v4] };
        for address in reached {
            ask(container.netns(), SocketAddr::new(address, 8080))?;
            assert!(is_answered(container, SocketAddr::new(address, 8080)), "published, UDP, {address}");
        }
    }
    let vip = json(&lab.host(1), &["service", "inspect", "web"])?["vip"].clone();
    let vip: IpAddr = vip.as_str().and_then(|vip| vip.parse().ok()).expect("a VIP");
    ask(container.netns(), SocketAddr::new(vip, 80)).map(drop)
}

#[test]
fn containers_reach_names_and_published_ports_of_hosts_and_no_other_socket_until_they_may() -> Result<()> {
    let metrics = format!("metrics_addr = \"0.0.0.0:{METRICS}\"");
    let lab = Lab::builder().hosts(2).underlay_ipv6(true).second_nic(true).meshd_config(metrics).start()?;
    create_network(&lab, "app", &["--ipv6"])?;
    assert_eq!(json(&lab.host(1), &["network", "inspect", "app"])?["host_access"], "dns");
    let backends = web(&lab, &[1, 2], &["-p", "8080:80", "-p", "8080:80/udp"])?;
    let c1 = lab.container(1, "c1", ["--network", "app"])?;
    let c2 = lab.container(2, "c2", ["--network", "app"])?;
    furnish(&lab.host(1))?;
    let metadata = [IpAddr::from(METADATA), METADATA_V6.into()];
    let own = [&underlay(&lab.host(1))[..], &others(&lab.host(1))].concat();
    let _own = Listeners::start(lab.host(1).netns(), &[&own[..], &metadata].concat())?;
    let second = IpAddr::from(lab.host(2).second_address());
    let later = Ipv4Addr::new(10, 99, 0, 77);
    lab.host(2).run(["ip", "addr", "add", &format!("{later}/24"), "dev", "eth1"])?.ok()?;
    let listeners = [&underlay(&lab.host(2))[..], &[second, later.into()]].concat();
    let _other = Listeners::start(lab.host(2).netns(), &listeners)?;
    // Containers reach no IPv6 outside.
    let hosts = [&own[..], &[lab.host(2).address().into(), second, later.into()]].concat();
    // Addresses that come are known to the other hosts soon.
    eventually("a new address of the other host is known", PATIENCE, || {
        connects(&c1, SocketAddr::new(later.into(), PORT)).is_ok_and(|reached| !reached)
    })?;
    let reach = |addresses: &[IpAddr], reached: bool| -> Result<()> {
        for address in addresses {
            let target = SocketAddr::new(*address, PORT);
            assert_eq!(connects(&c1, target)?, reached, "TCP to {target}");
            assert_eq!(is_answered(&c1, target), reached, "UDP to {target}");
        }
        Ok(())
    };
    // The manager's port and the metrics, of the own host and of the other one, at its first and
    // second address.
    let ports = [MANAGER, METRICS];
    let asked = [
        (&c1, sockets(&lab.host(1), &ports)),
        (&c1, ports.map(|port| SocketAddr::new(own[2], port)).to_vec()),
        (&c1, sockets(&lab.host(2), &[METRICS])),
        (&c2, sockets(&lab.host(1), &ports)),
        (&c2, sockets(&lab.host(2), &[METRICS])),
    ];
    let published = || reaches_published(&lab, &c1);

    let before = counted(&lab.host(1), "host_access")?;
    reach(&hosts, false)?;
    reach(&metadata, false)?;
    for (container, target) in asked.iter().flat_map(|(c, targets)| targets.iter().map(move |t| (c, t))) {
        let refused = container.netns().enter(|| TcpStream::connect_timeout(target, PATIENCE))?;
        let name = container.name();
        assert_eq!(
            refused.expect_err("not reached").kind(),
            ErrorKind::ConnectionRefused,
            "{name}, {target}"
        );
    }
    assert!(counted(&lab.host(1), "host_access")? >= before + 2 * hosts.len() as u64);
    assert!(resolves(&c1)?);
    c1.ping(Ipv4Addr::new(10, 64, 0, 1))?.all_answered()?;
    published()?;
    hosts_calls_are_answered(&lab.host(1), &backends[0].container)?;

    policy(&lab, &["--host-access", "all"])?;
    reach(&hosts, true)?;
    reach(&metadata, false)?;
    for (container, target) in asked.iter().flat_map(|(c, targets)| targets.iter().map(move |t| (c, t))) {
        // The manager listens at its advertised address only.
        if target.port() == METRICS || target.ip() == lab.host(1).address() {
            assert!(connects(container, *target)?, "{}, {target}", container.name());
        }
    }
    // What is open ends when the policy does.
    let stream = c1.netns().enter(|| TcpStream::connect((lab.host(1).address(), PORT)))?.expect("reached");
    let open = SocketAddr::new(lab.host(1).address().into(), PORT);
    let datagrams = c1.netns().enter(|| UdpSocket::bind("0.0.0.0:0"))?.expect("a socket");
    datagrams.connect(open).expect("an address");
    datagrams.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let answered = |socket: &UdpSocket| socket.send(b"?").is_ok() && socket.recv(&mut [0; 9]).is_ok();
    assert!(answered(&datagrams));
    let acknowledged = || unacknowledged(&c1).map(|left| left == 0);
    (&stream).write_all(b"heard").expect("sent");
    eventually("the segment is acknowledged", PATIENCE, || acknowledged().unwrap_or(false))?;

    policy(&lab, &["--host-access", "none"])?;
    reach(&hosts, false)?;
    assert!(!answered(&datagrams), "an old flow goes on");
    (&stream).write_all(b"unheard").expect("sent");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let told = (&stream).read(&mut [0; 9]).map_err(|error| error.kind());
    assert_eq!(told, Err(ErrorKind::ConnectionReset), "an old connection");
    assert!(!resolves(&c1)?);
    c1.ping(Ipv4Addr::new(10, 64, 0, 1))?.none_answered()?;
    published()?;
    hosts_calls_are_answered(&lab.host(1), &backends[0].container)?;

    policy(&lab, &["--host-access", "dns", "--metadata", "allow"])?;
    reach(&metadata, true)?;
    reach(&hosts, false)?;
    assert!(resolves(&c1)?);
    let listed = lab.host(1).meshctl(["network", "ls"])?.text()?;
    assert!(listed.contains("metadata allow"), "{listed}");
    Ok(())
}

/// Returns the number of sent but unacknowledged bytes of a container's TCP.
fn unacknowledged(container: &Container) -> Result<u32> {
    let sockets = container.exec(["ss", "-tnH", "state", "established", "dport", "=", ":9000"])?.text()?;
    let queues = sockets.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
    Ok(queues.sum())
}

/// Processes of the host contact a container over TCP, UDP and ICMP, with each kind of socket.
fn hosts_calls_are_answered(host: &Host, container: &Container) -> Result<()> {
    let address = container.ipv4()?;
    ask(host.netns(), SocketAddr::new(address.into(), 80))?;
    ask(host.netns(), SocketAddr::new(container.ipv6()?.into(), 80))?;
    let any = SocketAddr::new([0u8; 4].into(), 0);
    let echo = UdpEcho::start(container.netns(), SocketAddr::new(address.into(), PORT))?;
    assert!(udp_request(host.netns(), any, echo.address(), b"?", PATIENCE)?.is_some(), "UDP");
    mesh_harness::traffic::Ping::new(address.into()).run(host.netns())?.all_answered()?;
    // A long transfer, so that many packets return.
    let server = container.netns().enter(|| TcpListener::bind((address, 0)))?.expect("a free port");
    let target = server.local_addr().expect("an address");
    let caller = host.netns().enter(|| TcpStream::connect(target))?.expect("reached");
    let (mut accepted, _) = server.accept().expect("a caller");
    let sender = std::thread::spawn(move || accepted.write_all(&vec![7; 1 << 20]));
    let mut received = Vec::new();
    (&caller).read_to_end(&mut received).expect("all of it");
    assert_eq!(received.len(), 1 << 20);
    sender.join().expect("no panic").expect("all is sent");
    Ok(())
}

#[test]
fn networks_are_created_and_changed_with_valid_policies_only() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "open", &["--host-access", "all", "--metadata", "allow"])?;
    let inspected = json(&lab.host(1), &["network", "inspect", "open"])?;
    assert_eq!((&inspected["host_access"], &inspected["metadata"]), (&"all".into(), &"allow".into()));
    assert!(
        refused(&lab.host(1).meshctl(["network", "update", "none", "--host-access", "all"])?, 3)
            .contains("none")
    );
    assert_eq!(lab.host(1).meshctl(["network", "update", "open"])?.code, 2);
    let file = lab.host(1).path().join("compose.yaml");
    let apply = |policy: &str| -> Result<String> {
        let text =
            format!("name: shop\nnetworks:\n  app:\n    name: app\n    x-mesh: {{host-access: {policy}}}\n");
        std::fs::write(&file, text).expect("a file");
        lab.host(1).meshctl(["apply", "-f", &file.to_string_lossy()])?.text()
    };
    assert!(apply("none")?.contains("host access none"));
    assert_eq!(json(&lab.host(1), &["network", "inspect", "app"])?["host_access"], "none");
    assert_eq!(apply("all")?.trim(), "updated network app: host access all");
    assert_eq!(json(&lab.host(1), &["network", "inspect", "app"])?["host_access"], "all");
    assert_eq!(apply("all")?.trim(), "nothing changes");
    Ok(())
}
