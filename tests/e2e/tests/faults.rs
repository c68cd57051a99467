//! Agents die, hosts restart, other programs' objects exist beside Mesh's: traffic continues and
//! nothing is lost.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use mesh_e2e::service::{add_backend, create_service};
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, create_network, json, lab_with_app, refused};
use mesh_harness::traffic::{LossMeter, ask, tcp_transfer};
use mesh_harness::{Encapsulation, Host, Lab, Result, eventually};

#[test]
fn killing_and_restarting_an_agent_loses_no_packet_and_no_connection() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &[])?;
        let server = c[1].ipv4()?;
        let listener =
            c[1].netns().enter(|| TcpListener::bind(SocketAddr::new(server.into(), 0)))?.expect("bind");
        let target = listener.local_addr().expect("an address");
        let accepted = thread::spawn(move || {
            (0..1000)
                .map(|_| listener.accept().map(|(stream, _)| stream))
                .collect::<std::io::Result<Vec<_>>>()
        });
        let mut idle = c[0]
            .netns()
            .enter(|| (0..1000).map(|_| TcpStream::connect(target)).collect::<std::io::Result<Vec<_>>>())?
            .expect("a thousand connections");
        let mut accepted = accepted.join().expect("no panic").expect("a thousand connections");

        let flow = LossMeter::start(c[0].netns(), c[1].netns(), server.into(), Duration::from_millis(1))?;
        for host in [lab.host(1), lab.host(2)] {
            host.kill_meshd()?;
            flow.wait_for_more(300, PATIENCE)?;
            host.restart_meshd()?;
            flow.wait_for_more(300, PATIENCE)?;
        }
        tcp_transfer(c[0].netns(), c[1].netns(), server.into(), 1 << 26)?;
        flow.stop()?.nothing_lost()?;
        for stream in &mut idle {
            stream.write_all(b"x").expect("the connection is alive");
        }
        for stream in &mut accepted {
            stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            stream.read_exact(&mut [0]).expect("the connection is alive");
        }
    }
    Ok(())
}

#[test]
fn attaching_and_detaching_work_while_the_manager_is_away() -> Result<()> {
    let (lab, c) = lab_with_app(2, Encapsulation::Direct, &[])?;
    let first = c[0].ipv4()?;
    lab.host(1).kill_meshd()?;
    lab.host(2).restart_meshd()?;
    let new = lab.container(2, "new", ["--network", "app"])?;
    new.ping(first)?.all_answered()?;
    c[1].detach()?.ok()?;
    refused(&lab.host(2).meshctl(["network", "ls"])?, 5);
    lab.host(1).restart_meshd()?;
    eventually("the manager knows what happened", PATIENCE, || {
        json(&lab.host(1), &["endpoint", "ls"]).is_ok_and(|all| {
            let names: Vec<_> = all.as_array().into_iter().flatten().map(|e| e["name"].clone()).collect();
            names.len() == 2 && names.contains(&"new".into()) && !names.contains(&"c2".into())
        })
    })
}

#[test]
fn a_restarted_agent_and_a_rebooted_host_are_the_same_node_with_the_same_leases() -> Result<()> {
    let (lab, c) = lab_with_app(2, Encapsulation::Direct, &[])?;
    let ids = lab.host(1).meshctl(["node", "ls", "-q"])?.text()?;
    let endpoints = json(&lab.host(1), &["endpoint", "ls"])?;
    for host in lab.hosts() {
        host.restart_meshd()?;
    }
    lab.wait_ready(PATIENCE)?;
    eventually("the same endpoints are known", PATIENCE, || {
        json(&lab.host(1), &["endpoint", "ls"]).is_ok_and(|now| now == endpoints)
    })?;
    c[0].ping(c[1].ipv4()?)?.all_answered()?;

    lab.host(2).reboot()?;
    lab.wait_ready(PATIENCE)?;
    assert_eq!(lab.host(1).meshctl(["node", "ls", "-q"])?.text()?, ids);
    // Its containers were removed with it, and so were their endpoints; the node keeps its block.
    eventually("c2 is gone", PATIENCE, || {
        json(&lab.host(1), &["endpoint", "ls"])
            .is_ok_and(|all| all.as_array().is_some_and(|all| all.len() == 1))
    })?;
    let new = lab.container(2, "new", ["--network", "app"])?;
    c[0].ping(new.ipv4()?)?.all_answered()?;
    // Starting them again need not wait for that.
    lab.host(2).reboot()?;
    let again = lab.container(2, "new", ["--network", "app"])?;
    c[0].ping(again.ipv4()?)?.all_answered()?;
    Ok(())
}

/// Returns everything on a host that Mesh could create or remove: devices, routes, rules, firewall,
/// pins. The link-local routes of IPv6 belong to the kernel. They appear after duplicate address
/// detection, and depend on the forwarding switch.
fn traces(host: &Host) -> Result<String> {
    let mut all = String::new();
    for command in [
        vec!["ip", "-o", "link"],
        vec!["ip", "route", "show", "table", "all"],
        vec!["ip", "-6", "route", "show", "table", "all"],
        vec!["ip", "rule"],
        vec!["nft", "list", "ruleset"],
    ] {
        for line in host.run(command)?.text()?.lines().filter(|line| !line.contains("fe80:")) {
            all.push_str(line);
            all.push('\n');
        }
    }
    let pins = host.bpffs_dir();
    let state = std::fs::read_dir(host.state_dir()).into_iter().flatten().count();
    Ok(format!("{all}pins: {}, files of state: {state}", pins.exists()))
}

#[test]
fn leaving_removes_everything_of_mesh_and_nothing_of_others() -> Result<()> {
    let lab = Lab::builder().hosts(2).without_cluster().start()?;
    let host = lab.host(2);
    for device in ["cni0", "docker0", "meshtastic0"] {
        host.run(["ip", "link", "add", device, "type", "bridge"])?.ok()?;
    }
    for args in [
        vec![
            "ip",
            "link",
            "add",
            "flannel.1",
            "type",
            "vxlan",
            "id",
            "1",
            "dstport",
            "8472",
            "local",
            "192.168.77.12",
            "nolearning",
        ],
        vec!["ip", "link", "add", "meshveth", "type", "veth", "peer", "name", "notours"],
        vec!["ip", "addr", "add", "10.88.0.1/16", "dev", "cni0"],
        vec!["ip", "link", "set", "cni0", "up"],
        vec!["ip", "rule", "add", "from", "10.88.0.0/16", "lookup", "100"],
        vec!["nft", "add", "table", "inet", "theirs"],
        vec!["nft", "add", "chain", "inet", "theirs", "c", "{ type filter hook forward priority 0; }"],
    ] {
        host.run(args)?.ok()?;
    }
    let before = traces(&host)?;

    lab.host(1).meshctl(["cluster", "init", "--advertise-addr", "192.168.77.11"])?.ok()?;
    host.join(&lab.host(1).join_token("worker")?, "192.168.77.11:7377")?.ok()?;
    refused(&lab.host(1).meshctl(["network", "create", "--subnet", "10.88.0.0/24", "overlap"])?, 4);
    create_network(&lab, "app", &["--ipv6"])?;
    let c = lab.container(2, "c2", ["--network", "app"])?;
    lab.container(1, "c1", ["--network", "app"])?.ping(c.ipv4()?)?.all_answered()?;
    host.kill_meshd()?;
    host.restart_meshd()?;

    refused(&host.meshctl(["cluster", "leave"])?, 4);
    host.meshctl(["cluster", "leave", "--force"])?.ok()?;
    assert_eq!(traces(&host)?, before);
    let links: serde_json::Value = c.exec(["ip", "-j", "link"])?.json()?;
    assert_eq!(links.as_array().map(Vec::len), Some(1), "only lo is left in the container");
    eventually("the manager has forgotten it", PATIENCE, || {
        lab.host(1).node_states().is_ok_and(|states| states.len() == 1)
    })?;

    // The last manager's leave ends the cluster, and requires confirmation.
    refused(&lab.host(1).meshctl(["cluster", "leave"])?, 4);
    lab.host(1).meshctl(["cluster", "leave", "--force"])?.ok()?;
    assert_eq!(json(&lab.host(1), &["status"])?["membership"], "none");
    Ok(())
}

#[test]
fn deleted_and_detached_objects_are_restored() -> Result<()> {
    let (lab, c) = lab_with_app(2, Encapsulation::Direct, &[])?;
    let host = lab.host(1);
    for damage in [
        vec!["ip", "link", "del", "mesh0"],
        vec!["ip", "link", "del", "meshvx0"],
        vec!["ip", "link", "set", "meshvx0", "down"],
        vec!["sysctl", "-qw", "net.ipv4.ip_forward=0"],
    ] {
        host.run(damage.clone())?.ok()?;
        eventually(&format!("{damage:?} is repaired"), Duration::from_secs(45), || {
            c[0].ping(c[1].ipv4().expect("an address")).is_ok_and(|r| r.received > 0)
                && c[0].ping(mesh_harness::OUTSIDE_V4).is_ok_and(|r| r.received > 0)
                && json(&host, &["status"]).is_ok_and(|s| s["problems"] == serde_json::json!([]))
        })?;
    }
    Ok(())
}

/// The kernel sends no event for these removals.
#[test]
fn removed_links_and_switches_are_restored_at_once() -> Result<()> {
    let (lab, c) = lab_with_app(2, Encapsulation::Direct, &[])?;
    create_service(&lab, "web", &["-p", "8080:80"])?;
    let _backend = add_backend(&lab, 2, "b1", "web")?;
    let host = lab.host(1);
    let published = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 8080);
    let works = || {
        c[0].ping(c[1].ipv4().expect("an address")).is_ok_and(|report| report.received > 0)
            && c[0].ping(mesh_harness::OUTSIDE_V4).is_ok_and(|report| report.received > 0)
            && ask(host.netns(), published).is_ok()
    };
    eventually("all is well", PATIENCE, works)?;
    let links = host.bpffs_dir().join("links");
    let pins = || -> Vec<String> {
        let entries = std::fs::read_dir(&links).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with("endpoint-")).collect();
        names.sort();
        names
    };
    let before = pins();
    for round in ["all", "one by one"] {
        for name in &before {
            std::fs::remove_file(links.join(name)).expect("a pin");
            if round == "one by one" {
                eventually(&format!("{name} is back"), Duration::from_secs(5), || pins() == before)?;
            }
        }
        eventually("the links are back", Duration::from_secs(5), || pins() == before)?;
        eventually("traffic passes again", PATIENCE, works)?;
    }
    let forwarding = "net.ipv4.ip_forward";
    host.run(["sysctl", "-qw", &format!("{forwarding}=0")])?.ok()?;
    eventually("the host forwards again", Duration::from_secs(5), || {
        host.run(["sysctl", "-n", forwarding]).is_ok_and(|output| output.stdout.trim() == "1")
    })?;
    let reserved = "net.ipv4.ip_local_reserved_ports";
    host.run(["sysctl", "-qw", &format!("{reserved}=9999")])?.ok()?;
    eventually("the published port is reserved again", Duration::from_secs(8), || {
        host.run(["sysctl", "-n", reserved]).is_ok_and(|output| output.stdout.trim() == "8080,9999")
    })
}

#[test]
fn removing_a_dead_host_releases_its_addresses() -> Result<()> {
    let lab = Lab::builder().hosts(3).start()?;
    create_network(&lab, "tiny", &["--subnet", "10.9.0.0/28"])?;
    let lost = lab.container(3, "lost", ["--network", "tiny", "--ip", "10.9.0.5"])?;
    assert_eq!(lost.ipv4()?.to_string(), "10.9.0.5");
    lab.host(3).kill_meshd()?;
    lab.host(3).unplug()?;
    eventually("h3 is down", PATIENCE, || {
        lab.host(1).node_states().is_ok_and(|states| states.get("h3").is_some_and(|s| s == "down"))
    })?;
    refused(&lab.host(2).container("c2", ["--network", "tiny", "--ip", "10.9.0.5"])?.1, 4);
    lab.host(1).meshctl(["node", "rm", "--force", "h3"])?.ok()?;
    lab.container(2, "c2", ["--network", "tiny", "--ip", "10.9.0.5"])?;
    Ok(())
}
