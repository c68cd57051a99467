//! Helpers of all scenarios: access to `meshctl`'s JSON, and common operations.
//!
//! The scenarios are in `tests/`, a file for each part of the product. Each starts a separate lab,
//! uses it only through `meshctl` and packets, and stops it at the end.

pub mod cni;
pub mod encrypted;
pub mod openmetrics;
pub mod podman;
pub mod service;
pub mod tunnel;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use mesh_harness::{Capture, Container, Encapsulation, Host, Lab, Output, Result};
use serde_json::Value;

/// Timeout of all waits, on a machine that is busy with other tests. Tests wait for a condition,
/// never for a fixed time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Both kinds of encapsulation: scenarios must behave the same with both.
pub const ENCAPSULATIONS: [Encapsulation; 2] = [Encapsulation::Direct, Encapsulation::Device];

/// Starts a lab of `hosts` hosts with a network `app`, and a container `c1`, `c2`, ... of it on
/// each of them.
pub fn lab_with_app(
    hosts: u8,
    encapsulation: Encapsulation,
    options: &[&str],
) -> Result<(Lab, Vec<Container>)> {
    let lab = Lab::builder().hosts(hosts).encapsulation(encapsulation).start()?;
    create_network(&lab, "app", options)?;
    let containers = (1..=usize::from(hosts))
        .map(|host| lab.container(host, &format!("c{host}"), ["--network", "app"]))
        .collect::<Result<Vec<_>>>()?;
    Ok((lab, containers))
}

/// Creates an overlay network on the lab's manager.
pub fn create_network(lab: &Lab, name: &str, options: &[&str]) -> Result<Output> {
    let args = [&["network", "create", "-d", "overlay"], options, &[name]].concat();
    lab.host(1).meshctl(args)?.ok()
}

/// Runs `meshctl ARGS --format json` on a host.
pub fn json(host: &Host, args: &[&str]) -> Result<Value> {
    host.meshctl([args, &["--format", "json"]].concat())?.json()
}

/// Returns the packets that a host's datapath has counted for a reason, over all networks.
pub fn counted(host: &Host, reason: &str) -> Result<u64> {
    let status = json(host, &["status"])?;
    let counters = status["counters"].as_array().cloned().unwrap_or_default();
    Ok(counters.iter().filter(|c| c["reason"] == reason).filter_map(|c| c["packets"].as_u64()).sum())
}

/// Returns the addresses of a network's endpoints according to the manager; a duplicate is an
/// error.
pub fn distinct_addresses(endpoints: &Value) -> std::result::Result<BTreeSet<Ipv4Addr>, String> {
    let mut seen = BTreeSet::new();
    for endpoint in endpoints.as_array().into_iter().flatten() {
        let address = endpoint["ipv4"].as_str().and_then(|ip| ip.parse().ok());
        let address = address.ok_or_else(|| format!("endpoint without an address: {endpoint}"))?;
        if !seen.insert(address) {
            return Err(format!("{address} was given twice"));
        }
    }
    Ok(seen)
}

/// Returns the error of a command that must have failed with `code` and one `error:` line.
///
/// # Panics
///
/// If it did not fail like this, which is what the calling test asserts.
#[track_caller]
pub fn refused(output: &Output, code: i32) -> String {
    let stderr = output.stderr.clone();
    assert_eq!(output.code, code, "{output:?}");
    let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "one line says what went wrong: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// Captures everything that crosses the underlay from now on.
pub fn underlay_capture(lab: &Lab) -> Result<Capture> {
    Capture::start(&lab.underlay())
}

/// Returns whether a packet of exactly `mtu` bytes with DF set arrives, and whether one with one
/// byte more does.
pub fn largest_unfragmented(container: &Container, target: Ipv4Addr, mtu: u16) -> Result<(bool, bool)> {
    let ping = |size: u16| {
        mesh_harness::traffic::Ping::new(target.into())
            .count(2)
            .wait(Duration::from_millis(700))
            .size(size)
            .dont_fragment()
            .run(container.netns())
    };
    // 20 bytes of IPv4 header and 8 of ICMP.
    let fits = ping(mtu - 28)?.received > 0;
    let exceeds = ping(mtu - 27).is_ok_and(|report| report.received > 0);
    Ok((fits, exceeds))
}
