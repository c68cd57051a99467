//! Health checks: the node that owns an endpoint tries, from within the endpoint's own namespace, whether it does what
//! its services are for.

mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_model::endpoint::NetnsRef;
use mesh_model::{Backend, BackendId, Endpoint, EndpointId, EndpointPhase, HealthCheck, NodeId, ServiceId};
use mesh_planner::services::Records;
use tokio::net::TcpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::agent::Agent;
use crate::host::Host;
use crate::services::ServiceRecords;

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

/// The backends of this node that are to be checked, by service, and what that was found out from.
#[derive(Debug, Default)]
struct Subjects {
    services: ServiceRecords,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    by_service: BTreeMap<ServiceId, BTreeMap<BackendId, Subject>>,
}

impl Subjects {
    /// Looks at those services again that may have others than before. Whether any has.
    fn follow(
        &mut self,
        services: ServiceRecords,
        endpoints: BTreeMap<EndpointId, Endpoint>,
        node: &NodeId,
    ) -> bool {
        let changed: BTreeSet<ServiceId> = if endpoints == self.endpoints {
            services.changed_since(&self.services).into_iter().cloned().collect()
        } else {
            let checked = services.checked().map(|records| records.service.id.clone());
            checked.chain(self.by_service.keys().cloned()).collect()
        };
        let mut differ = false;
        for id in changed {
            let now = services.get(&id).map(|records| subjects(records, &endpoints, node));
            let now = now.filter(|now| !now.is_empty());
            if now.as_ref() == self.by_service.get(&id) {
                continue;
            }
            differ = true;
            match now {
                Some(now) => self.by_service.insert(id, now),
                None => self.by_service.remove(&id),
            };
        }
        (self.services, self.endpoints) = (services, endpoints);
        differ
    }

    fn all(&self) -> BTreeMap<BackendId, &Subject> {
        self.by_service.values().flatten().map(|(id, subject)| (*id, subject)).collect()
    }
}

/// Those of one service.
fn subjects(
    records: &Records,
    endpoints: &BTreeMap<EndpointId, Endpoint>,
    node: &NodeId,
) -> BTreeMap<BackendId, Subject> {
    let Some(check) = &records.service.health else { return BTreeMap::new() };
    let own = records.backends.values().filter(|backend| backend.node == *node);
    let subject = |backend: &Backend| {
        let endpoint = endpoints.get(&backend.endpoint);
        let endpoint = endpoint.filter(|endpoint| endpoint.phase == EndpointPhase::Attached)?;
        let address = endpoint.addresses().next()?;
        Some((backend.id, Subject { check: check.clone(), address, netns: endpoint.netns.clone() }))
    };
    own.filter_map(subject).collect()
}

/// Checks this node's backends for ever.
pub(crate) async fn run(agent: Arc<Agent>, host: Arc<dyn Host>) {
    let mut changes = agent.service_changes();
    let mut checked: BTreeMap<BackendId, (Subject, AbortHandle)> = BTreeMap::new();
    let mut subjects = Subjects::default();
    let mut tasks = JoinSet::new();
    loop {
        changes.mark_unchanged();
        let (services, endpoints) =
            agent.read(|state| (state.view.services.clone(), state.endpoints.clone()));
        if subjects.follow(services, endpoints, agent.id()) {
            let wanted = subjects.all();
            checked.retain(|id, (subject, task)| {
                let stays = wanted.get(id) == Some(&&*subject);
                if !stays {
                    task.abort();
                }
                stays
            });
            agent.set_checked(&wanted.keys().copied().collect());
            for (id, subject) in wanted {
                checked.entry(id).or_insert_with(|| {
                    let task = tasks.spawn(check_for_ever(agent.clone(), host.clone(), id, subject.clone()));
                    (subject.clone(), task)
                });
            }
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
