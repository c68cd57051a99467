//! Conflicts of published ports with the host's own sockets: found on a manager's request, and
//! reported as problems while they last.

use std::sync::Arc;
use std::time::Duration;

use mesh_host::{Host, HostSockets, blocking};
use mesh_kernel::KernelError;
use mesh_model::{Network, NodeId, PublishMode, PublishedPort, Service};
use mesh_state::{Agent, State};
use tokio::time::{Instant, sleep};

/// Interval between scans of the host's sockets. On a host with many sockets a scan takes long; the
/// interval is then lengthened to bound the CPU time.
const PAUSE: Duration = Duration::from_secs(1);
const SHARE: u32 = 100;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Number of conflicts that are reported individually.
const NAMED: usize = 5;

/// Reports conflicts of this host's sockets with published ports until it is cancelled. A socket
/// may be opened after the port was published, and a node that was away could not be asked then.
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
            agent.update(|state| state.port_conflicts.clear());
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
    agent.update(|state| state.port_conflicts = found);
}

/// The published ports of one service.
struct Published {
    service: String,
    network: String,
    ports: Vec<PublishedPort>,
}

impl Published {
    /// Returns the ports that this host answers.
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
    use mesh_host::fake::host_sockets;
    use mesh_model::Protocol;

    use super::*;

    #[test]
    fn the_first_of_many_conflicts_are_named_and_the_rest_counted() {
        let ports = (1..=7).map(|n| PublishedPort::ingress(8080, n, Protocol::Tcp)).collect();
        let published = [Published { service: "shop".into(), network: "app".into(), ports }];
        let problems = problems(&published, &host_sockets(&["0.0.0.0"]));
        assert_eq!(problems.len(), NAMED + 1);
        assert!(problems[0].contains("port 8080/tcp of service shop of network app"), "{}", problems[0]);
        assert!(problems[NAMED].starts_with("2 more"), "{}", problems[NAMED]);
    }
}
