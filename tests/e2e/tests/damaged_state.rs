//! State files that a crash emptied, truncated or filled with garbage: traffic on the host
//! continues.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_e2e::service::create_service;
use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::traffic::LossMeter;
use mesh_harness::{Encapsulation, Host, Lab, Result, eventually};
use serde_json::Value;

/// Returns the damaged contents to try for a file.
fn damages(path: &Path) -> [Vec<u8>; 3] {
    let whole = fs::read(path).expect("a state file");
    [Vec::new(), whole[..whole.len() / 2].to_vec(), b"\0\x01garbage\xff".to_vec()]
}

fn endpoints(host: &Host) -> Vec<Value> {
    json(host, &["endpoint", "ls"]).ok().and_then(|all| all.as_array().cloned()).unwrap_or_default()
}

/// Waits until a host's agent is in session and has applied the manager's records.
fn settled(host: &Host, what: &str) -> Result<()> {
    eventually(&format!("{} goes on after {what}", host.name()), PATIENCE, || {
        json(host, &["status"]).is_ok_and(|status| {
            let is_in_session = status["manager"].as_str().is_some_and(|manager| !manager.is_empty());
            is_in_session && status["applied_revision"] == status["revision"]
        })
    })
}

/// Kills the agent, damages all of the files at once in every way, and checks that the endpoints
/// are unchanged each time.
fn damage(lab: &Lab, host: &Host, paths: &[PathBuf]) -> Result<()> {
    let before = endpoints(&lab.host(1));
    let contents: Vec<[Vec<u8>; 3]> = paths.iter().map(|path| damages(path)).collect();
    for (way, name) in ["emptied", "cut short", "filled with garbage"].into_iter().enumerate() {
        host.kill_meshd()?;
        for (path, contents) in paths.iter().zip(&contents) {
            fs::write(path, &contents[way]).expect("a state file");
        }
        host.start_meshd()?;
        settled(host, &format!("files were {name}"))?;
        eventually(&format!("all endpoints are known after files were {name}"), PATIENCE, || {
            endpoints(&lab.host(1)) == before
        })?;
    }
    Ok(())
}

fn endpoint_files(host: &Host) -> Vec<PathBuf> {
    let files = fs::read_dir(host.state_dir().join("endpoints")).expect("a directory");
    files.map(|file| file.expect("a file").path()).collect()
}

#[test]
fn no_damaged_state_file_of_a_host_costs_a_packet_of_its_endpoints() -> Result<()> {
    let lab = Lab::builder().hosts(2).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &[])?;
    create_network(&lab, "sec", &["--encrypted"])?;
    create_service(&lab, "web", &["-p", "8080:80"])?;
    let mut flows = Vec::new();
    for network in ["app", "sec"] {
        let one = lab.container(1, &format!("{network}1"), ["--network", network])?;
        let other = lab.container(2, &format!("{network}2"), ["--network", network, "--alias", "db"])?;
        one.ping(other.ipv4()?)?.all_answered()?;
        let target = other.ipv4()?.into();
        flows.push((
            LossMeter::start(one.netns(), other.netns(), target, Duration::from_millis(5))?,
            one,
            other,
        ));
    }
    let host = lab.host(2);
    eventually("copies of the small files are kept", PATIENCE, || {
        ["member.json", "identity.pem", "wireguard.keys"]
            .iter()
            .all(|name| host.state_dir().join("copies").join(name).exists())
    })?;
    let names = ["view.json", "released.json", "names.json", "reserved-ports.json"];
    let small = ["member.json", "wireguard.keys", "identity.pem"];
    let mut paths: Vec<PathBuf> =
        names.iter().chain(&small).map(|name| host.state_dir().join(name)).collect();
    eventually("all files are there", PATIENCE, || paths.iter().all(|path| path.exists()))?;
    paths.extend(endpoint_files(&host));
    damage(&lab, &host, &paths)?;
    host.kill_meshd()?;
    for path in endpoint_files(&host) {
        fs::remove_file(path).expect("a record");
    }
    host.start_meshd()?;
    settled(&host, "records were lost")?;
    assert_eq!(endpoint_files(&host).len(), 2);
    for (flow, one, other) in flows {
        flow.wait_for_more(20, PATIENCE)?;
        flow.stop()?.nothing_lost()?;
        one.ping(other.ipv4()?)?.all_answered()?;
    }
    Ok(())
}

#[test]
fn lost_records_change_nothing_on_the_host_until_a_manager_sends_them() -> Result<()> {
    let lab = Lab::builder().hosts(2).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &[])?;
    let (c1, c2) =
        (lab.container(2, "c1", ["--network", "app"])?, lab.container(2, "c2", ["--network", "app"])?);
    let host = lab.host(2);
    lab.host(1).kill_meshd()?;
    for lost in [false, true] {
        host.kill_meshd()?;
        let view = host.state_dir().join("view.json");
        if lost { fs::remove_file(view) } else { fs::write(view, "") }.expect("a state file");
        host.start_meshd()?;
        eventually("the loss is reported", PATIENCE, || {
            json(&host, &["status"]).is_ok_and(|status| {
                status["problems"].to_string().contains("records of the cluster are lost")
            })
        })?;
        c1.ping(c2.ipv4()?)?.all_answered()?;
    }
    lab.host(1).start_meshd()?;
    settled(&host, "the manager's return")?;
    let new = lab.container(2, "new", ["--network", "app"])?;
    assert!(new.ipv4()? != c1.ipv4()? && new.ipv4()? != c2.ipv4()?);
    new.ping(c2.ipv4()?)?.all_answered().map(drop)
}

#[test]
fn a_managers_damaged_key_and_certificates_are_restored_and_a_damaged_store_is_reported() -> Result<()> {
    let lab = Lab::builder().hosts(2).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &[])?;
    let (c1, c2) =
        (lab.container(1, "c1", ["--network", "app"])?, lab.container(2, "c2", ["--network", "app"])?);
    let host = lab.host(1);
    let copies = host.state_dir().join("copies");
    eventually("copies are kept", PATIENCE, || copies.join("ca/ca.key").exists())?;
    let names = ["identity.pem", "ca/ca.crt", "ca/ca.key", "member.json", "view.json"];
    damage(&lab, &host, &names.map(|name| host.state_dir().join(name)))?;
    host.kill_meshd()?;
    let store = host.state_dir().join("store.redb");
    let whole = fs::read(&store).expect("a store");
    fs::write(&store, &whole[..whole.len() / 3]).expect("a store");
    host.start_meshd()?;
    let status = json(&host, &["status"])?;
    assert!(status["problems"].to_string().contains("serves no control plane"), "{status}");
    c1.ping(c2.ipv4()?)?.all_answered()?;
    host.kill_meshd()?;
    fs::write(&store, whole).expect("a store");
    host.start_meshd()?;
    settled(&host, "its store was restored")
}

#[test]
fn ports_that_others_reserved_stay_reserved() -> Result<()> {
    const SYSCTL: &str = "net.ipv4.ip_local_reserved_ports";
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "app", &[])?;
    let host = lab.host(1);
    let reserved = || -> Result<String> { host.run(["sysctl", "-n", SYSCTL])?.text() };
    let theirs: Vec<String> = (0..2000).map(|n| (40_001 + 2 * n).to_string()).collect();
    host.run(["sysctl", "-qw", &format!("{SYSCTL}={}", theirs.join(","))])?.ok()?;
    let before = reserved()?;
    create_service(&lab, "web", &["-p", "8080:80"])?;
    eventually("ours is reserved beside theirs", PATIENCE, || {
        reserved().is_ok_and(|now| now.trim() == format!("8080,{}", before.trim()))
    })?;
    // The record of Mesh's reservations is lost; the next agent still releases them.
    host.kill_meshd()?;
    fs::write(host.state_dir().join("reserved-ports.json"), "").expect("a record");
    host.start_meshd()?;
    settled(&host, "a lost record")?;
    host.meshctl(["service", "rm", "web"])?.ok()?;
    eventually("only theirs is left", PATIENCE, || reserved().is_ok_and(|now| now == before))
}
