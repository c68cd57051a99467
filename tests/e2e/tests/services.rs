//! Virtual addresses: balancing, client addresses, and changes of backends.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use mesh_e2e::service::{
    TARGET, add_backend, any_port, assert_kept, assert_shares, change_backend, create_service,
    open_connections, vip, vip6, web, who_answers,
};
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, counted, create_network, json};
use mesh_harness::traffic::{Connection, Load, TcpSink, UdpClient, ask, load, tcp_send};
use mesh_harness::{Encapsulation, Lab, Result, eventually};

const GIB: u64 = 1 << 30;

fn lab(hosts: u8, encapsulation: Encapsulation, options: &[&str]) -> Result<Lab> {
    let lab = Lab::builder().hosts(hosts).encapsulation(encapsulation).start()?;
    create_network(&lab, "app", options)?;
    Ok(lab)
}

#[test]
fn a_vip_spreads_connections_evenly_and_backends_see_the_clients_address() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(3, encapsulation, &["--ipv6"])?;
        let _backends = web(&lab, &[1, 2, 3], &[])?;
        let client = lab.container(1, "caller", ["--network", "app"])?;
        let report = load(client.netns(), vip(&lab, "web")?, 6000, 4)?.all_answered()?;
        assert_shares(&report, &["b1", "b2", "b3"], 0.03);
        assert_eq!(report.seen_clients.into_iter().collect::<Vec<_>>(), [IpAddr::V4(client.ipv4()?)]);
        let report = load(client.netns(), vip6(&lab, "web")?, 300, 4)?.all_answered()?;
        assert_eq!(report.by_backend.len(), 3);
        assert_eq!(report.seen_clients.into_iter().collect::<Vec<_>>(), [IpAddr::V6(client.ipv6()?)]);
        // UDP too; each source port is a separate flow.
        let mut seen = BTreeMap::new();
        for _ in 0..60 {
            let socket = UdpClient::bind(client.netns(), any_port())?;
            let answer = socket.ask(vip(&lab, "web")?, PATIENCE)?.expect("an answer");
            assert_eq!(answer.client.ip(), client.ipv4()?);
            assert_eq!(
                socket.ask(vip(&lab, "web")?, PATIENCE)?.as_ref(),
                Some(&answer),
                "one flow, one backend"
            );
            *seen.entry(answer.backend).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(client.ping(vip(&lab, "web")?.ip())?.all_answered().is_ok());
    }
    Ok(())
}

#[test]
fn a_gibibyte_through_a_vip_arrives_undamaged_with_offloads_on_and_off() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation, &["--ipv6"])?;
        let backends = web(&lab, &[2], &[])?;
        let client = lab.container(1, "caller", ["--network", "app"])?;
        for offloads in [true, false] {
            lab.set_underlay_offloads(offloads)?;
            Connection::open(client.netns(), vip(&lab, "web")?)?.download(GIB)?;
            Connection::open(client.netns(), vip6(&lab, "web")?)?.download(GIB / 16)?;
            let sink = TcpSink::listen(backends[0].container.netns(), any_port())?;
            let target = SocketAddr::new(vip(&lab, "web")?.ip(), sink.address().port());
            let sent = tcp_send(client.netns(), target, GIB / 8, 1)?;
            assert_eq!(sink.finish()?.sha256, sent);
        }
    }
    Ok(())
}

/// Returns the backend of a connection from each of these source ports.
fn picks(client: &mesh_harness::Container, target: SocketAddr) -> Result<BTreeMap<u16, String>> {
    let address = client.ipv4()?.into();
    (20_000..21_000)
        .map(|port| {
            let source = SocketAddr::new(address, port);
            Ok((port, Connection::open_from(client.netns(), Some(source), target)?.ask()?.backend))
        })
        .collect()
}

#[test]
fn removing_one_of_ten_backends_moves_its_flows_and_resets_no_others() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct, &[])?;
    let _backends = web(&lab, &[1, 2, 1, 2, 1, 2, 1, 2, 1, 2], &[])?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let target = vip(&lab, "web")?;
    let before = picks(&client, target)?;
    let mut open = open_connections(client.netns(), target, 200)?;

    change_backend(&lab.host(1), "rm", "web", "b4")?.ok()?;
    for (backend, connection) in &mut open {
        match connection.ask() {
            Ok(answer) => assert_eq!(answer.backend, *backend),
            Err(error) => assert_eq!(backend, "b4", "{error}"),
        }
    }
    assert!(open.iter().any(|(backend, _)| backend == "b4"), "none of 200 connections went to b4");
    let after = picks(&client, target)?;
    let was_there = before.values().filter(|backend| *backend == "b4").count();
    let moved = before.iter().filter(|(port, backend)| after[port] != **backend).count();
    assert!(after.values().all(|backend| backend != "b4"));
    assert!(
        moved >= was_there && moved - was_there <= 10,
        "of 1000 flows {was_there} had to move, {moved} did"
    );
    Ok(())
}

#[test]
fn status_shows_how_many_flows_of_each_network_are_recorded() -> Result<()> {
    let lab = lab(1, Encapsulation::Direct, &[])?;
    let _backends = web(&lab, &[1], &[])?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let target = vip(&lab, "web")?;
    let mut open: Vec<Connection> =
        (0..20).map(|_| Connection::open(client.netns(), target)).collect::<Result<_>>()?;
    for connection in &mut open {
        // A flow that was answered once and used again stays.
        connection.ask()?;
        connection.ask()?;
    }
    let connections = json(&lab.host(1), &["status"])?["connections"].clone();
    let app = connections["networks"].as_array().into_iter().flatten().find(|one| one["network"] == "app");
    let entries = app.and_then(|app| app["entries"].as_u64());
    assert!(entries.is_some_and(|entries| (20..=40).contains(&entries)), "{connections}");
    Ok(())
}

#[test]
fn a_draining_backend_keeps_its_connections_and_gets_no_new_ones() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation, &[])?;
        let _backends = web(&lab, &[1, 2, 2], &[])?;
        let client = lab.container(1, "caller", ["--network", "app"])?;
        let target = vip(&lab, "web")?;
        let load = Load::start(client.netns(), target, 4);
        let mut open = open_connections(client.netns(), target, 60)?;
        change_backend(&lab.host(1), "drain", "web", "b2")?.ok()?;
        assert_eq!(who_answers(&client, target, 200)?, ["b1", "b3"]);
        assert_kept(&mut open)?;
        assert!(open.iter().any(|(backend, _)| backend == "b2"), "none of 60 connections went to b2");
        change_backend(&lab.host(1), "activate", "web", "b2")?.ok()?;
        assert_eq!(who_answers(&client, target, 200)?, ["b1", "b2", "b3"]);
        load.stop()?.all_answered()?;
    }
    Ok(())
}

#[test]
fn replacing_every_backend_one_by_one_fails_no_request() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(3, encapsulation, &[])?;
        let old = web(&lab, &[1, 2, 3], &["-p", "8080:80"])?;
        let client = lab.container(1, "caller", ["--network", "app"])?;
        let inside = Load::start(client.netns(), vip(&lab, "web")?, 4);
        let outside = Load::start(&lab.client(), SocketAddr::new(lab.host(2).address().into(), 8080), 4);
        let mut new = Vec::new();
        for (backend, host) in old.into_iter().zip(1..) {
            let name = backend.container.name();
            new.push(add_backend(&lab, host, &format!("new{host}"), "web")?);
            change_backend(&lab.host(1), "drain", "web", name)?.ok()?;
            // Requests that were running at the drain have ended by then.
            inside.wait_for_more(200, PATIENCE)?;
            outside.wait_for_more(200, PATIENCE)?;
            let answered = backend.server.answered();
            inside.wait_for_more(200, PATIENCE)?;
            assert_eq!(backend.server.answered(), answered, "{name} is drained");
            backend.container.detach()?.ok()?;
        }
        inside.wait_for_more(200, PATIENCE)?;
        let (inside, outside) = (inside.stop()?.all_answered()?, outside.stop()?.all_answered()?);
        for name in ["new1", "new2", "new3"] {
            assert!(inside.by_backend.contains_key(name) && outside.by_backend.contains_key(name));
        }
    }
    Ok(())
}

#[test]
fn a_udp_flow_moves_at_once_when_its_backend_is_removed() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation, &[])?;
        let _backends = web(&lab, &[1, 2, 2], &[])?;
        let client = lab.container(1, "caller", ["--network", "app"])?;
        let socket = UdpClient::bind(client.netns(), SocketAddr::new(client.ipv4()?.into(), 5353))?;
        let target = vip(&lab, "web")?;
        for left in (0..2).rev() {
            let first = socket.ask(target, PATIENCE)?.expect("an answer");
            change_backend(&lab.host(1), "rm", "web", &first.backend)?.ok()?;
            let next = socket.ask(target, PATIENCE)?.expect("an answer to the very next datagram");
            assert_ne!(next.backend, first.backend, "{left} backends left");
        }
    }
    Ok(())
}

#[test]
fn idle_connections_stay() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct, &[])?;
    let _backends = web(&lab, &[1, 2], &["-p", "8080:80"])?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let published = SocketAddr::new(lab.host(1).address().into(), 8080);
    let mut idle = open_connections(client.netns(), vip(&lab, "web")?, 20)?;
    idle.extend(open_connections(&lab.client(), published, 20)?);
    // The test is about idle connections: longer than other balancers keep them (900 s, IPVS).
    thread::sleep(Duration::from_secs(905));
    assert_kept(&mut idle)?;
    Ok(())
}

#[test]
fn a_container_reaches_itself_through_its_own_vip() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(1, encapsulation, &["--ipv6"])?;
        let backends = web(&lab, &[1], &[])?;
        let own = backends[0].container.netns();
        for target in [vip(&lab, "web")?, vip6(&lab, "web")?] {
            assert_eq!(ask(own, target)?.backend, "b1");
            Connection::open(own, target)?.download(GIB / 64)?;
        }
        let socket = UdpClient::bind(own, any_port())?;
        assert_eq!(socket.ask(vip(&lab, "web")?, PATIENCE)?.expect("an answer").backend, "b1");
    }
    Ok(())
}

#[test]
fn a_backends_refusal_reaches_the_client_at_once() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation, &["--ipv6"])?;
        let backends = web(&lab, &[1, 2], &[])?;
        for backend in &backends {
            // The kernel limits the rate of errors to one address.
            backend.container.netns().sysctl("net.ipv4.icmp_ratelimit", "0")?;
            backend.container.netns().sysctl("net.ipv6.icmp.ratelimit", "0")?;
        }
        create_service(&lab, "empty", &[])?;
        let client = lab.container(1, "caller", ["--network", "app"])?;
        let closed = |target: SocketAddr| SocketAddr::new(target.ip(), 81);
        // Closed ports, at local and remote backends; and a service without backends.
        for target in
            [closed(vip(&lab, "web")?), closed(vip6(&lab, "web")?), vip(&lab, "empty")?, vip6(&lab, "empty")?]
        {
            for _ in 0..10 {
                let error = ask(client.netns(), target).expect_err("nobody listens").to_string();
                assert!(error.contains("refused"), "{target}: {error}");
                let begin = Instant::now();
                // The error reaches the socket only if it quotes the packet that the socket sent.
                let any: IpAddr =
                    if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from([0u16; 8]) };
                let socket = UdpClient::bind(client.netns(), SocketAddr::new(any, 0))?;
                assert_eq!(socket.ask(target, PATIENCE)?, None, "{target}");
                assert!(begin.elapsed() < PATIENCE / 2, "{target}: refused, not timed out");
            }
        }
    }
    Ok(())
}

#[test]
fn a_vip_is_reachable_only_from_its_own_network() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation, &[])?;
        create_network(&lab, "other", &[])?;
        let _backends = web(&lab, &[1, 2], &[])?;
        let target = vip(&lab, "web")?;
        let inside = lab.container(1, "inside", ["--network", "app"])?;
        assert!(ask(inside.netns(), target).is_ok());
        let foreign = lab.container(1, "foreign", ["--network", "other"])?;
        foreign.ping(target.ip())?.none_answered()?;
        let device = ["ip", "route", "add", &target.ip().to_string(), "dev", "eth0"].map(str::to_owned);
        foreign.exec(device)?.ok()?;
        foreign.ping(target.ip())?.none_answered()?;
        let socket = UdpClient::bind(foreign.netns(), any_port())?;
        assert_eq!(socket.ask(target, Duration::from_millis(500))?, None);
        lab.client().run(["ip", "route", "add", &target.ip().to_string(), "via", "192.168.77.11"])?.ok()?;
        let socket = UdpClient::bind(&lab.client(), any_port())?;
        assert_eq!(socket.ask(target, Duration::from_millis(500))?, None);
    }
    Ok(())
}

#[test]
fn with_client_affinity_all_connections_of_a_client_go_to_one_backend() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct, &[])?;
    let _backends = web(&lab, &[1, 2, 2], &["--affinity", "client-ip", "-p", "8080:80"])?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    assert_eq!(who_answers(&client, vip(&lab, "web")?, 200)?.len(), 1);
    let mut seen = std::collections::BTreeSet::new();
    for host in lab.hosts() {
        let target = SocketAddr::new(host.address().into(), 8080);
        seen.extend(load(&lab.client(), target, 100, 2)?.all_answered()?.by_backend.into_keys());
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    Ok(())
}

#[test]
fn sixty_thousand_short_connections_through_a_vip_and_a_published_port_lose_nothing() -> Result<()> {
    let lab = lab(3, Encapsulation::Direct, &[])?;
    let backends = web(&lab, &[1, 2, 3], &["-p", "8080:80"])?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let published = SocketAddr::new(lab.host(1).address().into(), 8080);
    for (netns, target) in [(client.netns(), vip(&lab, "web")?), (&lab.client(), published)] {
        // More than there are ports: they are reused while earlier flows are still recorded.
        let report = load(netns, target, 60_000, 16)?.all_answered()?;
        assert_eq!(report.by_backend.len(), 3, "{:?}", report.by_backend);
        // A client that loses the start of a connection repeats it after a second.
        for netns in backends.iter().map(|backend| backend.container.netns()).chain([netns]) {
            assert_eq!(netns.tcp_counter("TCPSynRetrans")?, 0, "{}", netns.name());
        }
    }
    for host in lab.hosts() {
        for reason in ["no_backend", "refusal_answered", "translation_failed"] {
            assert_eq!(counted(&host, reason)?, 0, "{reason} on {}", host.name());
        }
    }
    Ok(())
}

#[test]
fn a_dead_hosts_backends_get_no_new_connections() -> Result<()> {
    let lab = lab(3, Encapsulation::Direct, &[])?;
    let _backends = web(&lab, &[1, 2, 3], &["-p", "8080:80"])?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let target = vip(&lab, "web")?;
    assert_eq!(who_answers(&client, target, 200)?, ["b1", "b2", "b3"]);
    lab.host(3).unplug()?;
    eventually("h3 is down", PATIENCE, || {
        lab.host(1).node_states().is_ok_and(|states| states.get("h3").is_some_and(|state| state == "down"))
    })?;
    let socket_answers = |target| -> Result<bool> {
        let socket = UdpClient::bind(client.netns(), any_port())?;
        Ok(socket.ask(target, Duration::from_millis(200))?.is_some())
    };
    eventually("only the living answer", PATIENCE, || {
        (0..30).all(|_| socket_answers(target).unwrap_or(false))
    })?;
    assert_eq!(who_answers(&client, target, 300)?, ["b1", "b2"]);
    let published = SocketAddr::new(lab.host(1).address().into(), 8080);
    let outside = load(&lab.client(), published, 300, 4)?.all_answered()?;
    assert_eq!(outside.by_backend.keys().collect::<Vec<_>>(), ["b1", "b2"]);
    lab.host(3).plug()?;
    lab.wait_ready(PATIENCE)?;
    eventually("b3 answers again", PATIENCE, || {
        who_answers(&client, target, 100).is_ok_and(|who| who.len() == 3)
    })
}

#[test]
fn killing_agents_fails_no_request_old_or_new() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation, &[])?;
        let _backends = web(&lab, &[1, 2], &["-p", "8080:80"])?;
        let client = lab.container(1, "caller", ["--network", "app"])?;
        let target = vip(&lab, "web")?;
        let published = SocketAddr::new(lab.host(1).address().into(), 8080);
        let loads = [Load::start(client.netns(), target, 2), Load::start(&lab.client(), published, 2)];
        let mut idle = open_connections(client.netns(), target, 50)?;
        idle.extend(open_connections(&lab.client(), published, 50)?);
        for host in lab.hosts() {
            host.kill_meshd()?;
            loads.iter().try_for_each(|load| load.wait_for_more(300, PATIENCE))?;
            host.start_meshd()?;
            lab.wait_ready(PATIENCE)?;
            loads.iter().try_for_each(|load| load.wait_for_more(300, PATIENCE))?;
        }
        assert_kept(&mut idle)?;
        for load in loads {
            load.stop()?.all_answered()?;
        }
    }
    Ok(())
}

#[test]
fn an_endpoint_attached_for_a_service_is_its_backend_until_it_is_detached() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct, &[])?;
    create_service(&lab, "web", &[])?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let backend = lab.container(2, "b1", ["--network", "app", "--service", "web"])?;
    let _server = backend.serve(TARGET)?;
    let target = vip(&lab, "web")?;
    assert_eq!(who_answers(&client, target, 10)?, ["b1"]);
    backend.detach()?.ok()?;
    assert!(ask(client.netns(), target).is_err());
    mesh_e2e::refused(&lab.host(2).container("b2", ["--network", "app", "--service", "nothing"])?.1, 3);
    let endpoints = mesh_e2e::json(&lab.host(1), &["endpoint", "ls"])?;
    assert_eq!(endpoints.as_array().map(Vec::len), Some(1), "the refused attach was undone: {endpoints}");
    Ok(())
}

#[test]
fn the_table_of_all_backends_grows_without_an_interruption() -> Result<()> {
    // Fewer entries than a service with three backends needs.
    let lab = Lab::builder().hosts(2).meshd_config("service_table_entries = 1024").start()?;
    create_network(&lab, "app", &[])?;
    let backends = web(&lab, &[1, 2, 2], &["-p", "8080:80"])?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let published = SocketAddr::new(lab.host(1).address().into(), 8080);
    let mut open = open_connections(client.netns(), vip(&lab, "web")?, 20)?;
    open.extend(open_connections(&lab.client(), published, 20)?);
    let loads = [Load::start(client.netns(), vip(&lab, "web")?, 2), Load::start(&lab.client(), published, 2)];
    for number in 1..=8 {
        let name = format!("more{number}");
        create_service(&lab, &name, &["-p", &format!("{}:80", 9000 + number)])?;
        for backend in &backends {
            change_backend(&lab.host(1), "add", &name, backend.container.name())?.ok()?;
        }
        assert_eq!(who_answers(&client, vip(&lab, &name)?, 200)?, ["b1", "b2", "b3"]);
    }
    for load in loads {
        load.stop()?.all_answered()?;
    }
    assert_kept(&mut open)?;
    // A host that starts from nothing makes room for all known services before it answers.
    lab.host(1).restart_meshd()?;
    lab.host(2).reboot()?;
    lab.wait_ready(PATIENCE)?;
    for host in lab.hosts() {
        eventually(&format!("{} has no problems", host.name()), PATIENCE, || {
            json(&host, &["status"]).is_ok_and(|status| status["problems"] == serde_json::json!([]))
        })?;
    }
    assert_eq!(who_answers(&client, vip(&lab, "more8")?, 100)?, ["b1"]);
    Ok(())
}
