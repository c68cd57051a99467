//! Commands for services: refused requests and their errors.

use mesh_e2e::service::{backends, change_backend, create_service, vip};
use mesh_e2e::{create_network, json, refused};
use mesh_harness::{Lab, Result};

fn lab(hosts: u8) -> Result<Lab> {
    let lab = Lab::builder().hosts(hosts).start()?;
    create_network(&lab, "app", &[])?;
    Ok(lab)
}

#[test]
fn an_impossible_service_is_refused_in_one_line() -> Result<()> {
    let lab = lab(1)?;
    let manager = lab.host(1);
    create_network(&lab, "other", &[])?;
    create_service(&lab, "web", &["-p", "8080:80"])?;
    lab.container(1, "c1", ["--network", "app"])?;
    lab.container(1, "o1", ["--network", "other"])?;
    let create = |rest: &[&str]| manager.meshctl([&["service", "create"], rest].concat());
    for (code, rest) in [
        (4, &["--name", "web", "--network", "app"][..]),
        (3, &["--name", "x", "--network", "nowhere"]),
        (2, &["--name", "-x", "--network", "app"]),
        (2, &["--name", "a b", "--network", "app"]),
        (4, &["--name", "x", "--network", "app", "-p", "8080:81"]),
        (2, &["--name", "x", "--network", "app", "-p", "0:0"]),
        (2, &["--name", "x", "--network", "app", "-p", "80:70000"]),
        (2, &["--name", "x", "--network", "app", "-p", "eighty"]),
        (2, &["--name", "x", "--network", "app", "-p", "80:80/icmp"]),
        (2, &["--name", "x", "--network", "app", "--health-http", "80"]),
        (2, &["--name", "x", "--network", "app", "--health-tcp", "0"]),
        (2, &["--name", "x", "--network", "app", "--affinity", "moon"]),
        (2, &["--name", "x", "--network", "app", "--endpoint-mode", "moon"]),
        (2, &["--name", "x", "--network", "app", "--vip", "not-an-address"]),
    ] {
        refused(&create(rest)?, code);
    }
    // Outside the subnet, the gateway's address, an endpoint's address.
    let c1 = json(&manager, &["endpoint", "inspect", "c1"])?;
    let taken = c1["ipv4"].as_str().expect("an address").to_owned();
    for address in ["203.0.113.9", "10.64.0.1", taken.as_str()] {
        let output = create(&["--name", "x", "--network", "app", "--vip", address])?;
        assert!(matches!(output.code, 2 | 4), "{address}: {output:?}");
        refused(&output, output.code);
    }
    refused(&change_backend(&manager, "add", "web", "nobody")?, 3);
    refused(&change_backend(&manager, "add", "nothing", "c1")?, 3);
    refused(&change_backend(&manager, "rm", "web", "c1")?, 3);
    refused(&change_backend(&manager, "drain", "web", "c1")?, 3);
    // A backend must be on the service's own network.
    let output = change_backend(&manager, "add", "web", "o1")?;
    assert!(matches!(output.code, 2..=4), "{output:?}");
    change_backend(&manager, "add", "web", "c1")?.ok()?;
    // It already is a backend.
    change_backend(&manager, "add", "web", "c1")?.ok()?;
    assert_eq!(backends(&manager, "web")?.len(), 1);
    refused(&manager.meshctl(["service", "inspect", "nothing"])?, 3);
    refused(&manager.meshctl(["service", "rm", "nothing"])?, 3);
    refused(&manager.meshctl(["service", "update", "nothing", "--publish-add", "81:81"])?, 3);
    let error = refused(&manager.meshctl(["network", "rm", "app"])?, 4);
    assert!(error.contains("web") || error.contains("c1"), "{error}");
    let services = json(&manager, &["service", "ls"])?;
    assert_eq!(services.as_array().map(Vec::len), Some(1), "{services}");
    Ok(())
}

#[test]
fn a_vip_is_chosen_or_given_and_released_with_its_service() -> Result<()> {
    let lab = lab(1)?;
    create_service(&lab, "one", &[])?;
    let first = vip(&lab, "one")?.ip().to_string();
    refused(
        &lab.host(1).meshctl(["service", "create", "--name", "two", "--network", "app", "--vip", &first])?,
        4,
    );
    lab.host(1).meshctl(["service", "rm", "one"])?.ok()?;
    create_service(&lab, "two", &["--vip", &first])?;
    assert_eq!(vip(&lab, "two")?.ip().to_string(), first);
    refused(&lab.host(1).container("c1", ["--network", "app", "--ip", &first])?.1, 4);
    lab.host(1).meshctl(["service", "rm", "two"])?.ok()?;
    lab.host(1).meshctl(["network", "rm", "app"])?.ok()?;
    Ok(())
}
