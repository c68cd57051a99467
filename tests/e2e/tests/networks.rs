//! Networks are created, listed, inspected and removed; invalid requests are refused with the
//! reason.

use std::collections::BTreeSet;
use std::thread;

use mesh_e2e::{create_network, distinct_addresses, json, refused};
use mesh_harness::{Lab, Result};

#[test]
fn a_network_has_the_given_values_and_gets_defaults_for_others() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "plain", &[])?;
    create_network(
        &lab,
        "full",
        &[
            "--subnet",
            "10.9.0.0/24",
            "--gateway",
            "10.9.0.254",
            "--ip-range",
            "10.9.0.128/25",
            "--aux-address",
            "printer=10.9.0.130",
            "--internal",
            "--mtu",
            "1300",
            "--vni",
            "77",
            "--label",
            "team=a",
            "-o",
            "mtu=1300",
        ],
    )?;
    create_network(&lab, "dual", &["--ipv6"])?;
    let host = lab.host(1);

    let plain = json(&host, &["network", "inspect", "plain"])?;
    assert_eq!(plain["driver"], "overlay");
    assert_eq!(plain["vni"], 4096);
    assert_eq!(plain["mtu"], 1450);
    assert_eq!(plain["subnets"][0]["subnet"], "10.64.0.0/20");
    assert_eq!(plain["subnets"][0]["gateway"], "10.64.0.1");
    assert_eq!((&plain["encrypted"], &plain["internal"]), (&false.into(), &false.into()));
    assert_eq!(plain["endpoints"], serde_json::json!([]));

    let full = json(&host, &["network", "inspect", "full"])?;
    assert_eq!((&full["vni"], &full["mtu"], &full["internal"]), (&77.into(), &1300.into(), &true.into()));
    assert_eq!(full["subnets"][0]["gateway"], "10.9.0.254");
    assert_eq!(full["subnets"][0]["ip_range"], "10.9.0.128/25");
    assert_eq!(full["subnets"][0]["aux"]["printer"], "10.9.0.130");
    assert_eq!((&full["labels"]["team"], &full["options"]["mtu"]), (&"a".into(), &"1300".into()));

    let dual = json(&host, &["network", "inspect", "dual"])?;
    let families: Vec<bool> = dual["subnets"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|s| s["subnet"].to_string().contains(':'))
        .collect();
    assert_eq!(families, [false, true]);

    let both = json(&host, &["network", "inspect", "plain", "full"])?;
    assert_eq!(both.as_array().map(Vec::len), Some(2));
    let filtered = json(&host, &["network", "ls", "--filter", "name=full"])?;
    assert_eq!(filtered.as_array().map(Vec::len), Some(1));
    let ids = host.meshctl(["network", "ls", "-q"])?.text()?;
    assert_eq!(ids.lines().count(), 3);
    Ok(())
}

#[test]
fn the_error_of_an_impossible_request_names_the_value_and_the_conflict() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "app", &["--subnet", "10.9.0.0/24", "--vni", "5000"])?;
    let cases: &[(i32, &str, &[&str])] = &[
        (4, "app", &["app"]),
        (4, "app", &["--subnet", "10.9.0.128/25", "b"]),
        (4, "app", &["--vni", "5000", "b"]),
        (4, "192.168.77.", &["--subnet", "192.168.77.0/24", "b"]),
        (2, "8388608", &["--vni", "8388608", "b"]),
        (2, "10.10.0.1/24", &["--subnet", "10.10.0.1/24", "b"]),
        (2, "10.10.0.0/33", &["--subnet", "10.10.0.0/33", "b"]),
        (2, "nonsense", &["--subnet", "nonsense", "b"]),
        (2, "10.11.0.1", &["--subnet", "10.10.0.0/24", "--gateway", "10.11.0.1", "b"]),
        (2, "10.10.0.255", &["--subnet", "10.10.0.0/24", "--gateway", "10.10.0.255", "b"]),
        (2, "10.11.0.0/25", &["--subnet", "10.10.0.0/24", "--ip-range", "10.11.0.0/25", "b"]),
        (2, "10.11.0.9", &["--subnet", "10.10.0.0/24", "--aux-address", "x=10.11.0.9", "b"]),
        (2, "-bad", &["--", "-bad"]),
        (2, "a b", &["a b"]),
        (2, "67", &["--mtu", "67", "b"]),
        (2, "bridge", &["-d", "bridge", "b"]),
    ];
    for (code, named, args) in cases {
        let output = lab.host(1).meshctl(["network", "create"].iter().chain(*args).copied())?;
        assert_eq!(output.code, *code, "{args:?}: {output:?}");
        assert!(output.stderr.contains(named), "{args:?} should name {named}: {}", output.stderr);
    }
    assert_eq!(
        json(&lab.host(1), &["network", "ls"])?.as_array().map(Vec::len),
        Some(1),
        "nothing half-made"
    );
    Ok(())
}

#[test]
fn a_network_in_use_is_not_removed_and_the_error_names_the_user() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &[])?;
    create_network(&lab, "idle", &[])?;
    let db = lab.container(2, "db", ["--network", "app"])?;
    let manager = lab.host(1);
    let said = refused(&manager.meshctl(["network", "rm", "app"])?, 4);
    assert!(said.contains("db") && said.contains("h2"), "{said}");
    refused(&manager.meshctl(["network", "rm", "nothing"])?, 3);

    manager.meshctl(["network", "prune", "-f"])?.ok()?;
    assert_eq!(json(&manager, &["network", "ls"])?.as_array().map(Vec::len), Some(1));

    db.detach()?.ok()?;
    manager.meshctl(["network", "rm", "app"])?.ok()?;
    refused(&manager.meshctl(["network", "inspect", "app"])?, 3);
    refused(&lab.host(2).container("db2", ["--network", "app"])?.1, 3);
    // The subnet and the VNI are free again.
    create_network(&lab, "again", &[])?;
    assert_eq!(json(&manager, &["network", "inspect", "again"])?["vni"], 4096);
    Ok(())
}

#[test]
fn two_hundred_concurrent_creates_and_attaches_allocate_nothing_twice() -> Result<()> {
    let lab = Lab::builder().hosts(3).start()?;
    create_network(&lab, "app", &[])?;
    let manager = lab.host(1);
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let creators = (0..8).map(|worker| {
            let manager = &manager;
            scope.spawn(move || {
                for n in 0..13 {
                    manager
                        .meshctl(["network", "create", "-d", "overlay", &format!("n{worker}-{n}")])?
                        .ok()?;
                }
                Ok(())
            })
        });
        let creators: Vec<_> = creators.collect();
        let attachers =
            (1..=3).flat_map(|host| (0..2).map(move |worker| (host, worker))).map(|(host, worker)| {
                let lab = &lab;
                scope.spawn(move || {
                    for n in 0..16 {
                        lab.container(host, &format!("c{host}{worker}{n}"), ["--network", "app"])?;
                    }
                    Ok(())
                })
            });
        let attachers: Vec<_> = attachers.collect();
        creators.into_iter().chain(attachers).map(|thread| thread.join().expect("no panic")).collect()
    });
    results.into_iter().collect::<Result<()>>()?;

    let networks = json(&manager, &["network", "ls"])?;
    let networks = networks.as_array().expect("an array");
    assert_eq!(networks.len(), 105);
    let vnis: BTreeSet<String> = networks.iter().map(|n| n["vni"].to_string()).collect();
    let subnets: BTreeSet<String> = networks.iter().map(|n| n["subnets"][0]["subnet"].to_string()).collect();
    assert_eq!((vnis.len(), subnets.len()), (105, 105), "no VNI and no subnet twice");

    let endpoints = json(&manager, &["endpoint", "ls", "--network", "app"])?;
    assert_eq!(distinct_addresses(&endpoints).expect("no address twice").len(), 96);
    let (a, b) = (lab.container_named("c100")?, lab.container_named("c3115")?);
    a.ping(b.ipv4()?)?.all_answered()?;
    Ok(())
}
