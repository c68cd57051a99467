//! Helpers for scenarios with services.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh_harness::traffic::{Answer, Connection, LoadReport, UdpClient, WebServer, ask, load};
use mesh_harness::{Container, Host, Lab, Netns, Output, Result, eventually};
use serde_json::Value;

use crate::{PATIENCE, json};

/// Port that every backend's web server listens on.
pub const TARGET: u16 = 80;

/// A container with a backend's server. Dropping the value stops the server, not the container.
#[derive(Debug)]
pub struct Backend {
    /// The container; the server reports its name.
    pub container: Container,
    /// Its web server, on [`TARGET`].
    pub server: WebServer,
}

/// Creates a service on the network `app`.
pub fn create_service(lab: &Lab, name: &str, options: &[&str]) -> Result<Output> {
    lab.host(1).meshctl([&["service", "create", "--name", name, "--network", "app"], options].concat())?.ok()
}

/// Starts a container on the network `app` with a server, and then makes it a backend of `service`,
/// so that it gets no connection before it listens.
pub fn add_backend(lab: &Lab, host: usize, name: &str, service: &str) -> Result<Backend> {
    let container = lab.container(host, name, ["--network", "app"])?;
    let server = container.serve(TARGET)?;
    change_backend(&lab.host(1), "add", service, name)?.ok()?;
    Ok(Backend { container, server })
}

/// Runs `service backend add|rm|drain|activate`.
pub fn change_backend(host: &Host, change: &str, service: &str, endpoint: &str) -> Result<Output> {
    host.meshctl(["service", "backend", change, service, endpoint])
}

/// Creates a service `web` on the network `app` with a backend `b1`, `b2`, ... on each of these
/// hosts.
pub fn web(lab: &Lab, hosts: &[usize], options: &[&str]) -> Result<Vec<Backend>> {
    create_service(lab, "web", options)?;
    (1..).zip(hosts).map(|(number, host)| add_backend(lab, *host, &format!("b{number}"), "web")).collect()
}

/// Opens this many connections, each with the name of the backend that answers on it.
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

/// Asserts that each connection is still answered by its backend.
pub fn assert_kept(open: &mut [(String, Connection)]) -> Result<()> {
    for (backend, connection) in open {
        assert_eq!(connection.ask()?.backend, *backend);
    }
    Ok(())
}

/// Returns the virtual address of a service with the port of its backends.
pub fn vip(lab: &Lab, service: &str) -> Result<SocketAddr> {
    virtual_address(lab, service, "vip")
}

/// As [`vip`], for IPv6.
pub fn vip6(lab: &Lab, service: &str) -> Result<SocketAddr> {
    virtual_address(lab, service, "vip6")
}

fn virtual_address(lab: &Lab, service: &str, field: &str) -> Result<SocketAddr> {
    let service = json(&lab.host(1), &["service", "inspect", service])?;
    let address = service[field].as_str().and_then(|address| address.parse::<IpAddr>().ok());
    let missing = || mesh_harness::Error::Traffic(format!("no {field}: {service}"));
    Ok(SocketAddr::new(address.ok_or_else(missing)?, TARGET))
}

/// Returns a service's backends from `service inspect`.
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

/// Returns a source address and port that the kernel chooses.
pub fn any_port() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)
}

/// Returns the answers over TCP and over UDP.
pub fn both(netns: &Netns, target: SocketAddr) -> Result<[Answer; 2]> {
    let any: IpAddr = if target.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let socket = UdpClient::bind(netns, SocketAddr::new(any, 0))?;
    let datagram = socket.ask(target, PATIENCE)?.ok_or_else(|| {
        mesh_harness::Error::Traffic(format!("no answer over UDP from {target} to {}", netns.name()))
    })?;
    Ok([ask(netns, target)?, datagram])
}

/// Asserts that `count` connections from `client` are all answered, with these shares of the
/// backends.
///
/// # Panics
///
/// If they are not, which is what the calling test asserts.
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

/// Returns the backends that answer `count` connections from `client`; all must be answered.
pub fn who_answers(client: &Container, target: SocketAddr, count: u64) -> Result<Vec<String>> {
    let report = load(client.netns(), target, count, 4)?.all_answered()?;
    Ok(report.by_backend.into_keys().collect())
}
