//! Output of commands for a real cluster: dry runs, backends with traffic, names, and hints.

use std::path::Path;
use std::time::Duration;

use mesh_e2e::service::{change_backend, create_service};
use mesh_e2e::{create_network, json, refused};
use mesh_harness::{Host, Lab, Output, Result, eventually};

/// Timeout of all waits.
const PATIENCE: Duration = Duration::from_secs(20);

fn apply(host: &Host, file: &Path, text: &str, flags: &[&str]) -> Result<Output> {
    std::fs::write(file, text).expect("the lab's folder can be written to");
    let file = file.display().to_string();
    host.meshctl([&["apply", "-f", &file], flags].concat())
}

#[test]
fn a_dry_run_fails_where_the_run_fails_and_neither_changes_anything() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    let (manager, worker) = (lab.host(1), lab.host(2));
    let file = lab.path().join("compose.yaml");
    let gateway = manager.address().to_string();
    worker.run(["ip", "route", "add", "10.99.0.0/16", "via", &gateway])?.ok()?;
    // An agent reports its host's routes when its session begins.
    worker.restart_meshd()?;
    let listen = "import socket,time; s=socket.socket(); s.bind(('', 8085)); s.listen(); print('up', flush=True); time.sleep(600)";
    let _listener = worker.cmd(["python3", "-c", listen]).spawn(&lab.path().join("listener.log"))?;
    let text = "name: shop\nnetworks:\n  fine:\n  bad: {ipam: {config: [{subnet: 10.99.4.0/24}]}}\nservices:\n  \
                web: {networks: [fine], ports: [\"8085:80\"]}\n";
    eventually("the listener and the host's route are known", PATIENCE, || {
        apply(&manager, &file, text, &["--dry-run"]).is_ok_and(|output| {
            output.stderr.contains("overlaps route 10.99.0.0/16 of node h2")
                && output.stderr.contains("port 8085/tcp is in use on node h2")
        })
    })?;
    for flags in [&["--dry-run"][..], &[]] {
        let output = apply(&manager, &file, text, flags)?;
        assert_eq!((output.code, output.stdout.as_str()), (4, ""), "{output:?}");
        assert_eq!(output.stderr.matches("hint: nothing was changed").count(), 2, "{output:?}");
    }
    assert_eq!(json(&manager, &["network", "ls"])?, serde_json::json!([]));
    let right = text.replace("10.99.4.0", "10.98.4.0").replace("8085", "8086");
    apply(&manager, &file, &right, &["--dry-run"])?.ok()?;
    apply(&manager, &file, &right, &[])?.ok()?;

    // A network in use stays, and all other objects too.
    lab.container(2, "c1", ["--network", "bad"])?;
    let left = "name: shop\nnetworks: {fine: }\nservices: {web: {networks: [fine], ports: [\"8086:80\"]}}\n";
    for flags in [&["--prune", "--dry-run"][..], &["--prune"]] {
        let output = apply(&manager, &file, left, flags)?;
        assert_eq!(output.code, 4, "{output:?}");
        assert!(output.stderr.contains("network bad is in use by c1 on h2"), "{output:?}");
    }
    let output =
        apply(&manager, &file, "name: shop\nnetworks: {fine: , bad: }\nservices: {}\n", &["--prune"])?;
    assert_eq!(output.code, 7, "{output:?}");
    assert_eq!(json(&manager, &["service", "ls"])?.as_array().map(Vec::len), Some(1));
    let output = apply(&worker, &file, "name: shop\nnetworks: {more: }\n", &["--dry-run"])?;
    assert_eq!(output.code, 6, "{output:?}");
    Ok(())
}

#[test]
fn commands_show_which_backends_get_traffic_and_what_names_mean() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    let (manager, worker) = (lab.host(1), lab.host(2));
    create_network(&lab, "app", &[])?;
    create_network(&lab, "back", &[])?;
    create_service(&lab, "web", &["--health-tcp", "80", "--health-interval", "200ms"])?;
    create_service(&lab, "rr", &["--endpoint-mode", "dnsrr"])?;
    lab.container(2, "c2", ["--network", "app", "--service", "app/web"])?;
    change_backend(&manager, "add", "rr", "app/c2")?.ok()?;
    let found = manager.meshctl(["endpoint", "ls", "-q", "--filter", "service=rr"])?.text()?;
    assert_eq!(found.lines().count(), 1, "{found}");

    let ps = || json(&manager, &["service", "ps", "web"]);
    eventually("the failing check is shown, and that it gets traffic all the same", PATIENCE, || {
        ps().is_ok_and(|backends| {
            let backend = &backends[0];
            backend["health"] == "unhealthy"
                && backend["receives_traffic"] == true
                && backend["traffic_reason"].as_str().is_some_and(|why| why.contains("all are used"))
                && backend["health_error"].as_str().is_some_and(|error| !error.is_empty())
        })
    })?;
    manager.meshctl(["service", "update", "--when-all-unhealthy", "none", "web"])?.ok()?;
    let backend = ps()?[0].clone();
    assert_eq!(
        (&backend["receives_traffic"], &backend["traffic_reason"]),
        (&false.into(), &"unhealthy".into())
    );
    manager.meshctl(["node", "update", "--availability", "drain", "h2"])?.ok()?;
    let table = manager.meshctl(["service", "ps", "web", "rr"])?.text()?;
    assert!(table.starts_with("SERVICE") && table.matches("no: node drained").count() == 2, "{table}");
    let listed = manager.meshctl(["service", "ls"])?.text()?;
    assert!(listed.contains("0/1") && listed.contains("1 node drained"), "{listed}");
    manager.meshctl(["node", "update", "--availability", "active", "h2"])?.ok()?;

    // An endpoint with a service's name, and one name on two networks.
    for network in ["app", "back"] {
        let name = format!("same-{network}");
        worker.run(["ip", "netns", "add", &format!("{}-{name}", lab.prefix())]).map(drop)?;
        let netns = format!("{}-{name}", lab.prefix());
        let attached = worker.meshctl([
            "endpoint",
            "attach",
            "--network",
            network,
            "--netns",
            &netns,
            "--name",
            "web",
        ])?;
        assert_eq!(attached.code, 0, "{attached:?}");
        assert_eq!(
            attached.stderr.contains("warning: name web of endpoint web"),
            network == "app",
            "{attached:?}"
        );
    }
    refused(&worker.meshctl(["endpoint", "detach", "web"])?, 2);
    refused(&worker.meshctl(["endpoint", "inspect", "web"])?, 2);
    worker.meshctl(["endpoint", "detach", "back/web"])?.ok()?;
    worker.meshctl(["endpoint", "detach", "app/web"])?.ok()?;
    for network in ["app", "back"] {
        worker.run(["ip", "netns", "del", &format!("{}-same-{network}", lab.prefix())])?.ok()?;
    }

    let error = refused(&worker.meshctl(["network", "create", "x"])?, 6);
    assert!(error.contains("meshctl network create") && error.contains("run it on a manager: h1"), "{error}");
    let error = refused(&manager.meshctl(["cluster", "join-token", "manager"])?, 1);
    assert!(error.contains("supports one manager"), "{error}");
    refused(&manager.meshctl(["network", "create", "--opt", "foo=bar", "x"])?, 2);
    let completed = manager
        .cmd(["meshctl", "--", "meshctl", "network", "inspect", "b"])
        .env("MESHCTL_COMPLETE", "fish")
        .output()?;
    assert!(completed.stdout.lines().any(|line| line.starts_with("back")), "{completed:?}");
    Ok(())
}
