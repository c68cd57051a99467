//! Encrypted networks: traffic between hosts is inside WireGuard or dropped.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mesh_e2e::encrypted::{
    CANARY, PROBES, WIREGUARD, answers, encrypted_lab, engines, is_only_wireguard, runs_engine,
};
use mesh_e2e::service::{add_backend, any_port, assert_shares, create_service, vip, vip6};
use mesh_e2e::{
    ENCAPSULATIONS, PATIENCE, counted, create_network, json, lab_with_app, largest_unfragmented, refused,
    underlay_capture,
};
use mesh_harness::traffic::{
    Connection, GsoTransfer, LossMeter, Ping, UdpClient, UdpEcho, ask, load, tcp_transfer, udp_request,
};
use mesh_harness::{
    Capture, Container, Encapsulation, Host, Lab, Netns, ProcessId, Result, eventually, wireguard_engine,
};

const SOON: Duration = Duration::from_secs(20);

/// Returns a backend's name, which it puts into every answer.
fn canary(number: usize) -> String {
    format!("{}-{number}", String::from_utf8_lossy(CANARY))
}

/// Sends the canary from one container to an address every few milliseconds, with or without a
/// receiver.
struct Talker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Talker {
    fn start(from: &Container, to: impl Into<IpAddr>) -> Result<Self> {
        let socket = from.netns().enter(|| UdpSocket::bind("0.0.0.0:0"))?.expect("a socket");
        let (stop, to) = (Arc::new(AtomicBool::new(false)), SocketAddr::new(to.into(), 9));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Without a route the kernel may return an error: only the wire counts.
                let _ = socket.send_to(CANARY, to);
                thread::sleep(Duration::from_millis(3));
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Kills a host's engine, like a crash.
fn end_engine(host: &Host) -> Result<()> {
    if wireguard_engine() == "kernel" {
        return host.run(["ip", "link", "del", "meshwg0"])?.ok().map(drop);
    }
    engines(host).into_iter().try_for_each(ProcessId::kill)
}

/// Returns the generations of a host's keys.
fn generations(host: &Host) -> Vec<u64> {
    let text = std::fs::read(host.state_dir().join("wireguard.keys")).unwrap_or_default();
    let keys: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    keys.as_array().into_iter().flatten().filter_map(|key| key["generation"].as_u64()).collect()
}

#[test]
fn containers_of_an_encrypted_network_reach_each_other_with_the_first_packet_over_both_families() -> Result<()>
{
    let lab = Lab::builder().hosts(3).start()?;
    let capture = underlay_capture(&lab)?;
    create_network(&lab, "secret", &["--encrypted", "--ipv6"])?;
    let mut containers: Vec<Container> = Vec::new();
    for (host, name) in [(1, "a"), (2, "b"), (3, "c"), (1, "d")] {
        let new = lab.container(host, name, ["--network", "secret"])?;
        for old in &containers {
            old.ping(new.ipv4()?)?.all_answered()?;
            new.ping(old.ipv6()?)?.all_answered()?;
        }
        containers.push(new);
    }
    let (a, b) = (&containers[0], &containers[1]);
    let echo = UdpEcho::start(b.netns(), SocketAddr::new(b.ipv4()?.into(), 0))?;
    let anywhere = SocketAddr::new(a.ipv4()?.into(), 0);
    let answer = udp_request(a.netns(), anywhere, echo.address(), CANARY, Duration::from_secs(3))?;
    assert_eq!(answer.as_deref(), Some(CANARY));
    is_only_wireguard(&capture.stop()?);

    let inspected = json(&lab.host(1), &["node", "inspect", "h2"])?;
    let peer = &inspected["wireguard"]["peers"][0];
    let engine = wireguard_engine();
    assert_eq!((&peer["node"], &inspected["wireguard"]["engine"]), (&"h2".into(), &engine.clone().into()));
    assert_eq!(peer["endpoint"], format!("{}:{WIREGUARD}", lab.host(2).address()));
    assert!(peer["last_handshake"].is_string() && peer["sent_bytes"].as_u64() > Some(0), "{peer}");
    let own = json(&lab.host(1), &["node", "inspect", "h1"])?;
    assert_eq!(own["wireguard"]["peers"].as_array().map(Vec::len), Some(2));
    let status = json(&lab.host(1), &["status"])?;
    assert_eq!(
        (&status["wireguard"]["engine"], &status["wireguard"]["reason"]),
        (&engine.clone().into(), &"set by option".into())
    );
    let table = lab.host(1).meshctl(["status", "--format", "table"])?.text()?;
    assert!(table.contains(&format!("{engine} (set by option)")), "{table}");
    let table = lab.host(1).meshctl(["node", "inspect", "h2", "--format", "table"])?.text()?;
    assert!(table.contains(&engine) && table.to_lowercase().contains("handshake"), "{table}");
    Ok(())
}

#[test]
fn a_node_without_an_encrypted_network_runs_no_engine() -> Result<()> {
    let (lab, _c) = lab_with_app(2, Encapsulation::Direct, &[])?;
    assert!(lab.hosts().all(|host| engines(&host).is_empty()));
    let inspected = json(&lab.host(1), &["node", "inspect", "h1"])?;
    assert_eq!(inspected["wireguard"]["engine"], serde_json::Value::Null);
    Ok(())
}

/// Returns a VXLAN packet with the canary from one container to another, as in an unencrypted
/// network.
fn in_the_clear(vni: u32, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(&vni.to_be_bytes()[1..]);
    packet.push(0);
    packet.extend([[2, 0x42].as_slice(), &to.octets(), &[2, 0x42], &from.octets(), &[8, 0]].concat());
    let length = u8::try_from(28 + CANARY.len()).expect("short");
    // The header's checksum is not checked on the path.
    packet.extend([0x45, 0, 0, length, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend([0x30, 0x39, 0, 9, 0, length - 20, 0, 0]);
    packet.extend(CANARY);
    packet
}

#[test]
fn unencrypted_packets_for_an_encrypted_network_are_never_delivered() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &["--encrypted"])?;
        let vni = json(&lab.host(1), &["network", "inspect", "app"])?["vni"].as_u64().expect("a number");
        let packet = in_the_clear(u32::try_from(vni).expect("24 bits"), c[1].ipv4()?, c[0].ipv4()?);
        let capture = Capture::start(c[0].netns())?;
        let before = counted(&lab.host(1), "encrypted_in_clear")?;
        // A process of a member, whose packets do not leave it, and a machine outside the cluster
        // with its address.
        let member = lab.host(2).address();
        let foreign = counted(&lab.host(2), "foreign_tunnel")?;
        lab.client().run(["ip", "addr", "add", &format!("{member}/32"), "dev", "eth0"])?.ok()?;
        for sender in [lab.host(2).netns().clone(), lab.client()] {
            let sent = sender.enter(|| {
                let socket = UdpSocket::bind((member, 0))?;
                (0..5).try_for_each(|_| socket.send_to(&packet, (lab.host(1).address(), 4789)).map(drop))
            })?;
            sent.expect("the datagrams leave");
        }
        eventually("each is counted", SOON, || {
            counted(&lab.host(1), "encrypted_in_clear").is_ok_and(|now| now >= before + 5)
                && counted(&lab.host(2), "foreign_tunnel").is_ok_and(|now| now >= foreign + 5)
        })?;
        assert_eq!(capture.stop()?.containing(CANARY).count(), 0, "{encapsulation:?}");
    }
    Ok(())
}

#[test]
fn gigabytes_and_bursts_arrive_undamaged_with_offloads_on_and_off() -> Result<()> {
    let (lab, c) = lab_with_app(2, Encapsulation::Direct, &["--encrypted", "--ipv6"])?;
    for (offloads, bytes) in [(true, 1 << 30), (false, 1 << 28)] {
        lab.set_underlay_offloads(offloads)?;
        tcp_transfer(c[0].netns(), c[1].netns(), c[1].ipv4()?.into(), bytes)?;
        tcp_transfer(c[1].netns(), c[0].netns(), c[0].ipv4()?.into(), bytes)?;
        tcp_transfer(c[1].netns(), c[0].netns(), c[0].ipv6()?.into(), bytes / 8)?;
        let bursts = GsoTransfer::new(1200, 20).bursts(20);
        bursts.run(c[0].netns(), c[1].netns(), c[1].ipv4()?.into())?.all_arrived()?;
        bursts.run(c[0].netns(), c[1].netns(), c[1].ipv6()?.into())?.all_arrived()?;
    }
    Ok(())
}

/// Returns a container's MTU, and the size of its TCP super-packets.
fn mtu_and_burst(container: &Container) -> Result<(u64, u64)> {
    let link: serde_json::Value = container.exec(["ip", "-d", "-j", "link", "show", "eth0"])?.json()?;
    let number = |key| link[0][key].as_u64().unwrap_or_default();
    Ok((number("mtu"), number("gso_max_size")))
}

/// Returns whether TCP splits this many bytes, minus the space for its headers (257 to 321 bytes),
/// into as many segments as fit one UDP send. Each segment is inside VXLAN and WireGuard (RFC 7348,
/// section 5; WireGuard's whitepaper, section 5.4.6).
fn fills_one_send(mtu: u64, burst: u64) -> bool {
    let segments = |free| burst.saturating_sub(free) / (mtu - 52);
    [257, 321].into_iter().all(|free| segments(free) == 65507 / (mtu + 50 + 32))
}

#[test]
fn an_encrypted_networks_mtu_leaves_room_for_wireguard_and_follows_the_underlay() -> Result<()> {
    let (lab, c) = encrypted_lab(2)?;
    let capture = underlay_capture(&lab)?;
    for underlay in [1500_u16, 1400, 9000] {
        lab.set_underlay_mtu(underlay.into())?;
        let expected = underlay - 110;
        eventually("both endpoints follow", Duration::from_secs(5), || {
            c.iter().all(|c| {
                mtu_and_burst(c)
                    .is_ok_and(|(mtu, burst)| mtu == u64::from(expected) && fills_one_send(mtu, burst))
            })
        })?;
        eventually("the engines follow", Duration::from_secs(5), || {
            largest_unfragmented(&c[0], c[1].ipv4().expect("an address"), expected)
                .is_ok_and(|r| r == (true, false))
        })?;
        tcp_transfer(c[0].netns(), c[1].netns(), c[1].ipv4()?.into(), 1 << 25)?;
        assert_eq!(json(&lab.host(1), &["network", "inspect", "app"])?["mtu"], expected);
    }
    let captured = capture.stop()?;
    assert_eq!(
        captured.frames.iter().filter(|frame| frame.is_fragment()).count(),
        0,
        "nothing is fragmented"
    );
    create_network(&lab, "clear", &[])?;
    let clear = lab.container(1, "plain", ["--network", "clear"])?;
    assert_eq!(mtu_and_burst(&clear)?, (8950, 65536), "a clear network's are what the kernel takes");
    // A sender that raises its own MTU is notified.
    c[0].exec(["ip", "link", "set", "eth0", "mtu", "9500"])?.ok()?;
    let ping = ["ping", "-c", "2", "-i", "0.2", "-W", "1", "-s", "9300", "-M", "do"];
    let told = c[0].exec([&ping[..], &[&c[1].ipv4()?.to_string()]].concat())?;
    let told = told.stdout + &told.stderr;
    assert!(told.contains("mtu = 8890") || told.contains("mtu=8890"), "{told}");
    assert!(counted(&lab.host(1), "too_big_answered")? > 0);
    // Packets that may be fragmented arrive, with or without fragmentation by the sender.
    let ping = ["ping", "-c", "2", "-i", "0.2", "-W", "1", "-s", "9300", "-M", "dont"];
    c[0].exec([&ping[..], &[&c[1].ipv4()?.to_string()]].concat())?.ok()?;
    tcp_transfer(c[0].netns(), c[1].netns(), c[1].ipv4()?.into(), 1 << 25)?;
    Ok(())
}

#[test]
fn a_vip_of_an_encrypted_network_is_balanced_inside_wireguard_only() -> Result<()> {
    let lab = Lab::builder().hosts(3).start()?;
    let capture = underlay_capture(&lab)?;
    create_network(&lab, "app", &["--encrypted", "--ipv6"])?;
    create_service(&lab, "web", &[])?;
    let names: Vec<String> = (1..4).map(canary).collect();
    let _backends = (1..)
        .zip(&names)
        .map(|(host, name)| add_backend(&lab, host, name, "web"))
        .collect::<Result<Vec<_>>>()?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let report = load(client.netns(), vip(&lab, "web")?, 3000, 4)?.all_answered()?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_shares(&report, &names, 0.03);
    assert_eq!(report.seen_clients.into_iter().collect::<Vec<_>>(), [IpAddr::V4(client.ipv4()?)]);
    let report = load(client.netns(), vip6(&lab, "web")?, 100, 4)?.all_answered()?;
    assert_eq!(report.seen_clients.into_iter().collect::<Vec<_>>(), [IpAddr::V6(client.ipv6()?)]);
    for _ in 0..20 {
        let answer = UdpClient::bind(client.netns(), any_port())?.ask(vip(&lab, "web")?, PATIENCE)?;
        assert_eq!(answer.expect("an answer").client.ip(), client.ipv4()?);
    }
    for _ in 0..3 {
        Connection::open(client.netns(), vip(&lab, "web")?)?.download(1 << 24)?;
    }
    is_only_wireguard(&capture.stop()?);
    Ok(())
}

#[test]
fn published_ports_of_an_encrypted_network_use_only_wireguard_between_hosts() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(3).encapsulation(encapsulation).start()?;
        create_network(&lab, "app", &["--encrypted"])?;
        create_service(&lab, "web", &["-p", "8080:80", "-p", "8080:80/udp"])?;
        // The third host does not even have the network.
        let _backend = add_backend(&lab, 2, &canary(1), "web")?;
        let caller = lab.container(1, "caller", ["--network", "app"])?;
        let answers = |from: &Netns, target: SocketAddr, client: IpAddr| -> Result<()> {
            let datagram = UdpClient::bind(from, any_port())?.ask(target, PATIENCE)?.expect("an answer");
            for answer in [ask(from, target)?, datagram] {
                assert_eq!((answer.backend, answer.client.ip()), (canary(1), client), "{target}");
            }
            Ok(())
        };
        // Between hosts, for clients on hosts: all of it inside WireGuard.
        let capture = underlay_capture(&lab)?;
        for host in lab.hosts() {
            let own = host.address().into();
            for target in [own, IpAddr::from([127, 0, 0, 1])] {
                answers(host.netns(), SocketAddr::new(target, 8080), own)?;
            }
        }
        answers(caller.netns(), (lab.host(1).address(), 8080).into(), caller.ipv4()?.into())?;
        is_only_wireguard(&capture.stop()?);
        // From outside it is unencrypted up to the receiving host, and no further.
        for host in lab.hosts() {
            let capture = underlay_capture(&lab)?;
            let target = SocketAddr::new(host.address().into(), 8080);
            answers(&lab.client(), target, lab.client_address())?;
            Connection::open(&lab.client(), target)?.download(1 << 24)?;
            let mut captured = capture.stop()?;
            captured.frames.retain(|frame| !frame.is_of(lab.client_address()));
            if host.name() == "h2" {
                assert_eq!(captured.containing(CANARY).count(), 0, "its own backend answers");
            } else {
                is_only_wireguard(&captured);
            }
        }
    }
    Ok(())
}

#[test]
fn killing_and_restarting_the_agents_loses_nothing_and_a_killed_engine_is_replaced() -> Result<()> {
    let (lab, c) = encrypted_lab(2)?;
    let capture = underlay_capture(&lab)?;
    let target = c[1].ipv4()?;
    c[0].ping(target)?.all_answered()?;
    let flow = LossMeter::start(c[0].netns(), c[1].netns(), target.into(), Duration::from_millis(1))?;
    let before: Vec<_> = lab.hosts().flat_map(|host| engines(&host)).collect();
    for host in [lab.host(1), lab.host(2)] {
        host.kill_meshd()?;
        flow.wait_for_more(300, SOON)?;
        host.restart_meshd()?;
        flow.wait_for_more(300, SOON)?;
    }
    let after: Vec<_> = lab.hosts().flat_map(|host| engines(&host)).collect();
    assert_eq!(before, after, "the engines went on");
    flow.stop()?.nothing_lost()?;

    let talker = Talker::start(&c[0], target)?;
    for host in [lab.host(1), lab.host(2)] {
        assert!(runs_engine(&host), "one engine on {}", host.name());
        end_engine(&host)?;
        eventually("another engine carries on", SOON, || answers(&c[0], target) && runs_engine(&host))?;
        assert_eq!(json(&host, &["status"])?["problems"], serde_json::json!([]));
    }
    drop(talker);
    is_only_wireguard(&capture.stop()?);
    tcp_transfer(c[0].netns(), c[1].netns(), target.into(), 1 << 25)?;
    Ok(())
}

/// If the kernel has WireGuard, its engine takes over; otherwise there is no engine, and an error.
#[test]
fn a_configured_engine_replaces_the_other_or_nothing_leaves_the_host() -> Result<()> {
    let (lab, c) = encrypted_lab(2)?;
    let capture = underlay_capture(&lab)?;
    let (target, host) = (c[1].ipv4()?, lab.host(1));
    c[0].ping(target)?.all_answered()?;
    let talker = Talker::start(&c[0], target)?;
    lab.set_wireguard_engine("kernel")?;
    host.restart_meshd()?;
    let mut works = false;
    eventually("the kernel's engine is there, or an error", SOON, || {
        let Ok(status) = json(&host, &["status"]) else { return false };
        works = status["wireguard"]["engine"] == "kernel";
        works || status["problems"].to_string().contains("the kernel has no WireGuard")
    })?;
    assert_eq!(engines(&host), Vec::new(), "nothing of the other engine is left");
    if works {
        eventually("it carries the network", SOON, || answers(&c[0], target))?;
    } else {
        Ping::new(target.into())
            .count(5)
            .wait(Duration::from_millis(300))
            .run(c[0].netns())?
            .none_answered()?;
        let (_, output) = host.container("e", ["--network", "app"])?;
        assert!(refused(&output, 1).contains("the kernel has no WireGuard"), "{output:?}");
        assert!(output.stderr.contains("hint: ") && output.stderr.contains("wireguard_engine"), "{output:?}");
    }
    lab.set_wireguard_engine("userspace")?;
    host.restart_meshd()?;
    eventually("the engine in user space carries on", SOON, || {
        answers(&c[0], target) && engines(&host).len() == 1
    })?;
    assert_eq!(json(&host, &["status"])?["wireguard"]["engine"], "userspace");
    drop(talker);
    is_only_wireguard(&capture.stop()?);
    Ok(())
}

/// Without an agent a dead engine is not replaced: the network is interrupted, but never
/// unencrypted.
#[test]
fn without_engine_and_agent_nothing_leaves_and_nothing_arrives() -> Result<()> {
    let (lab, c) = encrypted_lab(2)?;
    let capture = underlay_capture(&lab)?;
    let (target, host) = (c[1].ipv4()?, lab.host(1));
    c[0].ping(target)?.all_answered()?;
    let talkers = [Talker::start(&c[0], target)?, Talker::start(&c[1], c[0].ipv4()?)?];
    host.kill_meshd()?;
    end_engine(&host)?;
    Ping::new(target.into()).count(5).wait(Duration::from_millis(300)).run(c[0].netns())?.none_answered()?;
    host.start_meshd()?;
    eventually("the network is back", SOON, || answers(&c[0], target))?;
    drop(talkers);
    is_only_wireguard(&capture.stop()?);
    Ok(())
}

#[test]
fn a_canary_never_crosses_the_underlay_through_join_kill_leave_and_removal() -> Result<()> {
    let lab = Lab::builder().hosts(3).without_cluster().start()?;
    let capture = underlay_capture(&lab)?;
    lab.host(1).meshctl(["cluster", "init", "--advertise-addr", "192.168.77.11"])?.ok()?;
    create_network(&lab, "secret", &["--encrypted", "--subnet", "10.9.0.0/24"])?;
    let a = lab.container(1, "a", ["--network", "secret"])?;
    // To addresses that will exist later.
    let _talkers = (2..8)
        .map(|last| Talker::start(&a, Ipv4Addr::new(10, 9, 0, last * 32 + 2)))
        .collect::<Result<Vec<_>>>()?;
    let token = lab.host(1).join_token("worker")?;
    for number in [2, 3] {
        lab.host(number).join(&token, "192.168.77.11:7377")?.ok()?;
    }
    let b = lab.container(2, "b", ["--network", "secret"])?;
    let c = lab.container(3, "c", ["--network", "secret"])?;
    let (to_a, to_b, to_c) = (a.ipv4()?, b.ipv4()?, c.ipv4()?);
    let _more = [
        Talker::start(&a, to_b)?,
        Talker::start(&a, to_c)?,
        Talker::start(&b, to_a)?,
        Talker::start(&c, to_b)?,
    ];
    a.ping(to_b)?.all_answered()?;
    c.ping(to_b)?.all_answered()?;
    lab.host(2).kill_meshd()?;
    b.ping(to_c)?.all_answered()?;
    lab.host(2).restart_meshd()?;
    lab.host(1).restart_meshd()?;
    a.ping(to_c)?.all_answered()?;

    lab.host(2).meshctl(["cluster", "leave", "--force"])?.ok()?;
    assert_eq!(engines(&lab.host(2)), Vec::new(), "the engine has gone with the membership");
    assert!(!lab.host(2).run(["ip", "link", "show", "meshwg0"])?.success());
    assert!(!lab.host(2).state_dir().join("wireguard.keys").exists());
    lab.host(3).kill_meshd()?;
    lab.host(1).meshctl(["node", "rm", "--force", "h3"])?.ok()?;
    eventually("the removed node is cut off", SOON, || {
        c.ping(to_a).is_ok_and(|report| report.received == 0)
    })?;
    thread::sleep(Duration::from_millis(300));
    is_only_wireguard(&capture.stop()?);

    let engine_of_1 = engines(&lab.host(1));
    drop(lab);
    assert!(engine_of_1.iter().all(|engine| !engine.is_alive()), "the lab takes it down");
    Ok(())
}

#[test]
fn a_peer_with_a_wrong_key_is_disconnected_until_the_cluster_knows_it() -> Result<()> {
    let (lab, c) = encrypted_lab(2)?;
    let capture = underlay_capture(&lab)?;
    let (host, target) = (lab.host(2), c[1].ipv4()?);
    c[0].ping(target)?.all_answered()?;
    let talkers = [Talker::start(&c[0], target)?, Talker::start(&c[1], c[0].ipv4()?)?];
    // Another key, while it cannot be announced.
    host.kill_meshd()?;
    lab.host(1).kill_meshd()?;
    end_engine(&host)?;
    std::fs::remove_file(host.state_dir().join("wireguard.keys")).expect("the key file");
    host.start_meshd()?;
    eventually("the engine runs with the wrong key", SOON, || runs_engine(&host))?;
    Ping::new(target.into()).count(5).wait(Duration::from_millis(500)).run(c[0].netns())?.none_answered()?;
    lab.host(1).start_meshd()?;
    eventually("the new key is known", SOON, || answers(&c[0], target))?;
    drop(talkers);
    is_only_wireguard(&capture.stop()?);
    Ok(())
}

#[test]
fn a_damaged_key_file_and_a_taken_port_are_clear_errors_and_never_plaintext() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    let (good, bad) = (lab.host(1), lab.host(2));
    let capture = underlay_capture(&lab)?;
    create_network(&lab, "secret", &["--encrypted"])?;
    let a = lab.container(1, "a", ["--network", "secret"])?;

    let taken = bad.netns().enter(|| UdpSocket::bind(("0.0.0.0", WIREGUARD)))?.expect("the port is free");
    let (_, output) = bad.container("b", ["--network", "secret"])?;
    assert!(refused(&output, 4).contains("51820"), "{output:?}");
    let problems = json(&bad, &["status"])?["problems"].to_string();
    assert!(problems.contains("51820 for WireGuard is taken"), "{problems}");
    drop(taken);
    eventually("the engine has its port", SOON, || {
        json(&bad, &["status"]).is_ok_and(|status| status["problems"] == serde_json::json!([]))
    })?;
    let b = lab.container(2, "b", ["--network", "secret"])?;
    a.ping(b.ipv4()?)?.all_answered()?;

    bad.kill_meshd()?;
    end_engine(&bad)?;
    let key_file = bad.state_dir().join("wireguard.keys");
    let keys = std::fs::read(&key_file).expect("the key file");
    std::fs::write(&key_file, "garbage").expect("written");
    // The copy for restoring is damaged too.
    std::fs::write(bad.state_dir().join("copies/wireguard.keys"), "garbage").expect("written");
    let talker = Talker::start(&b, a.ipv4()?)?;
    bad.start_meshd()?;
    eventually("the damage is told", SOON, || {
        json(&bad, &["status"])
            .is_ok_and(|status| status["problems"].to_string().contains("wireguard.keys is damaged"))
    })?;
    let (_, output) = bad.container("c", ["--network", "secret"])?;
    assert!(refused(&output, 1).contains("wireguard.keys is damaged"), "{output:?}");
    assert!(counted(&bad, "no_key")? > 0);
    std::fs::write(&key_file, keys).expect("written");
    eventually("the mended file is taken", Duration::from_secs(30), || {
        answers(&b, a.ipv4().expect("an address"))
    })?;
    drop(talker);
    assert!(answers(&a, b.ipv4()?) && runs_engine(&good));
    is_only_wireguard(&capture.stop()?);
    Ok(())
}

#[test]
fn rotating_all_keys_under_load_resets_no_connection() -> Result<()> {
    let (lab, c) = encrypted_lab(3)?;
    let capture = Capture::options().snap_len(128).start(&lab.underlay())?;
    let (manager, target) = (lab.host(1), c[1].ipv4()?);
    let interval = Duration::from_millis(1);
    let there = LossMeter::start(c[0].netns(), c[1].netns(), target.into(), interval)?;
    let back = LossMeter::start(c[1].netns(), c[2].netns(), c[2].ipv4()?.into(), interval)?;
    for round in 2..4_u64 {
        let rotation = json(&manager, &["cluster", "rotate-keys"])?;
        assert_eq!((&rotation["generation"], &rotation["pending"]), (&round.into(), &serde_json::json!([])));
        // Fails if the connection is reset, or the data is altered.
        tcp_transfer(c[0].netns(), c[1].netns(), target.into(), 1 << 27)?;
        eventually("every node has its new key alone", Duration::from_secs(30), || {
            lab.hosts().all(|host| generations(&host) == [round])
        })?;
        there.wait_for_more(300, SOON)?;
        back.wait_for_more(300, SOON)?;
    }
    for meter in [there, back] {
        let report = meter.stop()?;
        assert!(
            report.lost.len() as u64 * 1000 <= report.sent,
            "{} of {} lost",
            report.lost.len(),
            report.sent
        );
    }
    assert!(lab.hosts().all(|host| runs_engine(&host)));
    let captured = capture.stop()?;
    assert_eq!(captured.vxlan().filter(|packet| !PROBES.contains(&packet.vni)).count(), 0);
    Ok(())
}
