//! Endpoints whose record and its copy are both lost keep running, and their records are rebuilt.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_e2e::service::{change_backend, create_service, who_answers};
use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::traffic::LossMeter;
use mesh_harness::{Container, Encapsulation, Host, Lab, Result, eventually};
use serde_json::Value;

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().map(|file| file.expect("a file").path()).collect()
}

/// The endpoints' records and their copies.
fn records(host: &Host) -> Vec<PathBuf> {
    let dirs = [host.state_dir().join("endpoints"), host.path().join("run/endpoints")];
    dirs.iter().flat_map(|dir| files(dir)).collect()
}

fn endpoints(host: &Host) -> Vec<Value> {
    json(host, &["endpoint", "ls"]).ok().and_then(|all| all.as_array().cloned()).unwrap_or_default()
}

fn problems(host: &Host) -> String {
    json(host, &["status"]).map(|status| status["problems"].to_string()).unwrap_or_default()
}

/// Kills the agent, does the damage, starts the agent, and waits until it is in session.
fn restart_after(host: &Host, damage: impl FnOnce()) -> Result<()> {
    host.kill_meshd()?;
    damage();
    host.start_meshd()?;
    let mut seen = Value::Null;
    eventually(&format!("{} is in session", host.name()), PATIENCE, || {
        seen = json(host, &["status"]).unwrap_or_default();
        let is_in_session = seen["manager"].as_str().is_some_and(|manager| !manager.is_empty());
        is_in_session && seen["applied_revision"] == seen["revision"]
    })
    .inspect_err(|_| eprintln!("{seen:#}"))
}

/// The host's end of an endpoint's pair.
fn device(container: &Container) -> Result<String> {
    let id = container.endpoint()?["id"].as_str().unwrap_or_default().to_owned();
    Ok(format!("mesh{}", &id[..8]))
}

#[test]
fn an_endpoint_whose_record_and_copy_are_lost_is_kept_with_its_name_and_traffic() -> Result<()> {
    let lab = Lab::builder().hosts(2).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &["--ipv6"])?;
    create_network(&lab, "sec", &["--encrypted"])?;
    create_service(&lab, "web", &[])?;
    let (h1, h2) = (lab.host(1), lab.host(2));
    let a1 = lab.container(1, "a1", ["--network", "app"])?;
    let a2 = lab.container(2, "a2", ["--network", "app", "--alias", "db", "--allow-forwarding"])?;
    let server = a2.serve(80)?;
    change_backend(&h1, "add", "web", "a2")?.ok()?;
    let s1 = lab.container(1, "s1", ["--network", "sec"])?;
    let s2 = lab.container(2, "s2", ["--network", "sec", "--ifname", "net7"])?;
    s1.ping(s2.ipv4()?)?.all_answered()?;
    let mut flows = Vec::new();
    for (one, other) in [(&a1, &a2), (&s1, &s2)] {
        let target = other.ipv4()?.into();
        flows.push(LossMeter::start(one.netns(), other.netns(), target, Duration::from_millis(5))?);
    }
    let before = endpoints(&h1);
    assert_eq!(before.len(), 4);
    // The other ways to damage a record are in `damaged_state`.
    for (host, ways) in
        [(&h2, &[("emptied", false), ("filled", false), ("removed", true)][..]), (&h1, &[("removed", false)])]
    {
        for &(way, loses_view) in ways {
            restart_after(host, || {
                for path in records(host) {
                    match way {
                        "removed" => fs::remove_file(path),
                        "emptied" => fs::write(path, ""),
                        _ => fs::write(path, "\0garbage"),
                    }
                    .expect("a record");
                }
                if loses_view {
                    fs::remove_file(host.state_dir().join("view.json")).expect("a view");
                }
            })?;
            let what = format!("the records of {} were {way}, view lost: {loses_view}", host.name());
            let mut seen = Vec::new();
            eventually(&what, PATIENCE, || {
                seen = endpoints(&h1);
                seen == before
            })
            .inspect_err(|_| eprintln!("before: {before:#?}\nafter: {seen:#?}"))?;
            assert_eq!(
                records(host).iter().filter(|path| path.extension().is_some_and(|e| e == "json")).count(),
                4,
                "{what}"
            );
            assert_eq!(who_answers(&a1, mesh_e2e::service::vip(&lab, "web")?, 8)?, ["a2"], "{what}");
        }
    }
    for flow in flows {
        flow.wait_for_more(20, PATIENCE)?;
        flow.stop()?.nothing_lost()?;
    }
    // They are endpoints like all others: new ones get other addresses, and they can be detached.
    let new = lab.container(2, "new", ["--network", "app"])?;
    assert!(new.ipv4()? != a2.ipv4()?);
    new.ping(a1.ipv4()?)?.all_answered()?;
    drop(server);
    a2.detach()?.ok()?;
    assert!(!a2.exec(["ip", "link", "show", "eth0"])?.success());
    // What was detached does not come back.
    restart_after(&h2, || ())?;
    eventually("three endpoints and a new one", PATIENCE, || endpoints(&h1).len() == 4)
}

/// Devices that an earlier version made are not described.
#[test]
fn an_endpoint_of_which_only_the_device_is_left_is_kept_and_reported() -> Result<()> {
    let lab = Lab::builder().hosts(2).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &[])?;
    create_service(&lab, "web", &[])?;
    let (h1, h2) = (lab.host(1), lab.host(2));
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let (plain, backend) = (
        lab.container(2, "plain", ["--network", "app"])?,
        lab.container(2, "backend", ["--network", "app"])?,
    );
    let _server = backend.serve(80)?;
    change_backend(&h1, "add", "web", "backend")?.ok()?;
    let (address, devices) = (plain.ipv4()?, [device(&plain)?, device(&backend)?]);
    let lose = |host: &Host| {
        for device in &devices {
            host.run(["ip", "link", "set", device, "alias", ""])
                .and_then(mesh_harness::Output::ok)
                .expect("a device");
        }
        for path in records(host) {
            fs::remove_file(path).expect("a record");
        }
    };
    let flow = LossMeter::start(client.netns(), plain.netns(), address.into(), Duration::from_millis(5))?;
    restart_after(&h2, || lose(&h2))?;
    eventually("the lost name is reported", PATIENCE, || problems(&h2).contains("was lost and rebuilt"))?;
    flow.wait_for_more(20, PATIENCE)?;
    flow.stop()?.nothing_lost()?;
    let mut names: Vec<String> = Vec::new();
    eventually("the backend has its name", PATIENCE, || {
        let text = |one: &Value| one["name"].as_str().unwrap_or_default().to_owned();
        names = endpoints(&h1).iter().map(text).collect();
        names.len() == 3 && names.contains(&"backend".to_owned())
    })?;
    assert_eq!(who_answers(&client, mesh_e2e::service::vip(&lab, "web")?, 8)?, ["backend"]);
    let id = names.iter().find(|name| name.len() == 24).expect("the one without a name");
    assert_eq!(json(&h2, &["endpoint", "inspect", id])?["ipv4"], address.to_string());
    h2.meshctl(["endpoint", "detach", id])?.ok()?;
    let again = lab.container(2, "plain", ["--network", "app"])?;
    again.ping(client.ipv4()?)?.all_answered().map(drop)
}
