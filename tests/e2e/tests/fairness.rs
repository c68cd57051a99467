//! The table of established flows, which all networks of a host share.

use std::net::SocketAddr;

use mesh_e2e::service::{any_port, change_backend, vip};
use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::traffic::{UdpClient, WebServer};
use mesh_harness::{Container, Lab, Result, eventually};

/// More flows than the table has entries; each needs two.
const ENTRIES: u16 = 1024;
/// Flows of the well-behaved network: less than its guaranteed share.
const FLOWS: usize = 40;

/// Creates a service with backends on the lab's host; returns its VIP.
fn serve(lab: &Lab, network: &str, backends: &[&str]) -> Result<(SocketAddr, Vec<(Container, WebServer)>)> {
    let created = lab.host(1).meshctl(["service", "create", "--name", network, "--network", network])?;
    created.ok()?;
    let mut running = Vec::new();
    for name in backends {
        let container = lab.container(1, name, ["--network", network])?;
        let server = container.serve(80)?;
        change_backend(&lab.host(1), "add", network, name)?.ok()?;
        running.push((container, server));
    }
    Ok((vip(lab, network)?, running))
}

/// Opens many flows, each of which is answered and used again; returns the backends that answered.
fn ask(from: &Container, vip: SocketAddr, flows: usize) -> Result<Vec<(String, UdpClient)>> {
    let mut asked = Vec::new();
    for _ in 0..flows {
        let socket = UdpClient::bind(from.netns(), any_port())?;
        let mut backend = String::new();
        for _ in 0..2 {
            backend = socket.ask(vip, PATIENCE)?.expect("an answer").backend;
        }
        asked.push((backend, socket));
    }
    Ok(asked)
}

#[test]
fn a_network_that_fills_the_connection_table_loses_only_its_own_flows() -> Result<()> {
    let lab = Lab::builder().hosts(1).meshd_config(format!("connection_entries = {ENTRIES}")).start()?;
    for network in ["red", "blue"] {
        create_network(&lab, network, &[])?;
    }
    let (blue, _blue_backends) = serve(&lab, "blue", &["b1", "b2"])?;
    let (red, _red_backends) = serve(&lab, "red", &["r1"])?;
    let quiet = lab.container(1, "quiet", ["--network", "blue"])?;
    let greedy = lab.container(1, "greedy", ["--network", "red"])?;
    let host = lab.host(1);
    let kept = ask(&quiet, blue, FLOWS)?;
    // Flows that are lost go to the other backend from now on.
    change_backend(&host, "drain", "blue", "b1")?.ok()?;
    let mut open = Vec::new();
    let begun = "network red has ";
    eventually("the greedy network is reported", PATIENCE * 3, || {
        open.extend(ask(&greedy, red, usize::from(ENTRIES)).unwrap_or_default());
        // The sockets are descriptors of this process.
        open.truncate(16);
        let status = json(&host, &["status"]).unwrap_or_default();
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        problems.iter().any(|problem| problem.as_str().is_some_and(|text| text.starts_with(begun)))
    })?;
    for (backend, socket) in &kept {
        assert_eq!(socket.ask(blue, PATIENCE)?.expect("an answer").backend, *backend);
    }
    assert!(kept.iter().any(|(backend, _)| backend == "b1"), "none of {FLOWS} went to b1");
    let metrics = host.meshctl(["metrics"])?.text()?;
    let forgotten = |network: &str| {
        let label = format!("network=\"{network}\"");
        let of = |line: &&str| line.starts_with("mesh_connections_forgotten_total{") && line.contains(&label);
        let line = metrics.lines().find(of).unwrap_or_default();
        line.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0_u64)
    };
    assert!(forgotten("red") > 0 && forgotten("blue") == 0, "{metrics}");
    Ok(())
}
