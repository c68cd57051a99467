//! Container runtimes attach containers by the CNI plugin.

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use mesh_e2e::cni::{Plugin, address, refused};
use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::{Lab, Output, Result, eventually};
use serde_json::{Value, json};

/// The names of a host's attached endpoints.
fn endpoints(lab: &Lab, host: usize) -> Result<Vec<String>> {
    let listed = json(&lab.host(host), &["endpoint", "ls", "--node", &format!("h{host}")])?;
    let names = listed.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

fn result(output: Output) -> Result<Value> {
    output.ok()?.json()
}

#[test]
fn containers_of_two_hosts_talk_and_a_second_del_succeeds() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &["--ipv6"])?;
    let plugins = [Plugin::new(&lab.host(1), "app")?, Plugin::new(&lab.host(2), "app")?];
    let containers = [lab.namespace(1, "c1")?, lab.namespace(2, "c2")?];
    let mut results = Vec::new();
    for (n, (plugin, container)) in plugins.iter().zip(&containers).enumerate() {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAME=pod{n}");
        results
            .push(result(plugin.add(&format!("id{n}"), container.netns()).env("CNI_ARGS", args).output()?)?);
    }
    containers[0].ping(address(&results[1]))?.all_answered()?;
    let v6 = results[1]["ips"][1]["address"].as_str().and_then(|text| text.split('/').next());
    containers[0]
        .ping(v6.and_then(|text| text.parse::<std::net::Ipv6Addr>().ok()).expect("an address"))?
        .all_answered()?;

    // The result says what is there.
    let inside: Value = containers[0].exec(["ip", "-j", "addr", "show", "eth0"])?.json()?;
    let interfaces = &results[0]["interfaces"];
    assert_eq!((&interfaces[1]["name"], &interfaces[1]["mac"]), (&"eth0".into(), &inside[0]["address"]));
    assert_eq!(interfaces[1]["mtu"], inside[0]["mtu"]);
    let outside: Value = lab.host(1).run(["ip", "-j", "link"])?.json()?;
    let devices: Vec<&Value> = outside.as_array().into_iter().flatten().map(|link| &link["ifname"]).collect();
    assert!(devices.contains(&&interfaces[0]["name"]), "{devices:?}");
    let route: Value = containers[0].exec(["ip", "-j", "route", "show", "default"])?.json()?;
    assert_eq!(results[0]["routes"][0]["gw"], route[0]["gateway"]);
    let server = results[0]["dns"]["nameservers"][0].as_str().expect("a name server").to_owned();
    let found = containers[0].exec(["dig", "+short", "+time=5", &format!("@{server}"), "pod1"])?.text()?;
    assert_eq!(found.trim(), address(&results[1]).to_string());
    let inspected = json(&lab.host(2), &["endpoint", "inspect", "pod0"])?;
    assert_eq!(inspected["owner"], "cni:app/id0/eth0");

    assert_eq!(plugins[0].check("id0", containers[0].netns(), &results[0])?.code, 0);
    containers[0].exec(["ip", "route", "del", "default"])?.ok()?;
    let missing = refused(&plugins[0].check("id0", containers[0].netns(), &results[0])?, 100);
    assert!(missing.contains("route"), "{missing}");
    assert_eq!(plugins[0].check("id0", containers[0].netns(), &results[0])?.code, 0);
    refused(&plugins[0].check("other", containers[0].netns(), &results[0])?, 3);

    // The same container twice is an error; a DEL twice, or of what never was, is none.
    refused(&plugins[0].add("id0", containers[0].netns()).output()?, 100);
    for _ in 0..2 {
        plugins[0].del("id0")?.ok()?;
    }
    plugins[0].del("never")?.ok()?;
    assert_eq!(endpoints(&lab, 1)?, Vec::<String>::new());
    let again = result(plugins[0].add("id0", containers[0].netns()).output()?)?;
    containers[1].ping(address(&again))?.all_answered()?;
    Ok(())
}

#[test]
fn a_call_that_cannot_work_is_refused_with_the_specifications_code() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "app", &["--subnet", "10.9.0.0/24"])?;
    let host = lab.host(1);
    let plugin = Plugin::new(&host, "app")?;
    let container = lab.namespace(1, "c1")?;
    let add = |plugin: &Plugin| plugin.add("id", container.netns());

    let supported: Value = plugin.command("VERSION").output()?.json()?;
    assert_eq!(supported["supportedVersions"].as_array().and_then(|list| list.last()), Some(&"1.1.0".into()));
    let silent =
        mesh_harness::Cmd::new([mesh_harness::Binaries::locate()?.dir().join("mesh-cni").to_string_lossy()]);
    assert!(silent.output()?.text()?.starts_with("CNI mesh plugin v"));
    plugin.command("STATUS").output()?.ok()?;

    refused(&add(&plugin.with("cniVersion", "9.9.9")).output()?, 1);
    for netns in ["/run/netns/there-is-none", "/etc/passwd", "/proc/self/ns/user"] {
        refused(&plugin.call("ADD", "id").env("CNI_NETNS", netns).output()?, 4);
    }
    let own = host.netns().path();
    let refusal = refused(&plugin.call("ADD", "id").env("CNI_NETNS", own.to_string_lossy()).output()?, 4);
    assert!(refusal.contains("own"), "{refusal}");
    refused(
        &plugin
            .call("ADD", "../../id")
            .env("CNI_NETNS", container.netns().path().to_string_lossy())
            .output()?,
        4,
    );
    refused(&plugin.command("ADD").output()?, 4);
    refused(&add(&plugin).stdin("{\"cniVersion\":").output()?, 6);
    refused(&add(&plugin).stdin("x".repeat((1 << 20) + 1)).output()?, 6);
    refused(&add(&plugin.with("network", "absent")).output()?, 7);
    refused(&add(&plugin.with("runtimeConfig", json!({"ips": ["nonsense"]}))).output()?, 7);
    refused(
        &add(&plugin.with("runtimeConfig", json!({"ipRanges": [[{"subnet": "10.9.0.0/24"}]]}))).output()?,
        7,
    );
    refused(
        &plugin
            .with("prevResult", Value::Null)
            .call("CHECK", "id")
            .env("CNI_NETNS", "/run/netns/x")
            .output()?,
        7,
    );
    refused(&plugin.command("GC").output()?, 7);

    // Nothing stays of all that, and an address and a MAC are given when they are asked for.
    assert_eq!(endpoints(&lab, 1)?, Vec::<String>::new());
    let args = "IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.9.0.80;MAC=82:92:d5:dd:fa:8e";
    let attached = result(add(&plugin).env("CNI_ARGS", args).output()?)?;
    assert_eq!(attached["ips"][0]["address"], "10.9.0.80/24");
    assert_eq!(attached["interfaces"][1]["mac"], "82:92:d5:dd:fa:8e");
    let second = lab.namespace(1, "c2")?;
    let taken = refused(&plugin.add("id2", second.netns()).env("CNI_ARGS", "IP=10.9.0.80").output()?, 100);
    assert!(taken.contains("10.9.0.80"), "{taken}");

    // A network is created where the configuration says how.
    let create =
        plugin.with("network", "made").with("create", json!({"subnet": "10.8.0.0/24", "internal": true}));
    let made = result(create.add("id3", second.netns()).output()?)?;
    assert!(made["ips"][0]["address"].as_str().is_some_and(|address| address.starts_with("10.8.0.")));
    assert!(made.get("routes").is_none(), "an internal network has no default route: {made}");
    Ok(())
}

#[test]
fn whatever_is_killed_nothing_half_attached_stays() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "app", &[])?;
    let host = lab.host(1);
    let plugin = Plugin::new(&host, "app")?;
    let container = lab.namespace(1, "c1")?;
    let kept = lab.namespace(1, "kept")?;
    result(plugin.add("kept", kept.netns()).output()?)?;
    let only_kept = || endpoints(&lab, 1).is_ok_and(|names| names == ["kept"]);

    // The plugin is killed somewhere in its ADD; the runtime's DEL comes or does not.
    for n in 0..12u64 {
        let log = host.path().join("plugin.log");
        let call = plugin.add("id", container.netns()).spawn(&log)?;
        let begun = Instant::now();
        eventually("the ADD is under way", PATIENCE, || begun.elapsed() >= Duration::from_millis(4 * n))?;
        // Its handle kills it.
        drop(call);
        if n % 2 == 0 {
            plugin.del("id")?.ok()?;
        }
        eventually("nothing of the ADD stays", PATIENCE, only_kept)?;
    }

    // A DEL while the agent is away succeeds, and is carried out when it is back.
    result(plugin.add("id", container.netns()).output()?)?;
    host.kill_meshd()?;
    plugin.del("id")?.ok()?;
    refused(&plugin.add("id2", container.netns()).output()?, 11);
    refused(&plugin.command("STATUS").output()?, 50);
    fs::write(Plugin::spool(&host).join("0-0.json"), "rubbish").expect("the spool can be written");
    host.start_meshd()?;
    eventually("the DEL is carried out", PATIENCE, only_kept)?;
    eventually("the spool is empty", PATIENCE, || {
        fs::read_dir(Plugin::spool(&host)).is_ok_and(|mut files| files.next().is_none())
    })?;
    result(plugin.add("id", container.netns()).output()?)?;
    plugin.del("id")?.ok()?;

    // A namespace that is gone takes its attachment with it, without a DEL.
    result(plugin.add("id", container.netns()).output()?)?;
    container.remove()?;
    eventually("the lost attachment is collected", Duration::from_secs(10), only_kept)?;
    Ok(())
}

#[test]
fn a_gc_removes_only_what_is_forgotten_and_gone() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "app", &[])?;
    let host = lab.host(1);
    let plugin = Plugin::new(&host, "app")?;
    let [one, two] = [lab.namespace(1, "c1")?, lab.namespace(1, "c2")?];
    result(plugin.add("one", one.netns()).output()?)?;
    result(plugin.add("two", two.netns()).output()?)?;
    // Another runtime lists only its own; an empty list is as good as a wrong one.
    for list in [json!([]), json!([{"containerID": "two", "ifname": "eth0"}])] {
        plugin.with("cni.dev/valid-attachments", list).command("GC").output()?.ok()?;
        assert_eq!(endpoints(&lab, 1)?.len(), 2, "both containers live");
    }
    // The same pod is started again while its old sandbox still exists: both have a name, and the
    // old one's DEL leaves the new one alone.
    let named = |id: &str, netns| {
        plugin.add(id, netns).env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=pod").output().and_then(result)
    };
    let [old, new] = [lab.namespace(1, "old")?, lab.namespace(1, "new")?];
    named("old", old.netns())?;
    let attached = named("new", new.netns())?;
    plugin.del("old")?.ok()?;
    one.ping(address(&attached))?.all_answered()?;
    assert_eq!(endpoints(&lab, 1)?.len(), 3);
    Ok(())
}

#[test]
fn an_agent_that_hangs_is_given_up_and_its_late_attachment_undone() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    let host = lab.host(1);
    let plugin = Plugin::new(&host, "app")?;
    // Somebody who accepts and never answers.
    let path = host.path().join("hung.sock");
    let _hung = UnixListener::bind(&path).expect("a socket in the lab's directory");
    let hung = plugin.with("socket", path.to_string_lossy().into_owned());
    let begun = Instant::now();
    refused(&hung.command("STATUS").output()?, 50);
    assert!(begun.elapsed() < Duration::from_secs(30), "it waited {:?}", begun.elapsed());
    Ok(())
}
