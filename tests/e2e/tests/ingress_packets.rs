//! Services and packets that ordinary clients do not send: too big ones, SCTP, floods.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use mesh_e2e::service::{any_port, change_backend, vip, web};
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, create_network, refused};
use mesh_harness::traffic::{Connection, RawSocket, TcpSink, UdpClient, syn_flood, tcp_send, udp_request};
use mesh_harness::{Lab, Netns, Result, eventually};

/// Returns the path MTU that a machine has learned for an address.
fn path_mtu(netns: &Netns, address: IpAddr) -> Result<Option<u16>> {
    let route = netns.run(["ip", "route", "get", &address.to_string()])?.text()?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
    Ok(words.nth(1).and_then(|mtu| mtu.parse().ok()))
}

fn forget_path_mtus(netns: &Netns) -> Result<()> {
    for family in ["-4", "-6"] {
        netns.run(["ip", family, "route", "flush", "cache"])?.ok()?;
    }
    Ok(())
}

#[test]
fn senders_of_too_big_packets_to_a_published_port_learn_the_mtu() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(2).underlay_ipv6(true).encapsulation(encapsulation).start()?;
        create_network(&lab, "app", &["--ipv6"])?;
        let backends = web(&lab, &[2], &["-p", "8080:80/udp", "-p", "9000:9000"])?;
        let backend = &backends[0].container;
        // A segment is then as long as the client's network allows.
        backend.exec(["ip", "link", "set", "eth0", "mtu", "1500"])?.ok()?;
        let (client, host) = (lab.client(), lab.host(1));
        let own6 = host.address6().expect("an IPv6 underlay");
        for (address, headers) in [(IpAddr::from(host.address()), 28), (own6.into(), 48)] {
            for offloads in [true, false] {
                lab.set_underlay_offloads(offloads)?;
                forget_path_mtus(&client)?;
                let sink = TcpSink::listen(backend.netns(), SocketAddr::new([0u16; 8].into(), 9000))?;
                let sent = tcp_send(&client, SocketAddr::new(address, 9000), 4 << 20, 1)?;
                assert_eq!(sink.finish()?.sha256, sent);
                assert_eq!(path_mtu(&client, address)?, Some(1450), "{address}");
            }
            forget_path_mtus(&client)?;
            let any: IpAddr = if address.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
            let (any, target) = (SocketAddr::new(any, 0), SocketAddr::new(address, 8080));
            let ask =
                |length| udp_request(&client, any, target, &vec![7; length], Duration::from_millis(300));
            // The largest packet that fits is answered at once. A larger one is answered only once
            // the client knows the MTU and fragments it.
            assert!(ask(1450 - headers)?.is_some(), "{address}");
            assert_eq!(path_mtu(&client, address)?, None, "{address}");
            eventually("a longer datagram is answered", PATIENCE, || {
                ask(1451 - headers).is_ok_and(|answer| answer.is_some())
            })?;
            assert_eq!(path_mtu(&client, address)?, Some(1450), "{address}");
        }
    }
    Ok(())
}

#[test]
fn sctp_reaches_a_backend_through_every_host() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &[])?;
    // SCTP's checksum covers the ports, and cannot be updated by the programs.
    let renumbered =
        ["service", "create", "--name", "web", "--network", "app", "-p", "9998:9999/sctp"].map(str::to_owned);
    assert!(refused(&lab.host(1).meshctl(renumbered)?, 2).contains("9999:9999/sctp"));
    let backends = web(&lab, &[2], &["-p", "9999:9999/sctp"])?;
    let (client, server) = (RawSocket::sctp(&lab.client())?, RawSocket::sctp(backends[0].container.netns())?);
    let packet = |ports: [u16; 2], chunk: u8| {
        let header = ports.map(u16::to_be_bytes).concat();
        [&header[..], &[0, 0, 0, 0, 1, 2, 3, 4, chunk, 0, 0, 20], &[9; 16]].concat()
    };
    for (host, port) in lab.hosts().zip(5000..) {
        let (init, answer) = (packet([port, 9999], 1), packet([9999, port], 2));
        let mut sender = Ipv4Addr::UNSPECIFIED;
        // As SCTP does, repeat a packet until it is answered.
        eventually("the backend gets it", PATIENCE, || {
            let sent = client.send(&init, host.address());
            let got = sent.and_then(|()| server.receive(Duration::from_millis(200)));
            matches!(got, Ok(Some((from, packet))) if packet == init && { sender = from; true })
        })?;
        assert_eq!(IpAddr::from(sender), lab.client_address());
        server.send(&answer, sender)?;
        assert_eq!(client.receive(PATIENCE)?, Some((host.address(), answer)));
    }
    Ok(())
}

#[test]
fn a_flood_of_half_open_connections_does_not_affect_established_ones() -> Result<()> {
    const ENTRIES: u32 = 1024;
    let lab = Lab::builder().hosts(2).meshd_config(format!("connection_entries = {ENTRIES}")).start()?;
    create_network(&lab, "app", &[])?;
    let _backends = web(&lab, &[1, 2, 2], &["-p", "8080:80", "-p", "8080:80/udp"])?;
    let caller = lab.container(1, "caller", ["--network", "app"])?;
    let published = SocketAddrV4::new(lab.host(1).address(), 8080);
    let SocketAddr::V4(vip) = vip(&lab, "web")? else { panic!("a VIP of IPv4") };
    let (mut connections, mut datagrams) = (Vec::new(), Vec::new());
    for (netns, target) in [(caller.netns().clone(), vip.into()), (lab.client(), published.into())] {
        for _ in 0..40 {
            let mut connection = Connection::open(&netns, target)?;
            connections.push((connection.ask()?.backend, connection));
            let socket = UdpClient::bind(&netns, any_port())?;
            let first = socket.ask(target, PATIENCE)?.expect("an answer").backend;
            assert_eq!(socket.ask(target, PATIENCE)?.expect("an answer").backend, first);
            datagrams.push((first, socket, target));
        }
    }
    // From here on, lost flows go to b1.
    for backend in ["b2", "b3"] {
        change_backend(&lab.host(1), "drain", "web", backend)?.ok()?;
    }
    let own = caller.ipv4()?;
    let port = |number: u32| 1024 + u16::try_from(number % 60_000).unwrap_or(0);
    syn_flood(caller.netns(), vip, 10 * ENTRIES, |number| SocketAddrV4::new(own, port(number)))?;
    // Addresses that no machine has (RFC 2544).
    let stranger = |number: u32| Ipv4Addr::from_bits(0xc612_0000 + number % 5000);
    syn_flood(&lab.client(), published, 10 * ENTRIES, |number| {
        SocketAddrV4::new(stranger(number), port(number))
    })?;
    for (backend, connection) in &mut connections {
        assert_eq!(connection.ask()?.backend, *backend);
    }
    for (backend, socket, target) in &datagrams {
        assert_eq!(socket.ask(*target, PATIENCE)?.expect("an answer").backend, *backend);
    }
    for backend in ["b2", "b3"] {
        assert!(connections.iter().any(|(name, _)| name == backend), "none of 80 went to {backend}");
        assert!(datagrams.iter().any(|(name, ..)| name == backend), "none of 80 went to {backend}");
    }
    Ok(())
}
