//! Health checks: the node of an endpoint tests, from inside the endpoint's namespace, whether its
//! services work.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_host::Host;
use mesh_model::endpoint::NetnsRef;
use mesh_model::{
    Backend, BackendId, Endpoint, EndpointId, EndpointPhase, Finding, HealthCheck, NodeId, ServiceId,
};
use mesh_planner::services::Records;
use mesh_state::{Agent, ServiceRecords};
use tokio::net::TcpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::health::check::{self, CheckError};
use crate::health::verdict::Verdict;

/// Interval between two reports that differ only in the error.
const SAME_VERDICT: Duration = Duration::from_secs(5);

/// The check of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Subject {
    check: HealthCheck,
    address: IpAddr,
    netns: NetnsRef,
}

/// The backends of this node that must be checked, by service, and the inputs that determined them.
#[derive(Debug, Default)]
struct Subjects {
    services: ServiceRecords,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    by_service: BTreeMap<ServiceId, BTreeMap<BackendId, Subject>>,
}

impl Subjects {
    /// Recomputes the services whose backends may have changed; returns whether any did.
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

/// Returns the checked backends of one service.
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

/// Checks this node's backends until it is cancelled.
pub async fn run(agent: Arc<Agent>, host: Arc<dyn Host>) {
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
            // Tasks that were aborted; the others never end.
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Each backend has a separate task, so that a slow one delays no other.
async fn check_for_ever(agent: Arc<Agent>, host: Arc<dyn Host>, id: BackendId, subject: Subject) {
    let check = &subject.check;
    // Keep the earlier verdict: a new check or a restarted agent is no reason to lose traffic.
    let mut reported = agent.read(|state| state.soft.found().get(&id).cloned()).unwrap_or_default();
    let mut verdict = Verdict::new(reported.healthy, Instant::now());
    let mut reported_at = None::<Instant>;
    loop {
        let begun = Instant::now();
        let error = match attempt(&host, &subject).await {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        verdict.judge(error.is_empty(), check, Instant::now());
        let finding = Finding::new(verdict.healthy(), &error);
        let changed = finding.healthy != reported.healthy;
        if changed {
            let healthy = finding.healthy;
            tracing::info!(backend = %id, address = %subject.address, ?healthy, error, "the backend's health has changed");
        }
        let is_due = reported_at.is_none_or(|at| at.elapsed() >= SAME_VERDICT);
        if changed || (finding != reported && is_due) {
            agent.set_health(id, finding.clone());
            (reported, reported_at) = (finding, Some(Instant::now()));
        }
        let now = Instant::now();
        let pause = check.pause(verdict.healthy().is_none(), verdict.age(now));
        sleep_until((begun + pause).max(now)).await;
    }
}

/// Tries each address that the check allows until one accepts the connection.
async fn attempt(host: &Arc<dyn Host>, subject: &Subject) -> Result<(), CheckError> {
    let own = [subject.address];
    let addresses = subject.check.loopback.map_or(&own[..], |loopback| loopback.addresses());
    let mut refused = None;
    for &address in addresses {
        let socket = socket(host, subject, address.is_ipv6()).await;
        // Start the time here: delays by the agent's other work are not the backend's fault.
        let limit = subject.check.timeout();
        let tried = match socket {
            Ok(socket) => timeout(limit, check::attempt(&subject.check, address, socket)).await,
            Err(error) => Ok(Err(error)),
        };
        match tried.unwrap_or(Err(CheckError::TimedOut(limit))) {
            // The first error is the relevant one.
            Err(error @ (CheckError::Connect { .. } | CheckError::Socket(_))) => {
                refused.get_or_insert(error);
            }
            other => return other,
        }
    }
    refused.map_or(Ok(()), Err)
}

async fn socket(host: &Arc<dyn Host>, subject: &Subject, is_v6: bool) -> Result<TcpSocket, CheckError> {
    let (host, netns) = (host.clone(), subject.netns.clone());
    let socket = tokio::task::spawn_blocking(move || host.tcp_socket(&netns, is_v6)).await;
    let socket = socket.map_err(std::io::Error::other).and_then(|made| made.map_err(std::io::Error::other));
    socket.map(TcpSocket::from_std_stream).map_err(CheckError::Socket)
}
