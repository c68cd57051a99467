//! Failures around an engine.

use std::{net::UdpSocket, thread, time::Duration};

use mesh_harness::traffic::{Ping, UdpEcho, tcp_transfer};
use mesh_wireguard::{DropReason, Error, Userspace};

use crate::pair::{PORT, Pair, SOON, Setup, address, ask, inner};

#[test]
fn a_port_in_use_is_reported_and_leaves_no_device() {
    let mut pair = Pair::without_engines(Setup::default());
    let holder = pair.a.netns.enter(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    let error = pair.a.try_apply().unwrap_err();
    assert!(matches!(error, Error::PortTaken { port: PORT }), "{error}");
    assert!(!has_device(&pair.a.netns));
    drop(holder);
    pair.a.apply();
    assert!(has_device(&pair.a.netns));
}

#[test]
fn a_device_of_another_program_is_not_changed() {
    let mut pair = Pair::without_engines(Setup::default());
    for make in [
        vec!["tuntap", "add", "meshwg0", "mode", "tap", "multi_queue"],
        vec!["link", "add", "meshwg0", "type", "bridge"],
    ] {
        pair.a.netns.run(["ip"].into_iter().chain(make)).unwrap().ok().unwrap();
        let error = pair.a.try_apply().unwrap_err();
        assert!(matches!(error, Error::DeviceTaken { .. }), "{error}");
        assert!(has_device(&pair.a.netns));
        pair.a.netns.run(["ip", "link", "del", "meshwg0"]).unwrap().ok().unwrap();
    }
}

#[test]
fn the_device_is_removed_with_its_engine() {
    let mut pair = Pair::new();
    assert!(has_device(&pair.a.netns));
    pair.a.engine = Userspace::new();
    assert!(!has_device(&pair.a.netns));
}

fn has_device(netns: &mesh_harness::Netns) -> bool {
    netns.run(["ip", "link", "show", "meshwg0"]).unwrap().success()
}

#[test]
fn the_first_packet_waits_for_the_handshake() {
    let pair = Pair::new();
    let echo = UdpEcho::start(&pair.b.netns, (inner(2), 7000).into()).unwrap();
    assert!(ask(&pair.a.netns, echo.address(), b"first", SOON));
}

#[test]
fn packets_wait_for_a_peer_that_starts_later() {
    let mut pair = Pair::without_engines(Setup::default());
    pair.a.apply();
    address(&pair.a.netns, 1);
    // B's device is ready before B knows A: packets that wait then arrive with the handshake.
    let peers = std::mem::take(&mut pair.b.config.peers);
    pair.b.apply();
    address(&pair.b.netns, 2);
    let echo = UdpEcho::start(&pair.b.netns, (inner(2), 7000).into()).unwrap();
    let (a, b) = (&pair.a.netns, &mut pair.b);
    let asked = thread::scope(|scope| {
        let asked = scope.spawn(|| ask(a, echo.address(), b"early", SOON));
        b.wait_for_drop(DropReason::HandshakeRefused);
        b.config.peers = peers;
        b.apply();
        asked.join().unwrap()
    });
    assert!(asked);
}

#[test]
fn a_restarted_engine_is_reached_before_old_sessions_expire() {
    let mut pair = Pair::new();
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
    pair.b.engine = Userspace::new();
    pair.b.apply();
    address(&pair.b.netns, 2);
    let ping = Ping::new(inner(2).into())
        .count(10)
        .interval(Duration::from_millis(100))
        .wait(Duration::from_secs(1));
    let report = ping.run(&pair.a.netns).unwrap();
    assert!(report.received >= 9, "{report:?}");
}

#[test]
fn a_new_port_and_a_new_mtu_are_applied_without_losing_sessions() {
    let mut pair = Pair::new();
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
    pair.a.config.listen_port = PORT + 1;
    pair.a.config.inner_mtu = 1300;
    pair.a.apply();
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
    tcp_transfer(&pair.b.netns, &pair.a.netns, inner(1).into(), 1 << 20).unwrap();
    assert_eq!(pair.b.endpoint().unwrap().port(), PORT + 1);
    let link = pair.a.netns.run(["ip", "link", "show", "meshwg0"]).unwrap().text().unwrap();
    assert!(link.contains("mtu 1300"), "{link}");
}

#[test]
fn a_removed_peer_receives_nothing_until_it_is_added_again() {
    let mut pair = Pair::new();
    let echo = UdpEcho::start(&pair.b.netns, (inner(2), 7000).into()).unwrap();
    assert!(ask(&pair.a.netns, echo.address(), b"hello", SOON));
    let peers = std::mem::take(&mut pair.a.config.peers);
    pair.a.apply();
    assert!(!ask(&pair.a.netns, echo.address(), b"hello", Duration::from_millis(300)));
    pair.a.config.peers = peers;
    pair.a.apply();
    assert!(ask(&pair.a.netns, echo.address(), b"hello", SOON));
}

#[test]
fn an_idle_engine_uses_no_cpu_time() {
    let pair = Pair::new();
    Ping::new(inner(2).into()).count(2).run(&pair.a.netns).unwrap().all_answered().unwrap();
    let before = used_by_the_engines();
    thread::sleep(Duration::from_secs(2));
    let used = used_by_the_engines().saturating_sub(before);
    assert!(used <= Duration::from_millis(5), "{used:?} of two seconds");
}

/// Returns the CPU time of the engines' threads as measured by the scheduler. The ticks in
/// /proc/self/stat are samples, which over-represent a thread that wakes by the same clock.
fn used_by_the_engines() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let of_engines = threads
        .filter(|thread| std::fs::read_to_string(thread.join("comm")).unwrap().starts_with("wireguard-"));
    of_engines
        .map(|thread| {
            let stat = std::fs::read_to_string(thread.join("schedstat")).unwrap();
            Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
        })
        .sum()
}
