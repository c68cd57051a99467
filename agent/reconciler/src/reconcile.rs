//! The kernel loop: observe, plan, apply, report; then wait for the next reason.
//!
//! Only this loop retries: each step of a plan is one attempt, and a later reconciliation plans a
//! failed step again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mesh_ebpf_types::ProgramKind;
use mesh_host::{Backoff, SharedKernel, kernel_problem};
use mesh_kernel::{Depth, Event, KernelError};
use mesh_model::observed::Attachment;
use mesh_model::{Action, Desired, Endpoint, EndpointId, Observed, Vni};
use mesh_state::{Agent, DesiredTunnels, Reconciliation};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use crate::attempt::attempt;
use crate::encryption::Encryption;
use crate::xdp::Xdp;

/// Interval between full observations, which include the firewall: an event may be missed.
const RESYNC: Duration = Duration::from_secs(30);
/// Interval between checks for changes that cause no event.
const GLANCE: Duration = Duration::from_millis(500);
/// Delay between the first event of a burst and the reconciliation.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Time after which a packet that left the programs has reached the engine, which chooses its key.
const UNDER_WAY: Duration = Duration::from_millis(5);
/// Pauses before a retry.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// Runs the kernel loop until it is cancelled. `events` reports possible changes of our objects.
pub async fn run(
    agent: Arc<Agent>,
    kernel: SharedKernel,
    encryption: Arc<Encryption>,
    xdp: Xdp,
    mut events: mpsc::Receiver<Event>,
) {
    agent.view_known().await;
    let mut generations = agent.generations();
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut depth = Depth::Full;
    let mut resync_at = Instant::now() + RESYNC;
    // End of a burst of events, and the depth of the observation then.
    let mut due: Option<(Instant, Depth)> = None;
    let mut known_problems = Vec::new();
    let mut events_end = false;
    let mut counted = BTreeSet::new();
    let mut failures = encryption.failures();
    let mut glances = Glances::new();
    let xdp = Arc::new(xdp);
    loop {
        generations.mark_unchanged();
        forget_counters(&agent, &kernel, &mut counted).await;
        let reconciliation = reconcile_once(&agent, &kernel, &encryption, &xdp, depth).await;
        if reconciliation.problems != known_problems {
            for problem in reconciliation.problems.iter().filter(|problem| !known_problems.contains(*problem))
            {
                tracing::warn!("{problem}");
            }
            if reconciliation.problems.is_empty() {
                tracing::info!("the kernel has its desired state again");
            }
            known_problems.clone_from(&reconciliation.problems);
        }
        let retry_at = if reconciliation.problems.is_empty() {
            backoff.reset();
            None
        } else {
            Some(Instant::now() + backoff.pause())
        };
        match depth {
            Depth::Full => {
                resync_at = Instant::now() + RESYNC;
                due = None;
            }
            Depth::Quick => due = due.filter(|(_, depth)| *depth == Depth::Full),
            Depth::Remembered => {}
        }
        agent.finish_reconciliation(reconciliation);
        depth = loop {
            let (look_at, look) = match due {
                Some((at, depth)) if at < resync_at => (at, depth),
                _ => (resync_at, Depth::Full),
            };
            tokio::select! {
                // The agent holds the sender as long as it lives. A new desired state does not
                // wait for the end of a burst: it is planned against the remembered observation,
                // and checked afterwards.
                _ = generations.changed() => break if events_end { Depth::Quick } else { Depth::Remembered },
                event = events.recv(), if !events_end => match event {
                    Some(Event::Firewall) => due = Some(after(due, Depth::Full)),
                    Some(Event::Network) => due = Some(after(due, Depth::Quick)),
                    None => events_end = true,
                },
                // Holds a sender itself.
                _ = failures.changed() => break Depth::Quick,
                () = glances.changed(&kernel) => {
                    // The programs of the host's sockets are the services' part.
                    agent.wake_services();
                    break Depth::Quick;
                }
                () = sleep_until(retry_at.unwrap_or(resync_at)) => break Depth::Full,
                () = sleep_until(look_at) => break look,
            }
        };
    }
}

/// A digest of what changes without an event, as of the last check.
#[derive(Debug)]
struct Glances {
    ticks: Interval,
    last: Option<u64>,
}

impl Glances {
    fn new() -> Self {
        let mut ticks = interval(GLANCE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, last: None }
    }

    /// Waits until the digest differs. The future may be dropped at any time.
    async fn changed(&mut self, kernel: &SharedKernel) {
        loop {
            self.ticks.tick().await;
            let now = kernel.call(|kernel| kernel.glance()).await;
            if self.last.replace(now).is_some_and(|before| before != now) {
                return;
            }
        }
    }
}

/// Schedules the next observation after an event.
fn after(due: Option<(Instant, Depth)>, wanted: Depth) -> (Instant, Depth) {
    due.map_or_else(|| (Instant::now() + DEBOUNCE, wanted), |(at, depth)| (at, depth.max(wanted)))
}

/// Deletes the counters of removed networks: another network may get the VNI.
async fn forget_counters(agent: &Agent, kernel: &SharedKernel, counted: &mut BTreeSet<Vni>) {
    let now: BTreeSet<Vni> = agent.read(|state| state.view.networks.values().map(|n| n.vni).collect());
    let gone: Vec<Vni> = counted.difference(&now).copied().collect();
    *counted = now;
    if gone.is_empty() {
        return;
    }
    kernel
        .call(move |kernel| {
            for vni in gone {
                if let Err(error) = kernel.programs().forget_counters(mesh_ebpf_types::Vni::new(vni.get())) {
                    tracing::debug!(%vni, %error, "the counters of a removed network cannot be deleted");
                }
            }
        })
        .await;
}

async fn reconcile_once(
    agent: &Arc<Agent>,
    kernel: &SharedKernel,
    encryption: &Arc<Encryption>,
    xdp: &Arc<Xdp>,
    depth: Depth,
) -> Reconciliation {
    let (generation, revision, mut desired) = agent.desired();
    let desired_tunnels = agent.encryption();
    desired.wireguard_peers = desired_tunnels.as_ref().map(DesiredTunnels::indexes).unwrap_or_default();
    desired.wireguard_number = desired_tunnels.as_ref().map_or(0, |desired_tunnels| desired_tunnels.number);
    let encrypted = encrypted_endpoints(&desired);
    let (encryption, xdp) = (encryption.clone(), xdp.clone());
    let begun = Instant::now();
    let outcome = kernel
        .call(move |kernel| {
            if depth == Depth::Full {
                encryption.doubt();
            }
            // The engine first: its device is part of the observed state, and it drops packets that
            // arrive too early.
            let before = encryption
                .mtu()
                .unwrap_or_else(|| mesh_planner::encrypted_mtu(&desired, &Observed::default()));
            let mut tunnels = encryption.apply(desired_tunnels.as_ref(), before);
            let depth = if matches!(tunnels, Ok(true)) { depth.max(Depth::Quick) } else { depth };
            desired.wireguard_generations = generations(&encryption, desired_tunnels.as_ref());
            let mut outcome = attempt(kernel, Some(&desired), depth)?;
            if depth == Depth::Remembered && !outcome.report.is_success() {
                // The remembered observation may have been wrong.
                outcome = attempt(kernel, Some(&desired), Depth::Quick)?;
            }
            if desired.wireguard_generations.len() > 1 && outcome.report.is_success() && tunnels.is_ok() {
                thread::sleep(UNDER_WAY);
                tunnels = encryption.switch_key().map(|()| true);
                desired.wireguard_generations = generations(&encryption, desired_tunnels.as_ref());
                let after = attempt(kernel, Some(&desired), Depth::Remembered)?;
                outcome.report.failures.extend(after.report.failures);
            }
            let now = mesh_planner::encrypted_mtu(&desired, &outcome.observed);
            if now != before {
                // Also after a failure: the former MTU may have been the reason.
                tunnels = encryption.apply(desired_tunnels.as_ref(), now);
            }
            let xdp = xdp.follow(kernel.programs(), &desired.underlay, &outcome.observed, depth);
            let mtu = |network| mesh_planner::network_mtu(&desired, network, &outcome.observed);
            let mtus = desired.networks.values().map(|network| (network.id.clone(), mtu(network))).collect();
            Ok::<_, KernelError>((outcome, mtus, tunnels, encryption.recent_failure(), xdp))
        })
        .await;
    let mut reconciliation = Reconciliation { generation, revision, ..Reconciliation::default() };
    match outcome {
        Err(error) => {
            let problem = kernel_problem(&error);
            reconciliation.problems.push(problem.message.clone());
            reconciliation.node_failure = Some(problem);
        }
        Ok((outcome, mtus, tunnels, replaced, xdp)) => {
            reconciliation.mtus = mtus;
            reconciliation.problems.extend(xdp.problem());
            reconciliation.xdp = xdp;
            reconciliation.loaded =
                outcome.plan.steps.iter().any(|step| matches!(step.action, Action::LoadPrograms));
            if !outcome.plan.is_empty() {
                let steps = outcome.plan.steps.len();
                tracing::debug!(steps, done = outcome.report.done, took = ?begun.elapsed(), "reconciled");
            }
            if let Some(underlay) = &outcome.observed.underlay {
                reconciliation.underlay = underlay.name.to_string();
                reconciliation.underlay_mtu = underlay.mtu;
            }
            reconciliation.problems.extend(outcome.plan.problems.iter().map(ToString::to_string));
            reconciliation.lost = outcome.plan.lost;
            let mut failed = BTreeMap::new();
            for failure in &outcome.report.failures {
                let problem = kernel_problem(&failure.error);
                reconciliation.problems.push(problem.message.clone());
                match &failure.step.endpoint {
                    Some(endpoint) => {
                        failed.entry(endpoint.clone()).or_insert(problem);
                    }
                    None if is_essential(&failure.step.action) => {
                        reconciliation.node_failure.get_or_insert(problem);
                    }
                    None => {}
                }
            }
            reconciliation.problems.extend(replaced);
            if let Err(problem) = tunnels {
                reconciliation.problems.push(problem.message.clone());
                failed.extend(encrypted.into_iter().map(|endpoint| (endpoint, problem.clone())));
            }
            reconciliation.failed = failed;
        }
    }
    reconciliation
}

/// Returns the generations of the keys that packets may be encrypted with.
fn generations(encryption: &Encryption, desired_tunnels: Option<&DesiredTunnels>) -> BTreeSet<u32> {
    desired_tunnels.map(|_| encryption.generations()).unwrap_or_default()
}

/// Returns the endpoints that need the WireGuard engine.
fn encrypted_endpoints(desired: &Desired) -> Vec<EndpointId> {
    let needs = |endpoint: &&Endpoint| desired.networks.get(&endpoint.network).is_some_and(|n| n.encrypted);
    desired.endpoints.values().filter(needs).map(|endpoint| endpoint.id.clone()).collect()
}

/// Returns whether endpoints or other nodes cannot be reached without this step. All other steps
/// concern traffic to the host and to the outside, or remove objects.
fn is_essential(action: &Action) -> bool {
    matches!(
        action,
        Action::LoadPrograms
            | Action::PutEntry(_)
            | Action::Attach(Attachment {
                kind: ProgramKind::Endpoint
                    | ProgramKind::Underlay
                    | ProgramKind::Overlay
                    | ProgramKind::Host,
                ..
            })
            | Action::CreateVxlan(_)
            | Action::CreateHostLeg(_)
    )
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
