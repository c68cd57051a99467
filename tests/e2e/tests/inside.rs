//! Devices, addresses and routes inside a container's namespace that are set down or removed.

use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::{Container, Encapsulation, Lab, Result, eventually};

/// Returns addresses and routes of a container, without those that the kernel adds.
fn configuration(container: &Container) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for command in [
        vec!["ip", "-o", "addr", "show", "dev", "eth0", "scope", "global"],
        vec!["ip", "-4", "route", "show"],
        vec!["ip", "-6", "route", "show"],
    ] {
        let text = container.exec(command)?.text()?;
        let lines = text.lines().filter(|line| !line.contains("fe80:"));
        all.extend(lines.map(|line| line.split(" valid_lft").next().unwrap_or_default().trim().to_owned()));
    }
    all.sort();
    Ok(all)
}

#[test]
fn lost_addresses_and_routes_of_a_container_are_restored() -> Result<()> {
    let lab = Lab::builder().hosts(2).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &["--ipv6"])?;
    let (c1, c2) =
        (lab.container(1, "c1", ["--network", "app"])?, lab.container(2, "c2", ["--network", "app"])?);
    let (host, before) = (lab.host(1), configuration(&c1)?);
    let ipv4 = c1.ipv4()?.to_string();
    for damage in [
        "ip link set eth0 down; ip link set eth0 up",
        "ip route del default",
        "ip -6 route del default",
        "ip addr flush dev eth0 scope global",
        &format!("ip addr del {ipv4}/20 dev eth0"),
    ] {
        c1.exec(["sh", "-c", damage])?.ok()?;
        eventually(&format!("{damage} is repaired"), PATIENCE, || {
            configuration(&c1).is_ok_and(|now| now == before)
        })?;
        c1.ping(c2.ipv4()?)?.all_answered()?;
        c1.ping(mesh_harness::OUTSIDE_V4)?.all_answered()?;
    }
    // A replacement by another program stays, and is reported.
    c1.exec(["sh", "-c", &format!("ip addr del {ipv4}/20 dev eth0; ip addr add 172.31.9.9/24 dev eth0")])?
        .ok()?;
    eventually("the foreign address is reported", PATIENCE, || {
        let problem = format!("address {ipv4} was replaced by 172.31.9.9");
        json(&host, &["status"]).is_ok_and(|status| status["problems"].to_string().contains(&problem))
    })?;
    assert!(!configuration(&c1)?.iter().any(|line| line.contains(&format!("{ipv4}/"))));
    c1.exec(["ip", "addr", "del", "172.31.9.9/24", "dev", "eth0"])?.ok()?;
    eventually("ours is back", PATIENCE, || configuration(&c1).is_ok_and(|now| now == before))?;
    // A device that is down stays down, even while others are repaired.
    let c3 = lab.container(1, "c3", ["--network", "app"])?;
    let others = configuration(&c3)?;
    c1.exec(["ip", "link", "set", "eth0", "down"])?.ok()?;
    c3.exec(["sh", "-c", "ip link set eth0 down; ip link set eth0 up"])?.ok()?;
    eventually("c3 is repaired", PATIENCE, || configuration(&c3).is_ok_and(|now| now == others))?;
    let state = c1.exec(["ip", "-o", "link", "show", "eth0"])?.text()?;
    assert!(!state.contains(",UP"), "{state}");
    Ok(())
}
