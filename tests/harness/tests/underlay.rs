//! The lab without Mesh: its network, its instruments and its clean-up, on the real kernel. Needs
//! root.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use mesh_harness::{
    Capture, Lab, Netns, OUTSIDE_V4, OUTSIDE_V6, OwnedNetns, Result, eventually,
    traffic::{GsoTransfer, LossMeter, Ping, UdpEcho, WebServer, ask, tcp_transfer, udp_request},
};

fn two_hosts() -> Result<Lab> {
    Lab::builder().hosts(2).without_meshd().start()
}

fn ping(from: &Netns, to: impl Into<IpAddr>) -> Result<mesh_harness::traffic::PingReport> {
    Ping::new(to.into()).run(from)
}

#[test]
fn every_machine_reaches_every_other_and_the_outside() -> Result<()> {
    let begin = Instant::now();
    let lab = Lab::builder().hosts(3).underlay_ipv6(true).without_meshd().start()?;
    assert!(begin.elapsed() < Duration::from_secs(10), "three hosts took {:?}", begin.elapsed());
    assert_eq!(lab.host(3).address(), Ipv4Addr::new(192, 168, 77, 13));
    for from in lab.hosts() {
        for to in lab.hosts() {
            ping(from.netns(), to.address())?.all_answered()?;
            ping(from.netns(), to.address6().expect("an IPv6 underlay"))?.all_answered()?;
        }
        ping(from.netns(), lab.client_address())?.all_answered()?;
        ping(from.netns(), OUTSIDE_V4)?.all_answered()?;
        ping(from.netns(), OUTSIDE_V6)?.all_answered()?;
    }
    Ok(())
}

#[test]
fn two_labs_side_by_side_do_not_meet() -> Result<()> {
    let (one, two) = (two_hosts()?, two_hosts()?);
    assert_eq!(one.host(1).address(), two.host(1).address());
    two.host(2).unplug()?;
    ping(one.host(1).netns(), one.host(2).address())?.all_answered()?;
    Ok(())
}

#[test]
fn a_reply_counts_however_much_later_than_the_ones_before_it_comes() -> Result<()> {
    let lab = two_hosts()?;
    let (h1, h2) = (lab.host(1), lab.host(2));
    ping(h1.netns(), h2.address())?.all_answered()?;
    let interval = Duration::from_millis(500);
    let report = thread::scope(|scope| {
        let pings = scope.spawn(|| {
            Ping::new(h2.address().into())
                .count(2)
                .interval(interval)
                .wait(Duration::from_secs(5))
                .run(h1.netns())
        });
        // The second request is held back by neighbour discovery, which asks again a second later.
        thread::sleep(interval / 2);
        h2.unplug()?;
        h1.run(["ip", "neigh", "flush", "dev", "eth0"])?.ok()?;
        thread::sleep(interval);
        h2.plug()?;
        pings.join().expect("no panic")
    })?;
    report.all_answered()?;
    Ok(())
}

#[test]
fn an_unplugged_host_is_cut_off_but_keeps_its_carrier() -> Result<()> {
    let lab = two_hosts()?;
    let (h1, h2) = (lab.host(1), lab.host(2));
    h2.unplug()?;
    let quick = |from: &Netns, to: IpAddr| Ping::new(to).count(2).wait(Duration::from_millis(200)).run(from);
    quick(h1.netns(), h2.address().into())?.none_answered()?;
    quick(h2.netns(), mesh_harness::GATEWAY.into())?.none_answered()?;
    h2.run(["ip", "neigh", "flush", "dev", "eth0"])?.ok()?;
    quick(h2.netns(), mesh_harness::GATEWAY.into())?.none_answered()?;
    let link = h2.run(["ip", "-o", "link", "show", "dev", "eth0"])?.text()?;
    assert!(link.contains("LOWER_UP"), "{link}");
    h2.plug()?;
    ping(h1.netns(), h2.address())?.all_answered()?;
    Ok(())
}

#[test]
fn a_capture_sees_each_crossing_frame_once_from_the_first_on() -> Result<()> {
    let lab = two_hosts()?;
    let echo = UdpEcho::start(lab.host(2).netns(), SocketAddr::new(lab.host(2).address().into(), 0))?;
    let capture = Capture::start(&lab.underlay())?;
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let answer =
        udp_request(lab.host(1).netns(), any, echo.address(), b"a canary in a mine", Duration::from_secs(2))?;
    assert_eq!(answer.as_deref(), Some(&b"a canary in a mine"[..]));
    let captured = capture.stop()?;
    let seen: Vec<_> = captured.containing(b"canary").filter_map(mesh_harness::capture::Frame::udp).collect();
    assert_eq!(seen.len(), 2, "the request and its echo");
    assert_eq!((seen[0].src, seen[1].src), (lab.host(1).address().into(), lab.host(2).address().into()));
    assert_eq!((captured.lost, captured.containing(b"no such thing").count()), (0, 0));
    Ok(())
}

#[test]
fn a_vxlan_packet_of_the_kernels_own_is_recognised() -> Result<()> {
    let lab = two_hosts()?;
    for (host, peer, address) in [(1, 2, "10.9.0.1/24"), (2, 1, "10.9.0.2/24")] {
        let remote = lab.host(peer).address();
        let device = format!("link add vx0 type vxlan id 77 dstport 4789 remote {remote} dev eth0");
        let lines = [device, format!("addr add {address} dev vx0"), "link set vx0 up".to_owned()];
        mesh_harness::ip_batch_in(lab.host(host).netns(), &lines)?;
    }
    let capture = Capture::options().device("h1").start(&lab.underlay())?;
    ping(lab.host(1).netns(), Ipv4Addr::new(10, 9, 0, 2))?.all_answered()?;
    let captured = capture.stop()?;
    let requests = captured.vxlan().filter(|packet| packet.vni == 77 && packet.inner.len() == 98).count();
    assert_eq!(requests, 3);
    assert!(captured.vxlan().all(|packet| packet.outer.src == IpAddr::from(lab.host(1).address())));
    Ok(())
}

#[test]
fn transfers_arrive_as_sent_with_offloads_on_and_off() -> Result<()> {
    let lab = two_hosts()?;
    let (h1, h2) = (lab.host(1), lab.host(2));
    for offloads in [true, false] {
        lab.set_underlay_offloads(offloads)?;
        let report = tcp_transfer(h1.netns(), h2.netns(), h2.address().into(), 16 << 20)?;
        assert_eq!((report.bytes, report.peer.ip()), (16 << 20, h1.address().into()));
        let gso = GsoTransfer::new(1200, 20).bursts(10);
        gso.run(h1.netns(), h2.netns(), h2.address().into())?.all_arrived()?;
        gso.receive_coalesced().run(h1.netns(), h2.netns(), h2.address().into())?.all_arrived()?;
    }
    Ok(())
}

#[test]
fn the_underlay_mtu_can_be_changed_while_it_is_up() -> Result<()> {
    let lab = Lab::builder().hosts(2).underlay_mtu(9000).without_meshd().start()?;
    let (h1, h2) = (lab.host(1), lab.host(2));
    let whole = |bytes| Ping::new(h2.address().into()).size(bytes).dont_fragment();
    whole(8972).run(h1.netns())?.all_answered()?;
    lab.set_underlay_mtu(1400)?;
    whole(1372).run(h1.netns())?.all_answered()?;
    whole(1373).wait(Duration::from_millis(200)).run(h1.netns())?.none_answered()?;
    Ok(())
}

#[test]
fn the_loss_meter_counts_what_is_lost_and_nothing_else() -> Result<()> {
    let lab = two_hosts()?;
    let (h1, h2) = (lab.host(1), lab.host(2));
    let start = || LossMeter::start(h1.netns(), h2.netns(), h2.address().into(), Duration::from_millis(1));
    let meter = start()?;
    meter.wait_for_more(100, Duration::from_secs(5))?;
    let report = meter.stop()?.nothing_lost()?;
    assert!(report.sent == report.received && report.sent > 100, "{report:?}");

    let meter = start()?;
    h2.unplug()?;
    let at_cut = meter.received();
    eventually("time for some losses", Duration::from_secs(1), || false).expect_err("a plain wait");
    h2.plug()?;
    meter.wait_for_more(100, Duration::from_secs(5))?;
    let report = meter.stop()?;
    assert!(report.lost.len() > 100, "lost {}, {at_cut} had arrived before the cut", report.lost.len());
    assert_eq!(report.sent, report.received + report.lost.len() as u64);
    Ok(())
}

#[test]
fn a_lab_that_goes_takes_its_processes_and_namespaces_with_it() -> Result<()> {
    let lab = two_hosts()?;
    let container = lab.namespace(1, "web")?;
    let log = lab.path().join("sleep.log");
    let mut sleep = container.netns().cmd(["sleep", "1000"]).spawn(&log)?;
    assert!(sleep.is_running());
    let (path, prefix) = (lab.path(), lab.prefix().to_owned());
    drop(lab);
    assert!(!sleep.is_running(), "a process in a container outlived its lab");
    assert!(!container.netns().exists() && !path.exists());
    let names: Vec<_> =
        std::fs::read_dir("/run/netns").expect("namespaces").flatten().map(|e| e.file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with(&format!("{prefix}-"))), "{names:?}");
    Lab::down(&prefix)
}

#[test]
fn a_panicking_test_leaves_no_lab_behind() {
    let (send, receive) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let lab = two_hosts().expect("a lab");
        send.send(lab.client()).expect("a receiver");
        panic!("as a failing assertion does");
    });
    let client = receive.recv().expect("a lab was made");
    assert!(test.join().is_err());
    assert!(!client.exists());
}

#[test]
fn names_in_a_lab_are_taken_once() -> Result<()> {
    let lab = two_hosts()?;
    lab.namespace(1, "web")?;
    assert_eq!(lab.namespace(2, "web").expect_err("a taken name").exit_code(), 4);
    assert_eq!(lab.namespace(1, "h2").expect_err("a host's name").exit_code(), 4);
    assert_eq!(lab.namespace(1, "a/b").expect_err("no name").exit_code(), 2);
    assert_eq!(lab.container_named("db").expect_err("no such container").exit_code(), 3);
    assert_eq!(Lab::builder().prefix(lab.prefix()).start().expect_err("a second lab").exit_code(), 4);
    let status = lab.status()?;
    assert_eq!((status.hosts.len(), status.containers.len()), (2, 1));
    assert_eq!((status.hosts[0].meshd_pid, status.containers[0].host.as_str()), (None, "h1"));
    Ok(())
}

#[test]
fn a_command_on_a_host_sees_the_hosts_own_name() -> Result<()> {
    let machine = mesh_harness::Cmd::new(["uname", "-n"]).output()?.text()?;
    let lab = two_hosts()?;
    assert_eq!(lab.host(2).run(["uname", "-n"])?.text()?, "h2");
    assert_eq!(
        mesh_harness::Cmd::new(["uname", "-n"]).output()?.text()?,
        machine,
        "the machine's own name changed"
    );
    Ok(())
}

#[test]
fn commands_in_a_namespace_keep_exit_code_input_and_output() -> Result<()> {
    let netns = OwnedNetns::create(format!("mt{}-cmd", std::process::id()))?;
    let output = netns.cmd(["sh", "-c", "cat; echo problem >&2; exit 7"]).stdin("text").output()?;
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "text", "problem\n"));
    assert_eq!(netns.run(["sh", "-c", "kill -9 $$"])?.code, 128 + 9);
    // The shell's child holds the output open; it ends with the shell.
    let slow = netns.cmd(["sh", "-c", "sleep 100; true"]).timeout(Duration::from_millis(50)).output();
    assert!(matches!(slow, Err(mesh_harness::Error::CommandTimeout { .. })));
    let links = netns.run(["ip", "-o", "link"])?.text()?;
    assert_eq!(links.lines().count(), 1, "only lo: {links}");
    Ok(())
}

#[test]
fn two_cabled_hosts_reach_each_other_without_the_bridge() -> Result<()> {
    let lab = Lab::builder().cabled().without_meshd().start()?;
    lab.set_underlay_mtu(1600)?;
    lab.set_underlay_offloads(false)?;
    let capture = Capture::start(&lab.underlay())?;
    ping(lab.host(1).netns(), lab.host(2).address())?.all_answered()?;
    assert_eq!(
        capture.stop()?.containing(&lab.host(2).address().octets()).count(),
        0,
        "frames on the bridge"
    );
    Ok(())
}

#[test]
fn a_command_sees_the_resolv_conf_it_is_given_and_others_do_not() -> Result<()> {
    let lab = Lab::builder().hosts(1).without_meshd().start()?;
    let before = std::fs::read_to_string("/etc/resolv.conf").expect("the machine has one");
    let file = lab.path().join("names.conf");
    std::fs::write(&file, "nameserver 10.64.0.1\n").expect("a file");
    let seen = lab.client().cmd(["cat", "/etc/resolv.conf"]).resolv_conf(&file).output()?.text()?;
    assert_eq!(seen, "nameserver 10.64.0.1");
    assert_eq!(lab.client().run(["cat", "/etc/resolv.conf"])?.ok()?.stdout, before);
    Ok(())
}

#[test]
fn a_floating_address_is_reached_on_whichever_host_has_it() -> Result<()> {
    let lab = Lab::builder().hosts(2).without_meshd().start()?;
    let floating = Ipv4Addr::new(192, 168, 77, 250);
    let _servers = lab
        .hosts()
        .map(|host| WebServer::start(host.netns(), host.name(), 80))
        .collect::<Result<Vec<_>>>()?;
    lab.host(1).add_address(floating)?;
    assert_eq!(ask(&lab.client(), (floating, 80).into())?.backend, "h1");
    lab.move_address(floating, &lab.host(1), &lab.host(2))?;
    assert_eq!(ask(&lab.client(), (floating, 80).into())?.backend, "h2");
    Ok(())
}
