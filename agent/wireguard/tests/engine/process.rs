//! The engine in a separate process.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use mesh_harness::{
    Netns, ProcessId, eventually,
    traffic::{LossMeter, Ping, tcp_transfer},
};
use mesh_wireguard::{EngineCommand, EngineConfig, EngineKind, EngineProcess, Error, WireguardEngine};

use crate::pair::{Pair, SOON, Setup, address, inner};

fn command(version: &str) -> EngineCommand {
    EngineCommand {
        program: env!("CARGO_BIN_EXE_mesh-wireguard-engine").into(),
        args: Vec::new(),
        version: version.to_owned(),
    }
}

fn connect(netns: &Netns, folder: &Path, version: &str) -> EngineProcess {
    netns.enter(|| EngineProcess::connect_or_spawn(folder, command(version))).unwrap().unwrap()
}

/// Starts B in this process, and A in a separate one.
fn start(folder: &Path) -> (Pair, EngineProcess, EngineConfig) {
    let mut pair = Pair::without_engines(Setup::default());
    let mut engine = connect(&pair.a.netns, folder, "1");
    engine.apply(&pair.a.config).unwrap();
    address(&pair.a.netns, 1);
    pair.b.apply();
    address(&pair.b.netns, 2);
    let config = pair.a.config.clone();
    (pair, engine, config)
}

fn device_index(netns: &Netns) -> Option<String> {
    let link = netns.run(["ip", "-o", "link", "show", "meshwg0"]).unwrap();
    link.success().then(|| link.stdout.split(':').next().unwrap().to_owned())
}

fn identity(engine: &EngineProcess) -> ProcessId {
    ProcessId::of(engine.pid().unwrap().cast_signed()).unwrap()
}

#[test]
fn traffic_continues_when_the_daemon_dies_and_the_next_adopts_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    let (pair, engine, config) = start(folder.path());
    let meter =
        LossMeter::start(&pair.a.netns, &pair.b.netns, inner(2).into(), Duration::from_millis(1)).unwrap();
    let pid = engine.pid();
    drop(engine);
    meter.wait_for_more(200, SOON).unwrap();
    let mut adopted = connect(&pair.a.netns, folder.path(), "1");
    assert_eq!(adopted.pid(), pid);
    adopted.apply(&config).unwrap();
    meter.wait_for_more(200, SOON).unwrap();
    meter.stop().unwrap().nothing_lost().unwrap();
    let status = adopted.status().unwrap();
    assert!(status.peers[&7].tx_bytes > 0 && status.peers[&7].last_handshake.is_some());
    adopted.remove().unwrap();
}

#[test]
fn the_process_has_its_own_session_and_a_private_socket() {
    let folder = tempfile::tempdir().unwrap();
    let (_pair, mut engine, _) = start(folder.path());
    let mode = std::fs::metadata(folder.path().join("wireguard.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let pid = engine.pid().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string());
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments = String::from_utf8_lossy(&arguments).into_owned();
    assert!(!arguments.contains('='), "no key on the command line: {arguments}");
    engine.remove().unwrap();
}

#[test]
fn another_version_takes_over_the_device_with_a_short_interruption() {
    let folder = tempfile::tempdir().unwrap();
    let (pair, engine, config) = start(folder.path());
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
    let (old, index) = (identity(&engine), device_index(&pair.a.netns));
    let meter =
        LossMeter::start(&pair.a.netns, &pair.b.netns, inner(2).into(), Duration::from_millis(1)).unwrap();
    drop(engine);
    let mut new = connect(&pair.a.netns, folder.path(), "2");
    new.apply(&config).unwrap();
    meter.wait_for_more(200, SOON).unwrap();
    let report = meter.stop().unwrap();
    assert!(report.lost.len() <= 20, "{} of {} lost", report.lost.len(), report.sent);
    assert_ne!(identity(&new), old);
    eventually("end of the old process", SOON, || !old.is_alive()).unwrap();
    assert_eq!(device_index(&pair.a.netns), index, "the device is the same");
    tcp_transfer(&pair.b.netns, &pair.a.netns, inner(1).into(), 1 << 20).unwrap();
    new.remove().unwrap();
}

#[test]
fn a_killed_engine_loses_its_device_and_is_replaced_at_the_next_apply() {
    let folder = tempfile::tempdir().unwrap();
    let (pair, mut engine, config) = start(folder.path());
    Ping::new(inner(2).into()).count(1).run(&pair.a.netns).unwrap().all_answered().unwrap();
    identity(&engine).kill().unwrap();
    eventually("end of the device", SOON, || device_index(&pair.a.netns).is_none()).unwrap();
    assert!(matches!(engine.status(), Err(Error::Process(_))));
    pair.a.netns.enter(|| engine.apply(&config)).unwrap().unwrap();
    address(&pair.a.netns, 1);
    Ping::new(inner(2).into()).count(5).run(&pair.a.netns).unwrap();
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
    engine.remove().unwrap();
}

#[test]
fn a_suspended_engine_is_detected_and_replaced_at_the_next_apply() {
    let folder = tempfile::tempdir().unwrap();
    let (pair, mut engine, config) = start(folder.path());
    engine.check().unwrap();
    let old = identity(&engine);
    old.suspend().unwrap();
    let mut noticed = String::new();
    eventually("the engine is missed", SOON, || {
        noticed = engine.check().err().map(|error| error.to_string()).unwrap_or_default();
        !noticed.is_empty()
    })
    .unwrap();
    // A busy machine may first see that it does not respond.
    assert!(["is suspended", "does not respond"].iter().any(|why| noticed.contains(why)), "{noticed}");
    assert!(!old.is_alive() && device_index(&pair.a.netns).is_none(), "nothing of it is left");
    pair.a.netns.enter(|| engine.apply(&config)).unwrap().unwrap();
    address(&pair.a.netns, 1);
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
    engine.check().unwrap();
    // A new daemon does not wait for it, whether or not it needs an engine.
    for end in [true, false] {
        identity(&engine).suspend().unwrap();
        if end {
            engine = connect(&pair.a.netns, folder.path(), "1");
        } else {
            EngineProcess::stop_running(folder.path()).unwrap();
        }
        assert_eq!(device_index(&pair.a.netns), None);
    }
}

#[test]
fn a_deleted_renamed_or_changed_device_is_restored_at_the_next_apply() {
    let folder = tempfile::tempdir().unwrap();
    let (pair, mut engine, config) = start(folder.path());
    let process = identity(&engine);
    for damage in [
        &["del", "meshwg0"][..],
        &["set", "meshwg0", "down"],
        &["set", "meshwg0", "mtu", "1000"],
        &["set", "meshwg0", "name", "theirs"],
    ] {
        if damage.contains(&"name") {
            pair.a.netns.run(["ip", "link", "set", "meshwg0", "down"]).unwrap().ok().unwrap();
        }
        pair.a.netns.run([&["ip", "link"], damage].concat()).unwrap().ok().unwrap();
        assert!(
            !pair.a.netns.enter(|| config.device_is_intact(EngineKind::Userspace)).unwrap(),
            "{damage:?}"
        );
        pair.a.netns.enter(|| engine.apply(&config)).unwrap().unwrap();
        assert!(pair.a.netns.enter(|| config.device_is_intact(EngineKind::Userspace)).unwrap(), "{damage:?}");
        let _ = pair.a.netns.run(["ip", "addr", "flush", "dev", "meshwg0"]).unwrap();
        address(&pair.a.netns, 1);
        tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
    }
    assert_eq!(identity(&engine), process, "the process went on");
    engine.remove().unwrap();
}

#[test]
fn a_stopped_engine_leaves_no_process_and_no_device() {
    let folder = tempfile::tempdir().unwrap();
    let (pair, mut engine, _) = start(folder.path());
    let process = identity(&engine);
    engine.remove().unwrap();
    eventually("end of the process", SOON, || !process.is_alive()).unwrap();
    assert_eq!(device_index(&pair.a.netns), None);
    assert!(!folder.path().join("wireguard.sock").exists());
}

#[test]
fn an_error_of_the_engine_reaches_the_daemon_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::without_engines(Setup::default());
    let holder = pair.a.netns.enter(|| std::net::UdpSocket::bind("0.0.0.0:51820")).unwrap().unwrap();
    let mut engine = connect(&pair.a.netns, folder.path(), "1");
    let error = engine.apply(&pair.a.config).unwrap_err().to_string();
    assert_eq!(error, "UDP port 51820 for WireGuard is taken by another program");
    drop(holder);
    engine.apply(&pair.a.config).unwrap();
    engine.remove().unwrap();
}

#[test]
fn a_program_that_is_not_an_engine_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let broken = EngineCommand { program: "/bin/false".into(), args: Vec::new(), version: "1".to_owned() };
    let error = EngineProcess::connect_or_spawn(folder.path(), broken).unwrap_err().to_string();
    assert!(error.contains("ended at once"), "{error}");
}
