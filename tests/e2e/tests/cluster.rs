//! Hosts become members, and the cluster knows the state of each.

use std::time::Duration;

use mesh_e2e::{PATIENCE, create_network, json, lab_with_app, refused};
use mesh_harness::{Encapsulation, Lab, Result, eventually, traffic::LossMeter};

#[test]
fn three_hosts_join_are_ready_and_have_correct_records() -> Result<()> {
    let lab = Lab::builder().hosts(3).start()?;
    let nodes = json(&lab.host(1), &["node", "ls"])?;
    let nodes = nodes.as_array().expect("an array");
    assert_eq!(nodes.len(), 3);
    for (node, address) in nodes.iter().zip(["192.168.77.11", "192.168.77.12", "192.168.77.13"]) {
        assert_eq!(node["state"], "ready", "{node}");
        assert_eq!(node["availability"], "active", "{node}");
        assert_eq!(node["data_path_addr"], address, "{node}");
        assert_eq!(node["role"], if address.ends_with("11") { "manager" } else { "worker" }, "{node}");
    }
    Ok(())
}

#[test]
fn a_wrong_a_rotated_and_a_foreign_token_are_refused_and_leave_nothing_behind() -> Result<()> {
    let lab = Lab::builder().hosts(3).without_cluster().start()?;
    let (manager, foreign, host) = (lab.host(1), lab.host(2), lab.host(3));
    manager.meshctl(["cluster", "init", "--advertise-addr", "192.168.77.11"])?.ok()?;
    foreign.meshctl(["cluster", "init", "--advertise-addr", "192.168.77.12"])?.ok()?;
    let token = manager.join_token("worker")?;
    let target = "192.168.77.11:7377";

    let mut wrong = token.clone();
    let last = wrong.pop().expect("a token is not empty");
    wrong.push(if last == 'a' { 'b' } else { 'a' });
    assert!(refused(&host.join(&wrong, target)?, 1).contains("token"));
    refused(&host.join("MESH-1-nonsense", target)?, 2);

    let other = foreign.join_token("worker")?;
    assert!(refused(&host.join(&other, target)?, 1).contains("CA"));

    manager.meshctl(["cluster", "join-token", "--rotate", "worker"])?.ok()?;
    assert!(refused(&host.join(&token, target)?, 1).contains("token"));

    assert_eq!(json(&host, &["status"])?["membership"], "none", "a refused join makes no member");
    host.join(&manager.join_token("worker")?, target)?.ok()?;
    refused(&host.join(&manager.join_token("worker")?, target)?, 4);
    eventually("both are ready", PATIENCE, || {
        manager.node_states().is_ok_and(|states| states.len() == 2 && states.values().all(|s| s == "ready"))
    })
}

#[test]
fn a_restarted_manager_knows_every_endpoint_at_the_first_request() -> Result<()> {
    let (lab, there) = lab_with_app(3, Encapsulation::Direct, &[])?;
    for _ in 0..5 {
        lab.host(1).restart_meshd()?;
        for container in &there {
            assert_eq!(
                json(&lab.host(1), &["endpoint", "inspect", container.name()])?["name"],
                container.name()
            );
        }
    }
    // The endpoints of a node that does not report are unknown, and the output says so.
    lab.host(3).kill_meshd()?;
    lab.host(1).restart_meshd()?;
    let why = refused(&lab.host(1).meshctl(["endpoint", "inspect", "c3"])?, 3);
    assert!(why.contains("h3"), "{why}");
    Ok(())
}

#[test]
fn an_unreachable_manager_is_a_clear_error() -> Result<()> {
    let lab = Lab::builder().hosts(2).without_cluster().start()?;
    lab.host(1).meshctl(["cluster", "init", "--advertise-addr", "192.168.77.11"])?.ok()?;
    let token = lab.host(1).join_token("worker")?;
    assert!(refused(&lab.host(2).join(&token, "192.168.77.12:9")?, 5).contains("192.168.77.12:9"));
    Ok(())
}

#[test]
fn a_worker_can_read_but_not_change_the_cluster() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &[])?;
    let worker = lab.host(2);
    assert_eq!(json(&worker, &["network", "ls"])?[0]["name"], "app");
    for args in [
        vec!["network", "create", "-d", "overlay", "mine"],
        vec!["network", "rm", "app"],
        vec!["node", "update", "--availability", "drain", "h1"],
        vec!["node", "rm", "--force", "h1"],
        vec!["cluster", "join-token", "worker"],
    ] {
        let said = refused(&worker.meshctl(args.clone())?, 6);
        assert!(said.contains("hint: "), "{args:?}: {said}");
    }
    assert_eq!(json(&worker, &["network", "ls"])?.as_array().map(Vec::len), Some(1));
    Ok(())
}

#[test]
fn an_agent_that_is_killed_is_unknown_and_a_host_that_is_cut_off_is_down() -> Result<()> {
    let (lab, containers) = lab_with_app(3, Encapsulation::Direct, &[])?;
    let manager = lab.host(1);
    let state_of = |name: &str| manager.node_states().ok().and_then(|states| states.get(name).cloned());

    let flow = LossMeter::start(
        containers[0].netns(),
        containers[1].netns(),
        containers[1].ipv4()?.into(),
        Duration::from_millis(2),
    )?;
    lab.host(2).kill_meshd()?;
    eventually("h2 is unknown", PATIENCE, || state_of("h2").as_deref() == Some("unknown"))?;
    // Probes continue, and an unknown node stays unknown: its records are not withdrawn.
    flow.wait_for_more(1000, PATIENCE)?;
    assert_eq!(state_of("h2").as_deref(), Some("unknown"));
    flow.stop()?.nothing_lost()?;
    lab.host(2).restart_meshd()?;
    eventually("h2 is ready again", PATIENCE, || state_of("h2").as_deref() == Some("ready"))?;

    lab.host(3).unplug()?;
    eventually("h3 is down", PATIENCE, || state_of("h3").as_deref() == Some("down"))?;
    assert_eq!(state_of("h2").as_deref(), Some("ready"));
    lab.host(3).plug()?;
    eventually("h3 is ready again", PATIENCE, || state_of("h3").as_deref() == Some("ready"))?;
    containers[0].ping(containers[2].ipv4()?)?.all_answered()?;
    Ok(())
}

#[test]
fn a_removed_node_is_disconnected_and_may_join_again() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    let (manager, worker) = (lab.host(1), lab.host(2));
    assert!(refused(&manager.meshctl(["node", "rm", "h2"])?, 4).contains("h2"));
    manager.meshctl(["node", "rm", "--force", "h2"])?.ok()?;
    assert_eq!(json(&manager, &["node", "ls"])?.as_array().map(Vec::len), Some(1));
    eventually("its agent is refused", PATIENCE, || {
        worker.meshctl(["network", "ls"]).is_ok_and(|output| !output.success())
    })?;
    worker.meshctl(["cluster", "leave", "--force"])?.ok()?;
    worker.join(&manager.join_token("worker")?, "192.168.77.11:7377")?.ok()?;
    lab.wait_ready(PATIENCE)
}

#[test]
fn a_drained_node_takes_no_new_endpoints() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &[])?;
    lab.host(1).meshctl(["node", "update", "--availability", "drain", "h2"])?.ok()?;
    eventually("h2 refuses", PATIENCE, || {
        lab.host(2)
            .container("c2", ["--network", "app"])
            .is_ok_and(|(_, output)| output.code == 4 && output.stderr.contains("drain"))
    })?;
    lab.host(1).meshctl(["node", "update", "--availability", "active", "h2"])?.ok()?;
    eventually("h2 takes endpoints again", PATIENCE, || {
        lab.host(2).container("c2", ["--network", "app"]).is_ok_and(|(_, output)| output.success())
    })
}

#[test]
fn on_a_host_that_is_no_member_commands_print_a_hint() -> Result<()> {
    let lab = Lab::builder().hosts(1).without_cluster().start()?;
    let host = lab.host(1);
    for args in
        [vec!["network", "ls"], vec!["node", "ls"], vec!["endpoint", "ls"], vec!["network", "create", "x"]]
    {
        let output = host.meshctl(args)?;
        assert!(!output.success() && output.stderr.contains("hint: "), "{output:?}");
    }
    assert_eq!(json(&host, &["status"])?["membership"], "none");
    refused(&host.meshctl(["cluster", "init", "--advertise-addr", "192.0.2.99"])?, 2);
    refused(&host.meshctl(["cluster", "init", "--default-addr-pool", "10.0.0.1/8"])?, 2);
    assert_eq!(json(&host, &["status"])?["membership"], "none");
    host.meshctl(["cluster", "init", "--advertise-addr", "192.168.77.11"])?.ok()?;
    refused(&host.meshctl(["cluster", "init", "--advertise-addr", "192.168.77.11"])?, 4);
    Ok(())
}
