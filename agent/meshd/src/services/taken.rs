//! Conflicts of published ports with the host's own sockets: found for a manager that asks, and
//! reported as problems for as long as they last.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use mesh_kernel::{KernelError, Listeners};
use mesh_model::{Network, NodeId, PublishMode, PublishedPort, Service};
use tokio::time::{Instant, sleep};

use crate::agent::{Agent, State};
use crate::blocking::blocking;
use crate::host::Host;

/// Pause between two looks at the host's sockets. On a host with many sockets a look takes time,
/// and then the pause is as many times longer as keeps its share of a processor small.
const PAUSE: Duration = Duration::from_secs(1);
const SHARE: u32 = 100;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// This many conflicts are reported one by one.
const NAMED: usize = 5;

/// The host's sockets, and the addresses that published ports are served on.
#[derive(Debug, Clone, Default)]
pub struct HostSockets {
    listeners: Listeners,
    addresses: BTreeSet<IpAddr>,
}

impl HostSockets {
    /// The sockets of a host with these addresses.
    pub fn new(listeners: Listeners, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        // Of the loopback addresses, published ports are served on these two.
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let others = addresses.into_iter().filter(|address| !address.is_loopback());
        Self { listeners, addresses: others.chain(loopback).collect() }
    }

    /// The address of a socket that listens where this port is served, or is to be.
    pub fn conflict(&self, port: &PublishedPort) -> Option<IpAddr> {
        let conflicts = |listens: &IpAddr| match port.host_ip {
            Some(served) if listens.is_unspecified() => {
                // A socket of the unspecified IPv6 address takes IPv4 packets, too.
                (served.is_loopback() || self.addresses.contains(&served))
                    && (listens.is_ipv6() || served.is_ipv4())
            }
            Some(served) => *listens == served,
            None => listens.is_unspecified() || self.addresses.contains(listens),
        };
        self.listeners.at(port.protocol, port.published).find(conflicts)
    }
}

/// Those of the ports that the host's own sockets have.
pub(crate) async fn taken(
    host: Arc<dyn Host>,
    ports: Vec<PublishedPort>,
) -> Result<Vec<PublishedPort>, KernelError> {
    blocking(move || {
        let sockets = host.sockets()?;
        Ok(ports.into_iter().filter(|port| sockets.conflict(port).is_some()).collect())
    })
    .await
}

/// Reports the conflicts of this host's sockets with the ports that are published, for ever: a
/// socket may be opened after the port was published, and a node that was away was not asked.
pub async fn watch(agent: Arc<Agent>, host: Arc<dyn Host>) {
    let mut changes = agent.service_changes();
    changes.mark_changed();
    let mut published: Arc<Vec<Published>> = Arc::default();
    loop {
        if changes.has_changed().unwrap_or_default() {
            changes.mark_unchanged();
            published = Arc::new(agent.read(|state| Published::all(state, agent.id())));
        }
        if published.is_empty() {
            agent.note(|state| state.port_conflicts.clear());
            if changes.changed().await.is_err() {
                return;
            }
            changes.mark_changed();
            continue;
        }
        let (began, host, ports) = (Instant::now(), host.clone(), published.clone());
        let found = blocking(move || Ok(problems(&ports, &host.sockets()?))).await;
        let found = found.unwrap_or_else(|error: KernelError| {
            vec![format!("conflicts of published ports with this host's sockets cannot be found: {error}")]
        });
        report(&agent, found);
        let pause = (began.elapsed() * SHARE).clamp(PAUSE, LONGEST_PAUSE);
        sleep(pause).await;
    }
}

fn report(agent: &Agent, found: Vec<String>) {
    let known = agent.read(|state| state.port_conflicts.clone());
    for problem in found.iter().filter(|problem| !known.contains(problem)) {
        tracing::warn!("{problem}");
    }
    agent.note(|state| state.port_conflicts = found);
}

/// The published ports of one service.
struct Published {
    service: String,
    network: String,
    ports: Vec<PublishedPort>,
}

impl Published {
    /// What this host answers on.
    fn all(state: &State, own: &NodeId) -> Vec<Self> {
        let network = |service: &Service| {
            let network: Option<&Network> = state.view.networks.get(&service.network);
            network.map_or_else(|| service.network.to_string(), |network| network.name.to_string())
        };
        let published = state.view.services.published().map(|records| {
            let is_here = records.backends.values().any(|backend| backend.node == *own);
            let answers = |port: &&PublishedPort| port.mode == PublishMode::Ingress || is_here;
            Self {
                service: records.service.name.to_string(),
                network: network(&records.service),
                ports: records.service.ports.iter().filter(answers).copied().collect(),
            }
        });
        published.filter(|published| !published.ports.is_empty()).collect()
    }
}

fn problems(published: &[Published], sockets: &HostSockets) -> Vec<String> {
    let conflicts = published.iter().flat_map(|Published { service, network, ports }| {
        ports.iter().filter_map(move |port| {
            let PublishedPort { published, protocol, .. } = port;
            let address = sockets.conflict(port)?;
            Some(format!(
                "port {published}/{protocol} of service {service} of network {network} conflicts with a socket of this host on {address}: stop the process that has it (ss -lnp 'sport = :{published}'), or publish another port"
            ))
        })
    });
    let mut conflicts: Vec<String> = conflicts.collect();
    let more = conflicts.len().saturating_sub(NAMED);
    conflicts.truncate(NAMED);
    if more > 0 {
        conflicts.push(format!("{more} more published ports conflict with sockets of this host"));
    }
    conflicts
}

#[cfg(test)]
mod tests {
    use mesh_model::Protocol;

    use super::*;

    fn sockets(listeners: &[&str]) -> HostSockets {
        let mut all = Listeners::default();
        for address in listeners {
            all.add(Protocol::Tcp, address.parse().unwrap(), 8080);
        }
        let addresses = ["192.0.2.1", "2001:db8::1", "127.0.0.1", "127.0.0.7"];
        HostSockets::new(all, addresses.iter().map(|address| address.parse().unwrap()))
    }

    fn conflicts(port: &str, listeners: &[&str]) -> bool {
        sockets(listeners).conflict(&port.parse().unwrap()).is_some()
    }

    #[test]
    fn a_socket_conflicts_where_the_port_is_served_and_nowhere_else() {
        for listener in ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "127.0.0.1", "::1"] {
            assert!(conflicts("8080:80", &[listener]), "{listener}");
        }
        // Neither is served: another loopback address, and that of the mesh's own name server.
        assert!(!conflicts("8080:80", &["127.0.0.7", "10.64.0.1"]));
        assert!(!conflicts("8080:80/udp", &["0.0.0.0"]) && !conflicts("8081:80", &["0.0.0.0"]));
        for listener in ["0.0.0.0", "::", "192.0.2.1"] {
            assert!(conflicts("192.0.2.1:8080:80", &[listener]), "{listener}");
        }
        assert!(!conflicts("192.0.2.1:8080:80", &["127.0.0.1", "192.0.2.2", "2001:db8::1"]));
        // Another host's address, at which nothing arrives here.
        assert!(!conflicts("192.0.2.9:8080:80", &["0.0.0.0", "::"]));
        assert!(!conflicts("[2001:db8::1]:8080:80", &["0.0.0.0"]));
        assert!(conflicts("127.0.0.7:8080:80", &["127.0.0.7"]));
    }

    #[test]
    fn of_many_conflicts_the_first_are_named_and_the_rest_counted() {
        let ports = (1..=7).map(|n| PublishedPort::ingress(8080, n, Protocol::Tcp)).collect();
        let published = [Published { service: "shop".into(), network: "app".into(), ports }];
        let problems = problems(&published, &sockets(&["0.0.0.0"]));
        assert_eq!(problems.len(), NAMED + 1);
        assert!(problems[0].contains("port 8080/tcp of service shop of network app"), "{}", problems[0]);
        assert!(problems[NAMED].starts_with("2 more"), "{}", problems[NAMED]);
    }
}
