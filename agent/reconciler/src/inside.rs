//! Restores routes and addresses that endpoints have lost inside their namespaces, where the host
//! receives no event.
//!
//! Setting the inner end of a pair down and up takes its carrier, and so that of the host's end,
//! which counts it: such an endpoint is looked at within a pause. What else is removed inside is
//! found by looking at the endpoints in turn, as many within a pause as its share of a processor
//! allows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_host::{Host, blocking, kernel_problem};
use mesh_kernel::KernelError;
use mesh_kernel::inside::{OuterEnd, Restored};
use mesh_model::endpoint::host_ifname;
use mesh_model::plan::InnerEnd;
use mesh_model::{EndpointId, IfName};
use mesh_state::Agent;
use tokio::time::{Instant, sleep};

/// Interval between checks of the host's devices.
const PAUSE: Duration = Duration::from_secs(1);
/// Time limit of checks inside namespaces in each interval.
const TIME: Duration = Duration::from_millis(4);

/// Restores the inner ends until it is cancelled.
pub async fn run(agent: Arc<Agent>, host: Arc<dyn Host>) {
    agent.view_known().await;
    let mut generations = agent.generations();
    generations.mark_changed();
    let mut checks = Checks::default();
    loop {
        if generations.has_changed().unwrap_or_default() {
            generations.mark_unchanged();
            let (_, _, desired) = agent.desired();
            let attached = agent.attached();
            checks.wanted = mesh_planner::inner_ends(&desired);
            checks.wanted.retain(|id, _| attached.contains(id));
        }
        if checks.wanted.is_empty() && checks.problems.is_empty() {
            if generations.changed().await.is_err() {
                return;
            }
            generations.mark_changed();
            continue;
        }
        let host = host.clone();
        let (looked, reports) = blocking(move || {
            let reports = checks.check(&*host);
            (checks, reports)
        })
        .await;
        checks = looked;
        for report in reports {
            tracing::warn!("{report}");
        }
        let problems: Vec<String> = checks.problems.values().flatten().cloned().collect();
        agent.update(|state| state.inside_problems = problems);
        sleep(PAUSE).await;
    }
}

/// The state of the checks.
#[derive(Default)]
struct Checks {
    wanted: BTreeMap<EndpointId, InnerEnd>,
    /// The host's ends as of the last check inside.
    seen: BTreeMap<EndpointId, OuterEnd>,
    /// The endpoint that was checked last in turn.
    last: Option<EndpointId>,
    problems: BTreeMap<EndpointId, Vec<String>>,
}

impl Checks {
    /// Makes one round of checks, and returns log messages.
    fn check(&mut self, host: &dyn Host) -> Vec<String> {
        self.seen.retain(|id, _| self.wanted.contains_key(id));
        self.problems.retain(|id, _| self.wanted.contains_key(id));
        let outer = match host.outer_ends() {
            Ok(outer) => outer,
            Err(error) => return vec![kernel_problem(&error).message],
        };
        let begun = Instant::now();
        let mut reports = Vec::new();
        for id in self.due(&outer) {
            let is_turn = self.seen.get(&id) == outer.get(&host_ifname(&id));
            if is_turn && begun.elapsed() >= TIME {
                break;
            }
            let Some(end) = outer.get(&host_ifname(&id)) else { continue };
            if let Some(inner) = self.wanted.get(&id) {
                let found = host.restore_inside(inner, *end);
                reports.extend(self.take(&id, inner.clone(), found));
            }
            self.seen.insert(id.clone(), *end);
            if is_turn {
                self.last = Some(id);
            }
        }
        reports
    }

    /// Returns the endpoints whose carrier changed, then the others after the last one.
    fn due(&self, outer: &BTreeMap<IfName, OuterEnd>) -> Vec<EndpointId> {
        let (turn, changed): (Vec<&EndpointId>, Vec<&EndpointId>) =
            self.wanted.keys().partition(|id| self.seen.get(*id) == outer.get(&host_ifname(id)));
        let after = turn.iter().position(|id| Some(*id) > self.last.as_ref()).unwrap_or_default();
        let (before, after) = turn.split_at(after);
        changed.iter().chain(after).chain(before).map(|id| (*id).clone()).collect()
    }

    /// Records what was found inside, and returns new log messages.
    fn take(
        &mut self,
        id: &EndpointId,
        inner: InnerEnd,
        found: Result<Restored, KernelError>,
    ) -> Vec<String> {
        let InnerEnd { ifname, netns, .. } = inner;
        let place = format!("{ifname} in {}", netns.path.display());
        let (restored, problems) = match found {
            Ok(Restored { restored, replaced }) => {
                let replaced = replaced.into_iter().map(|what| {
                    format!("{place}: {what}; detach the endpoint, or give the device its own address again")
                });
                (restored, replaced.collect())
            }
            // The next reconciliation removes the endpoint.
            Err(KernelError::NamespaceGone { .. }) => (Vec::new(), Vec::new()),
            Err(error) => (Vec::new(), vec![kernel_problem(&error).message]),
        };
        let known: BTreeSet<String> = self.problems.remove(id).unwrap_or_default().into_iter().collect();
        let news = problems.iter().filter(|problem| !known.contains(*problem)).cloned();
        let restored = restored.into_iter().map(|what| format!("restored {what} of {place}"));
        let reports = restored.chain(news).collect();
        if !problems.is_empty() {
            self.problems.insert(id.clone(), problems);
        }
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> EndpointId {
        format!("{n:02x}{:022x}", 0).parse().unwrap()
    }

    #[test]
    fn an_endpoint_whose_carrier_changed_comes_first_and_the_others_in_turn() {
        let end = |carrier_changes| OuterEnd { index: 5, peer: 2, carrier_changes };
        let inner = InnerEnd {
            netns: mesh_model::endpoint::NetnsRef { path: "/run/netns/c".into(), inode: 1, cookie: 0 },
            ifname: "eth0".parse().unwrap(),
            addresses: vec![],
            on_link: vec![],
            gateways: vec![],
            internal: false,
        };
        let checks = Checks {
            wanted: (1..=4).map(|n| (id(n), inner.clone())).collect(),
            seen: (1..=4).map(|n| (id(n), end(2))).collect(),
            last: Some(id(2)),
            problems: BTreeMap::new(),
        };
        let mut outer: BTreeMap<IfName, OuterEnd> = (1..=4).map(|n| (host_ifname(&id(n)), end(2))).collect();
        assert_eq!(checks.due(&outer), [3, 4, 1, 2].map(id));
        outer.insert(host_ifname(&id(2)), end(4));
        assert_eq!(checks.due(&outer), [2, 3, 4, 1].map(id));
    }
}
