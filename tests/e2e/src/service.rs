//! Words for scenarios with services.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh_harness::traffic::{Answer, Connection, LoadReport, UdpClient, WebServer, ask, load};
use mesh_harness::{Container, Host, Lab, Netns, Output, Result, eventually};
use serde_json::Value;

use crate::{PATIENCE, json};

/// Port that every backend's web server listens on.
pub const TARGET: u16 = 80;

/// A container that answers for a service. The server ends with the value, the container does not.
#[derive(Debug)]
pub struct Backend {
    /// The container; its name is what the server calls itself.
    pub container: Container,
    /// Its web server, on [`TARGET`].
    pub server: WebServer,
}

/// Creates a service on the network `app`.
pub fn create_service(lab: &Lab, name: &str, options: &[&str]) -> Result<Output> {
    lab.host(1).meshctl([&["service", "create", "--name", name, "--network", "app"], options].concat())?.ok()
}

/// A container on the network `app` that serves, and then becomes a backend of `service`: nobody is
/// sent to it before it listens.
pub fn add_backend(lab: &Lab, host: usize, name: &str, service: &str) -> Result<Backend> {
    let container = lab.container(host, name, ["--network", "app"])?;
    let server = container.serve(TARGET)?;
    change_backend(&lab.host(1), "add", service, name)?.ok()?;
    Ok(Backend { container, server })
}

/// `service backend add|rm|drain|activate`.
pub fn change_backend(host: &Host, change: &str, service: &str, endpoint: &str) -> Result<Output> {
    host.meshctl(["service", "backend", change, service, endpoint])
}

/// A service `web` on the network `app` with a backend `b1`, `b2`, ... on each of the hosts
/// numbered.
pub fn web(lab: &Lab, hosts: &[usize], options: &[&str]) -> Result<Vec<Backend>> {
    create_service(lab, "web", options)?;
    (1..).zip(hosts).map(|(number, host)| add_backend(lab, *host, &format!("b{number}"), "web")).collect()
}

/// This many connections, left open, each with the backend that answers on it.
pub fn open_connections(
    netns: &Netns,
    target: SocketAddr,
    count: usize,
) -> Result<Vec<(String, Connection)>> {
    (0..count)
        .map(|_| {
            let mut connection = Connection::open(netns, target)?;
            Ok((connection.ask()?.backend, connection))
        })
        .collect()
}

/// Each of the connections still is with the backend that it was with.
pub fn assert_kept(open: &mut [(String, Connection)]) -> Result<()> {
    for (backend, connection) in open {
        assert_eq!(connection.ask()?.backend, *backend);
    }
    Ok(())
}

/// The virtual address of a service and the port of its backends.
pub fn vip(lab: &Lab, service: &str) -> Result<SocketAddr> {
    virtual_address(lab, service, "vip")
}

/// Likewise over IPv6.
pub fn vip6(lab: &Lab, service: &str) -> Result<SocketAddr> {
    virtual_address(lab, service, "vip6")
}

fn virtual_address(lab: &Lab, service: &str, field: &str) -> Result<SocketAddr> {
    let service = json(&lab.host(1), &["service", "inspect", service])?;
    let address = service[field].as_str().and_then(|address| address.parse::<IpAddr>().ok());
    let missing = || mesh_harness::Error::Traffic(format!("no {field}: {service}"));
    Ok(SocketAddr::new(address.ok_or_else(missing)?, TARGET))
}

/// A service's backends as `service inspect` shows them.
pub fn backends(host: &Host, service: &str) -> Result<Vec<Value>> {
    let service = json(host, &["service", "inspect", service])?;
    Ok(service["endpoints"].as_array().cloned().unwrap_or_default())
}

/// Waits until `service inspect` shows a backend with this health.
pub fn wait_for_health(host: &Host, service: &str, backend: &str, health: &str) -> Result<()> {
    eventually(&format!("{backend} is {health}"), PATIENCE, || {
        backends(host, service)
            .is_ok_and(|all| all.iter().any(|one| one["name"] == backend && one["health"] == health))
    })
}

/// A source that the kernel chooses.
pub fn any_port() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)
}

/// The answers over TCP and over UDP.
pub fn both(netns: &Netns, target: SocketAddr) -> Result<[Answer; 2]> {
    let any: IpAddr = if target.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let socket = UdpClient::bind(netns, SocketAddr::new(any, 0))?;
    let datagram = socket.ask(target, PATIENCE)?.ok_or_else(|| {
        mesh_harness::Error::Traffic(format!("no answer over UDP from {target} to {}", netns.name()))
    })?;
    Ok([ask(netns, target)?, datagram])
}

/// Asserts that `count` connections from `client` are all answered, and by backends in these shares
/// of the whole.
///
/// # Panics
/// When they are not: that is what the calling test is about.
#[track_caller]
pub fn assert_shares(report: &LoadReport, names: &[&str], tolerance: f64) {
    let total = report.answered;
    assert_eq!(report.by_backend.keys().collect::<Vec<_>>(), names, "who answered");
    #[expect(clippy::cast_precision_loss, reason = "thousands of connections")]
    for (name, count) in &report.by_backend {
        let share = *count as f64 / total as f64;
        let fair = 1.0 / names.len() as f64;
        assert!((share - fair).abs() <= tolerance, "{name} answered {share:.3} of {total}: {report:?}");
    }
}

/// The backends that answer `count` connections from `client`, all of which must be answered.
pub fn who_answers(client: &Container, target: SocketAddr, count: u64) -> Result<Vec<String>> {
    let report = load(client.netns(), target, count, 4)?.all_answered()?;
    Ok(report.by_backend.into_keys().collect())
}
