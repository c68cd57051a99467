//! A host's own address changes, as with DHCP.

use std::net::{Ipv4Addr, SocketAddr};

use mesh_e2e::service::TARGET;
use mesh_e2e::{PATIENCE, counted, create_network, json, refused};
use mesh_harness::traffic::Connection;
use mesh_harness::{Host, Lab, Result, eventually};

fn data_path(host: &Host, node: &str) -> String {
    let nodes = json(host, &["node", "ls"]).unwrap_or_default();
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    let found = nodes.iter().find(|found| found["name"] == node);
    found.and_then(|node| node["data_path_addr"].as_str()).unwrap_or_default().to_owned()
}

fn moved(address: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d + 40)
}

#[test]
fn a_host_whose_address_changes_is_reachable_and_keeps_its_connections() -> Result<()> {
    let lab = Lab::builder().hosts(3).without_cluster().start()?;
    let (h1, h2, h3) = (lab.host(1), lab.host(2), lab.host(3));
    h1.meshctl(["cluster", "init", "--advertise-addr", "192.168.77.11"])?.ok()?;
    let token = h1.join_token("worker")?;
    // One is configured by its interface, the other by its address.
    for (host, named) in [(&h2, "eth0".to_owned()), (&h3, h3.address().to_string())] {
        host.meshctl([
            "cluster",
            "join",
            "--token",
            &token,
            "--advertise-addr",
            &named,
            "192.168.77.11:7377",
        ])?
        .ok()?;
    }
    create_network(&lab, "app", &[])?;
    create_network(&lab, "sec", &["--encrypted"])?;
    let mut pairs = Vec::new();
    for network in ["app", "sec"] {
        let one = lab.container(1, &format!("{network}1"), ["--network", network])?;
        let other = lab.container(2, &format!("{network}2"), ["--network", network])?;
        let server = other.serve(TARGET)?;
        let mut connection = Connection::open(one.netns(), SocketAddr::new(other.ipv4()?.into(), TARGET))?;
        connection.ask()?;
        pairs.push((one, other, server, connection));
    }
    let old = h2.address();
    h2.change_address(old, moved(old))?;
    eventually("h2 is known at its new address", PATIENCE, || {
        data_path(&h1, "h2") == moved(old).to_string()
    })?;
    for (one, other, _, connection) in &mut pairs {
        let target = other.ipv4()?;
        eventually("packets arrive again", PATIENCE, || {
            one.ping(target).is_ok_and(|ping| ping.received > 0)
        })?;
        connection.ask()?;
    }
    // A machine with the old address is no longer a member.
    let before = counted(&h1, "not_member")?;
    h3.add_address(old)?;
    h3.netns()
        .enter(|| {
            let socket = std::net::UdpSocket::bind((old, 0))?;
            socket.send_to(
                &[8, 0, 0, 0, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 0, 0x45, 0],
                "192.168.77.11:4789",
            )
        })?
        .expect("sent");
    eventually("its VXLAN is dropped", PATIENCE, || {
        counted(&h1, "not_member").is_ok_and(|now| now > before)
    })?;
    h3.remove_address(old)?;

    // For a host configured by its address, the new one is not guessed.
    let old = h3.address();
    h3.change_address(old, moved(old))?;
    eventually("h3 says what to do", PATIENCE, || {
        let status = json(&h3, &["status"]).unwrap_or_default();
        let problems = status["problems"].to_string();
        problems.contains(&format!("address {old} is on no interface"))
            && problems.contains("meshctl node update")
    })?;
    refused(&h3.meshctl(["node", "update", "--data-path-addr", "192.0.2.99", "h3"])?, 2);
    h3.meshctl(["node", "update", "--advertise-addr", "eth0", "--data-path-addr", "eth0", "h3"])?.ok()?;
    assert_eq!(data_path(&h1, "h3"), moved(old).to_string());
    let c3 = lab.container(3, "c3", ["--network", "app"])?;
    c3.ping(pairs[0].1.ipv4()?)?.all_answered()?;
    // From now on it is followed, also after a restart.
    h3.restart_meshd()?;
    h3.change_address(moved(old), old)?;
    eventually("h3 is known at its old address", PATIENCE, || data_path(&h1, "h3") == old.to_string())?;
    // An address in use is refused, and a manager may set another one.
    refused(&h1.meshctl(["node", "update", "--data-path-addr", "192.168.77.11", "h3"])?, 4);

    // A manager's address changes: while it has both, the agents in session learn the new one.
    for host in [&h2, &h3] {
        eventually("the agents are in session", PATIENCE, || {
            json(host, &["status"]).is_ok_and(|status| status["manager"] == format!("{}:7377", h1.address()))
        })?;
    }
    let (old, new) = (h1.address(), moved(h1.address()));
    h1.add_address(new)?;
    let address = new.to_string();
    h1.meshctl(["node", "update", "--advertise-addr", &address, "--data-path-addr", &address, "h1"])?.ok()?;
    h1.run(["ip", "addr", "del", &format!("{old}/24"), "dev", "eth0"])?.ok()?;
    // With its first address, the kernel may have taken the others of the subnet.
    h1.run(["ip", "addr", "replace", &format!("{new}/24"), "dev", "eth0"])?.ok()?;
    for host in [&h2, &h3] {
        eventually("agents are in session at the manager's new address", PATIENCE, || {
            json(host, &["status"]).is_ok_and(|status| status["manager"] == format!("{new}:7377"))
        })?;
    }
    for (one, other, ..) in &pairs {
        let target = other.ipv4()?;
        eventually("packets arrive again", PATIENCE, || {
            one.ping(target).is_ok_and(|ping| ping.received > 0)
        })?;
    }
    create_network(&lab, "later", &[])?;
    lab.container(2, "late", ["--network", "later"])?;
    Ok(())
}
