//! Containers are attached and detached; failures leave nothing behind.

use std::collections::BTreeSet;

use mesh_e2e::{PATIENCE, create_network, distinct_addresses, json, lab_with_app, refused};
use mesh_harness::{Encapsulation, Host, Lab, Result, eventually};

/// Returns the names of all devices of a host.
fn devices(host: &Host) -> Result<BTreeSet<String>> {
    let links: serde_json::Value = host.run(["ip", "-j", "link"])?.json()?;
    Ok(links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|l| l["ifname"].as_str())
        .map(str::to_owned)
        .collect())
}

#[test]
fn an_endpoint_has_the_requested_properties() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &["--ipv6"])?;
    create_network(&lab, "back", &[])?;
    let c = lab.container(
        1,
        "web",
        [
            "--network",
            "app",
            "--ip",
            "10.64.3.7",
            "--mac",
            "02:aa:bb:cc:dd:ee",
            "--alias",
            "www",
            "--ifname",
            "net0",
        ],
    )?;
    let endpoint = c.endpoint()?;
    assert_eq!((&endpoint["ipv4"], &endpoint["mac"]), (&"10.64.3.7".into(), &"02:aa:bb:cc:dd:ee".into()));
    assert_eq!((&endpoint["network"], &endpoint["node"]), (&"app".into(), &"h1".into()));
    assert_eq!((&endpoint["ifname"], &endpoint["aliases"][0]), (&"net0".into(), &"www".into()));
    let links: serde_json::Value = c.exec(["ip", "-j", "addr", "show", "net0"])?.json()?;
    assert_eq!((&links[0]["address"], &links[0]["mtu"]), (&"02:aa:bb:cc:dd:ee".into(), &1450.into()));
    let v4 = &links[0]["addr_info"][0];
    assert_eq!((&v4["local"], &v4["prefixlen"]), (&"10.64.3.7".into(), &20.into()));

    // A second network of the same container gets the next device; a remote endpoint is reachable
    // over both.
    lab.container(1, "web", ["--network", "back", "--name", "web-back"])?;
    let far = lab.container(2, "far", ["--network", "back"])?;
    c.ping(far.ipv4()?)?.all_answered()?;
    far.ping(
        json(&lab.host(1), &["endpoint", "inspect", "web-back"])?["ipv4"]
            .as_str()
            .expect("an address")
            .parse::<std::net::Ipv4Addr>()
            .expect("an address"),
    )?
    .all_answered()?;
    let peer = lab.container(2, "peer", ["--network", "app"])?;
    peer.ping(c.ipv4()?)?.all_answered()?;
    peer.ping(c.ipv6()?)?.all_answered()?;

    assert_eq!(json(&lab.host(2), &["endpoint", "ls"])?.as_array().map(Vec::len), Some(4));
    assert_eq!(json(&lab.host(1), &["endpoint", "ls", "--node", "h2"])?.as_array().map(Vec::len), Some(2));
    Ok(())
}

#[test]
fn an_impossible_attach_is_refused_and_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &["--attachable=true"])?;
    let host = lab.host(1);
    let c = lab.container(1, "c1", ["--network", "app", "--ip", "10.64.0.9"])?;
    let before = devices(&host)?;
    let attach = |args: &[&str]| host.meshctl(["endpoint", "attach"].iter().chain(args).copied());
    let netns = c.netns().path();
    let netns = netns.to_str().expect("text");

    assert!(refused(&attach(&["--network", "app", "--netns", "no-such-ns"])?, 3).contains("no-such-ns"));
    refused(&attach(&["--network", "app", "--netns", "/etc/passwd"])?, 2);
    refused(&attach(&["--network", "app", "--pid", "4194303"])?, 3);
    refused(&attach(&["--network", "nothing", "--netns", netns])?, 3);
    assert!(refused(&attach(&["--network", "app", "--netns", netns, "--name", "c1"])?, 4).contains("c1"));
    let base = ["--network", "app", "--netns", netns, "--name", "x"];
    let with = |more: &[&str]| attach(&base.iter().chain(more).copied().collect::<Vec<_>>());
    assert!(refused(&with(&["--ip", "10.64.0.9"])?, 4).contains("10.64.0.9"));
    assert!(refused(&with(&["--ip", "10.64.0.1"])?, 4).contains("gateway"));
    refused(&with(&["--ip", "10.99.0.1"])?, 2);
    refused(&with(&["--ip", "nonsense"])?, 2);
    refused(&with(&["--mac", "01:00:5e:00:00:01"])?, 2);
    refused(&with(&["--ifname", "sixteencharacter"])?, 2);
    assert!(refused(&with(&["--ifname", "eth0"])?, 4).contains("eth0"));
    refused(&with(&["--ip6", "fd00::1"])?, 2);
    // The same address on another host: the first one keeps it.
    refused(&lab.host(2).container("c2", ["--network", "app", "--ip", "10.64.0.9"])?.1, 4);

    assert_eq!(devices(&host)?, before);
    assert_eq!(json(&host, &["endpoint", "ls"])?.as_array().map(Vec::len), Some(1));
    let links: serde_json::Value = c.exec(["ip", "-j", "link"])?.json()?;
    assert_eq!(links.as_array().map(Vec::len), Some(2), "lo and eth0");
    Ok(())
}

#[test]
fn an_endpoint_whose_namespace_is_gone_is_cleaned_up() -> Result<()> {
    let (lab, c) = lab_with_app(2, Encapsulation::Direct, &[])?;
    let address = c[0].ipv4()?.to_string();
    let before = devices(&lab.host(1))?;
    c[0].remove()?;
    eventually("the endpoint is gone everywhere", PATIENCE, || {
        json(&lab.host(2), &["endpoint", "ls"])
            .is_ok_and(|all| all.as_array().is_some_and(|all| all.len() == 1))
    })?;
    eventually("its device is gone", PATIENCE, || {
        devices(&lab.host(1)).is_ok_and(|now| now.len() < before.len())
    })?;
    // Its address is free for another endpoint.
    lab.container(1, "heir", ["--network", "app", "--ip", &address])?;
    Ok(())
}

#[test]
fn detaching_by_name_and_by_id_removes_the_device_and_keeps_the_container() -> Result<()> {
    let (lab, c) = lab_with_app(1, Encapsulation::Direct, &[])?;
    let before = devices(&lab.host(1))?;
    let second = lab.container(1, "second", ["--network", "app"])?;
    let id = second.endpoint()?["id"].as_str().expect("an id").to_owned();
    lab.host(1).meshctl(["endpoint", "detach", &id[..12]])?.ok()?;
    assert_eq!(devices(&lab.host(1))?, before);
    assert!(second.netns().exists());
    refused(&lab.host(1).meshctl(["endpoint", "detach", "second"])?, 3);
    lab.host(1).meshctl(["endpoint", "detach", c[0].name()])?.ok()?;
    Ok(())
}

#[test]
fn a_full_subnet_is_an_error_and_one_detach_later_it_is_not() -> Result<()> {
    let lab = Lab::builder().hosts(3).start()?;
    create_network(&lab, "tiny", &["--subnet", "10.9.0.0/28"])?;
    let mut attached = Vec::new();
    let full = loop {
        let n = attached.len();
        let (container, output) = lab.host(n % 3 + 1).container(&format!("c{n}"), ["--network", "tiny"])?;
        if !output.success() {
            break output;
        }
        attached.push(container);
    };
    let said = refused(&full, 1);
    assert!(said.contains("tiny"), "{said}");
    assert!(attached.len() >= 10, "only {} of a /28's addresses were to be had", attached.len());
    for host in 1..=3 {
        let (_, output) = lab.host(host).container("late", ["--network", "tiny"])?;
        refused(&output, 1);
    }
    let freed = attached[4].ipv4()?;
    attached[4].detach()?.ok()?;
    for host in 1..=3 {
        let late = lab.container(host, "late", ["--network", "tiny"])?;
        assert_eq!(late.ipv4()?, freed, "the only free address, wherever it is asked for");
        attached[0].ping(freed)?.all_answered()?;
        late.detach()?.ok()?;
        late.remove()?;
    }
    Ok(())
}

#[test]
fn a_released_address_is_not_reused_while_another_is_free() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "app", &[])?;
    let first = lab.container(1, "first", ["--network", "app"])?;
    let address = first.ipv4()?;
    first.detach()?.ok()?;
    let second = lab.container(1, "second", ["--network", "app"])?;
    assert_ne!(second.ipv4()?, address);
    lab.host(1).restart_meshd()?;
    second.detach()?.ok()?;
    let third = lab.container(1, "third", ["--network", "app"])?;
    assert_ne!(third.ipv4()?, address);
    Ok(())
}

#[test]
fn every_node_knows_of_an_endpoint_before_attach_and_detach_return() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &[])?;
    let names = |host: usize| -> Result<Vec<String>> {
        let all = json(&lab.host(host), &["endpoint", "ls"])?;
        Ok(all.as_array().into_iter().flatten().map(|e| e["name"].to_string()).collect())
    };
    for round in 0..20 {
        let c = lab.container(2, &format!("c{round}"), ["--network", "app"])?;
        assert_eq!(names(1)?, [format!("\"c{round}\"")]);
        c.detach()?.ok()?;
        assert_eq!(names(1)?, [""; 0]);
    }
    Ok(())
}

#[test]
fn a_container_has_one_attachment_to_a_network_and_the_host_has_none() -> Result<()> {
    let (lab, c) = lab_with_app(1, Encapsulation::Direct, &[])?;
    let host = lab.host(1);
    let own = host.netns().path().to_string_lossy().into_owned();
    let before = devices(&host)?;
    let attach = |netns: &str| {
        host.meshctl(["endpoint", "attach", "--network", "app", "--netns", netns, "--name", "again"])
    };
    let said = refused(&attach(&own)?, 2);
    assert!(said.contains("host's own"), "{said}");
    let said = refused(&attach(&c[0].netns().path().to_string_lossy())?, 4);
    assert!(said.contains("app") && said.contains("c1"), "{said}");
    assert_eq!(devices(&host)?, before, "nothing half-made");
    Ok(())
}

#[test]
fn an_agent_killed_while_it_attaches_many_is_replaced_at_once() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "app", &[])?;
    let host = lab.host(1);
    let attached = std::thread::scope(|scope| {
        let attaches: Vec<_> = (0..40)
            .map(|n| {
                let host = &host;
                scope.spawn(move || host.container(&format!("many{n}"), ["--network", "app"]))
            })
            .collect();
        eventually("some are attached", PATIENCE, || {
            json(&host, &["endpoint", "ls"]).is_ok_and(|all| all.as_array().is_some_and(|all| all.len() > 3))
        })?;
        host.restart_meshd()?;
        let done: Vec<_> = attaches.into_iter().map(|attach| attach.join().expect("no panic")).collect();
        Ok::<_, mesh_harness::Error>(
            done.into_iter().filter(|done| done.as_ref().is_ok_and(|(_, output)| output.code == 0)).count(),
        )
    })?;
    assert!(host.meshd().is_some(), "the next one runs: {}", host.log_tail());
    let all = json(&host, &["endpoint", "ls"])?;
    let listed = distinct_addresses(&all).expect("no address twice").len();
    assert!(listed >= attached, "of {attached} acknowledged {listed} are there");
    Ok(())
}

#[test]
fn an_endpoint_name_is_unique_in_the_cluster() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &[])?;
    create_network(&lab, "other", &[])?;
    let named = |host: usize, netns: &str, network: &str| {
        let container = lab.namespace(host, netns)?;
        let path = container.netns().path().to_string_lossy().into_owned();
        let attach = ["endpoint", "attach", "--network", network, "--netns", &path, "--name", "web"]
            .map(str::to_owned);
        Ok::<_, mesh_harness::Error>((container, attach))
    };
    let (_one, attach) = named(1, "one", "app")?;
    lab.host(1).meshctl(attach)?.ok()?;
    // Another network may have the same name.
    let (_elsewhere, of_other) = named(2, "elsewhere", "other")?;
    lab.host(2).meshctl(of_other)?.ok()?;
    let before = devices(&lab.host(2))?;
    let (two, attach) = named(2, "two", "app")?;
    let said = refused(&lab.host(2).meshctl(attach.clone())?, 4);
    assert!(said.contains("web") && said.contains("h1"), "{said}");
    assert_eq!(devices(&lab.host(2))?, before);
    let links: serde_json::Value = two.exec(["ip", "-j", "link"])?.json()?;
    assert_eq!(links.as_array().map(Vec::len), Some(1), "lo");
    for host in lab.hosts() {
        assert_eq!(json(&host, &["endpoint", "ls"])?.as_array().map(Vec::len), Some(2));
    }
    // Once it is released, the next endpoint gets it.
    lab.host(1).meshctl(["endpoint", "detach", "web"])?.ok()?;
    lab.host(2).meshctl(attach)?.ok()?;
    Ok(())
}

#[test]
fn one_of_two_concurrent_attaches_of_a_name_succeeds() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &[])?;
    // Both have their blocks, so that only the name conflicts.
    let first = [lab.container(1, "a", ["--network", "app"])?, lab.container(2, "b", ["--network", "app"])?];
    let before = [devices(&lab.host(1))?, devices(&lab.host(2))?];
    let containers = [lab.namespace(1, "x")?, lab.namespace(2, "y")?];
    for round in 0..10 {
        let name = format!("web{round}");
        let outputs = std::thread::scope(|scope| {
            let attaches = containers.each_ref().map(|container| {
                let path = container.netns().path().to_string_lossy().into_owned();
                let args = ["endpoint", "attach", "--network", "app", "--netns", &path, "--name", &name]
                    .map(str::to_owned);
                scope.spawn(move || container.host().meshctl(args))
            });
            attaches.map(|attach| attach.join().expect("no panic"))
        });
        let [one, two] = outputs;
        let outputs = [one?, two?];
        let winner = outputs.iter().position(|output| output.code == 0);
        let winner = winner.unwrap_or_else(|| panic!("round {round}: both lost: {outputs:?}"));
        refused(&outputs[1 - winner], 4);
        let all = json(&lab.host(1), &["endpoint", "ls"])?;
        assert_eq!(distinct_addresses(&all).expect("no address twice").len(), 3, "{all}");
        assert_eq!(devices(&lab.host(2 - winner))?, before[1 - winner], "nothing is left of the loser's");
        containers[winner].host().meshctl(["endpoint", "detach", &name])?.ok()?;
    }
    first[0].ping(first[1].ipv4()?)?.all_answered()?;
    Ok(())
}
