//! Health checks: the node that owns an endpoint tries, from within the endpoint's own namespace, whether it does what
//! its services are for.

mod check;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_model::endpoint::NetnsRef;
use mesh_model::{BackendId, EndpointPhase, HealthCheck};
use tokio::net::TcpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::agent::{Agent, State};
use crate::host::Host;

/// What is checked of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Subject {
    check: HealthCheck,
    address: IpAddr,
    netns: NetnsRef,
}

/// What the last tries of a backend tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Verdict {
    failures: u32,
    healthy: Option<bool>,
}

impl Verdict {
    /// Takes account of one more try. A new backend counts as healthy without having been found so.
    fn judge(&mut self, passed: bool, retries: u32) {
        if passed {
            *self = Self { failures: 0, healthy: Some(true) };
        } else {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= retries {
                self.healthy = Some(false);
            }
        }
    }
}

/// The backends of this node that are to be checked.
fn subjects(agent: &Agent, state: &State) -> BTreeMap<BackendId, Subject> {
    let mut subjects = BTreeMap::new();
    for records in state.view.services.values() {
        let Some(check) = &records.service.health else { continue };
        for backend in records.backends.values().filter(|backend| backend.node == *agent.id()) {
            let endpoint = state.endpoints.get(&backend.endpoint);
            let Some(endpoint) = endpoint.filter(|endpoint| endpoint.phase == EndpointPhase::Attached) else {
                continue;
            };
            let Some(address) = endpoint.addresses().next() else { continue };
            let subject = Subject { check: check.clone(), address, netns: endpoint.netns.clone() };
            subjects.insert(backend.id, subject);
        }
    }
    subjects
}

/// Checks this node's backends for ever.
pub(crate) async fn run(agent: Arc<Agent>, host: Arc<dyn Host>) {
    let mut changes = agent.service_changes();
    let mut checked: BTreeMap<BackendId, (Subject, AbortHandle)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        changes.mark_unchanged();
        let wanted = agent.read(|state| subjects(&agent, state));
        checked.retain(|id, (subject, task)| {
            let stays = wanted.get(id) == Some(subject);
            if !stays {
                task.abort();
            }
            stays
        });
        agent.set_checked(&wanted.keys().copied().collect());
        for (id, subject) in wanted {
            checked.entry(id).or_insert_with(|| {
                let task = tasks.spawn(check_for_ever(agent.clone(), host.clone(), id, subject.clone()));
                (subject, task)
            });
        }
        tokio::select! {
            _ = changes.changed() => {}
            // Those that were aborted; the others never end.
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn check_for_ever(agent: Arc<Agent>, host: Arc<dyn Host>, id: BackendId, subject: Subject) {
    let mut verdict = Verdict::default();
    let mut ticks = interval(subject.check.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let passed = match timeout(subject.check.timeout(), attempt(&host, &subject)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(backend = %id, address = %subject.address, %error, "a check failed");
                false
            }
            Err(_) => {
                tracing::debug!(backend = %id, address = %subject.address, "a check got no answer in time");
                false
            }
        };
        let before = verdict.healthy;
        verdict.judge(passed, subject.check.retries);
        if let Some(healthy) = verdict.healthy.filter(|_| verdict.healthy != before) {
            tracing::info!(backend = %id, address = %subject.address, healthy, "the backend's health has changed");
            agent.set_health(id, healthy);
        }
    }
}

async fn attempt(host: &Arc<dyn Host>, subject: &Subject) -> Result<(), check::CheckError> {
    let (host, netns, is_v6) = (host.clone(), subject.netns.clone(), subject.address.is_ipv6());
    let socket = tokio::task::spawn_blocking(move || host.tcp_socket(&netns, is_v6)).await;
    let socket = socket.map_err(std::io::Error::other)?.map_err(std::io::Error::other)?;
    check::attempt(&subject.check.kind, subject.address, TcpSocket::from_std_stream(socket)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_unhealthy_after_its_retries_and_healthy_again_at_the_first_success() {
        let mut verdict = Verdict::default();
        for expected in [None, None, Some(false), Some(false)] {
            verdict.judge(false, 3);
            assert_eq!(verdict.healthy, expected);
        }
        verdict.judge(true, 3);
        assert_eq!(verdict.healthy, Some(true));
        verdict.judge(false, 3);
        assert_eq!(verdict.healthy, Some(true));
        verdict.judge(false, 1);
        assert_eq!(verdict.healthy, Some(false));
    }
}
