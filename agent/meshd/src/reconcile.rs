//! The loop that owns the kernel: look, plan, act, tell; then wait for a reason to do it again.
//!
//! Only this loop repeats: each step of a plan is one attempt, and what failed is planned anew in a
//! later pass.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use mesh_ebpf_types::ProgramKind;
use mesh_kernel::{Depth, Event, Kernel, KernelError, Report, execute};
use mesh_model::observed::Attachment;
use mesh_model::{Action, Desired, Endpoint, EndpointId, Observed, Plan, Vni};
use mesh_proto::{Problem, ProblemKind};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use crate::agent::{Agent, Pass};
use crate::blocking::blocking;
use crate::encryption::{Encryption, Wish};
use crate::managers::Backoff;
use crate::xdp::Xdp;

/// Everything is looked at this often, the firewall included, in case an event was missed.
const RESYNC: Duration = Duration::from_secs(30);
/// What changes without an event is looked for this often.
const GLANCE: Duration = Duration::from_millis(500);
/// Events of the kernel come in bursts: a pass begins so long after the first of one.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A packet has left the programs and is in the engine after this time, for a key to be chosen by
/// which it is encrypted.
const UNDER_WAY: Duration = Duration::from_millis(5);
/// Pauses before something is tried again that has failed.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// The kernel, for one caller at a time, on threads that may block.
#[derive(Clone)]
pub struct SharedKernel(Arc<Mutex<Box<dyn Kernel>>>);

impl fmt::Debug for SharedKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKernel")
    }
}

impl SharedKernel {
    /// Shares a kernel.
    pub fn new(kernel: Box<dyn Kernel>) -> Self {
        Self(Arc::new(Mutex::new(kernel)))
    }

    /// Calls the kernel once nobody else does.
    pub async fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut dyn Kernel) -> R + Send + 'static,
    ) -> R {
        let kernel = self.clone();
        blocking(move || kernel.call_here(call)).await
    }

    /// The same, on the calling thread, which may block.
    pub(crate) fn call_here<R>(&self, call: impl FnOnce(&mut dyn Kernel) -> R) -> R {
        // What a panic has left of the kernel is found by the next observation.
        let mut kernel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        call(kernel.as_mut())
    }
}

/// Keeps the kernel as the agent wants it, for ever. `events` tells that something of ours may have
/// changed.
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
    // When an event's burst is over, and how much is looked at then.
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
        let pass = one_pass(&agent, &kernel, &encryption, &xdp, depth).await;
        if pass.problems != known_problems {
            for problem in pass.problems.iter().filter(|problem| !known_problems.contains(*problem)) {
                tracing::warn!("{problem}");
            }
            if pass.problems.is_empty() {
                tracing::info!("the kernel is as it should be again");
            }
            known_problems.clone_from(&pass.problems);
        }
        let retry_at = if pass.problems.is_empty() {
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
        agent.finish_pass(pass);
        depth = loop {
            let (look_at, look) = match due {
                Some((at, depth)) if at < resync_at => (at, depth),
                _ => (resync_at, Depth::Full),
            };
            tokio::select! {
                // The agent holds the sender as long as it lives. Whoever wants something does not
                // wait for a burst of events to end: it is done from memory, and looked at
                // afterwards.
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
                    agent.adjust(|_| ());
                    break Depth::Quick;
                }
                () = sleep_until(retry_at.unwrap_or(resync_at)) => break Depth::Full,
                () = sleep_until(look_at) => break look,
            }
        };
    }
}

/// What of the kernel changes without an event, as it was at the last glance.
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

    /// Waits until it differs. May be dropped at any time.
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

/// When is looked at what, with one event more.
fn after(due: Option<(Instant, Depth)>, wanted: Depth) -> (Instant, Depth) {
    due.map_or_else(|| (Instant::now() + DEBOUNCE, wanted), |(at, depth)| (at, depth.max(wanted)))
}

/// A network that is gone takes its counters along: its VNI may become another's.
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
                    tracing::debug!(%vni, %error, "the counters of a network that is gone stay");
                }
            }
        })
        .await;
}

async fn one_pass(
    agent: &Arc<Agent>,
    kernel: &SharedKernel,
    encryption: &Arc<Encryption>,
    xdp: &Arc<Xdp>,
    depth: Depth,
) -> Pass {
    let (generation, revision, mut desired) = agent.desired();
    let wish = agent.encryption();
    desired.wireguard_peers = wish.as_ref().map(Wish::indexes).unwrap_or_default();
    desired.wireguard_number = wish.as_ref().map_or(0, |wish| wish.number);
    let encrypted = encrypted_endpoints(&desired);
    let (encryption, xdp) = (encryption.clone(), xdp.clone());
    let begun = Instant::now();
    let outcome = kernel
        .call(move |kernel| {
            if depth == Depth::Full {
                encryption.doubt();
            }
            // The engine first: its device is part of what the kernel has, and it drops what it is
            // given too early.
            let before = encryption
                .mtu()
                .unwrap_or_else(|| mesh_planner::encrypted_mtu(&desired, &Observed::default()));
            let mut tunnels = encryption.apply(wish.as_ref(), before);
            let depth = if matches!(tunnels, Ok(true)) { depth.max(Depth::Quick) } else { depth };
            desired.wireguard_generations = generations(&encryption, wish.as_ref());
            let mut outcome = attempt(kernel, Some(&desired), depth)?;
            if depth == Depth::Remembered && !outcome.report.is_success() {
                // The memory may have been wrong.
                outcome = attempt(kernel, Some(&desired), Depth::Quick)?;
            }
            if desired.wireguard_generations.len() > 1 && outcome.report.is_success() && tunnels.is_ok() {
                thread::sleep(UNDER_WAY);
                tunnels = encryption.go_over().map(|()| true);
                desired.wireguard_generations = generations(&encryption, wish.as_ref());
                let after = attempt(kernel, Some(&desired), Depth::Remembered)?;
                outcome.report.failures.extend(after.report.failures);
            }
            let now = mesh_planner::encrypted_mtu(&desired, &outcome.observed);
            if now != before {
                // Also after a failure: the former MTU may have been the reason.
                tunnels = encryption.apply(wish.as_ref(), now);
            }
            let xdp = xdp.follow(kernel.programs(), &desired.underlay, &outcome.observed, depth);
            let mtu = |network| mesh_planner::network_mtu(&desired, network, &outcome.observed);
            let mtus = desired.networks.values().map(|network| (network.id.clone(), mtu(network))).collect();
            Ok::<_, KernelError>((outcome, mtus, tunnels, encryption.recent_failure(), xdp))
        })
        .await;
    let mut pass = Pass { generation, revision, ..Pass::default() };
    match outcome {
        Err(error) => {
            let problem = explain(&error);
            pass.problems.push(problem.message.clone());
            pass.node_failure = Some(problem);
        }
        Ok((outcome, mtus, tunnels, replaced, xdp)) => {
            pass.mtus = mtus;
            pass.problems.extend(xdp.problem());
            pass.xdp = xdp;
            pass.loaded = outcome.plan.steps.iter().any(|step| matches!(step.action, Action::LoadPrograms));
            if !outcome.plan.is_empty() {
                let steps = outcome.plan.steps.len();
                tracing::debug!(steps, done = outcome.report.done, took = ?begun.elapsed(), "a pass");
            }
            if let Some(underlay) = &outcome.observed.underlay {
                pass.underlay = underlay.name.to_string();
                pass.underlay_mtu = underlay.mtu;
            }
            pass.problems.extend(outcome.plan.problems.iter().map(ToString::to_string));
            pass.lost = outcome.plan.lost;
            let mut failed = BTreeMap::new();
            for failure in &outcome.report.failures {
                let problem = explain(&failure.error);
                pass.problems.push(problem.message.clone());
                match &failure.step.endpoint {
                    Some(endpoint) => {
                        failed.entry(endpoint.clone()).or_insert(problem);
                    }
                    None if is_essential(&failure.step.action) => {
                        pass.node_failure.get_or_insert(problem);
                    }
                    None => {}
                }
            }
            pass.problems.extend(replaced);
            if let Err(problem) = tunnels {
                pass.problems.push(problem.message.clone());
                failed.extend(encrypted.into_iter().map(|endpoint| (endpoint, problem.clone())));
            }
            pass.failed = failed;
        }
    }
    pass
}

/// Of which generations the keys are that packets may be encrypted with.
fn generations(encryption: &Encryption, wish: Option<&Wish>) -> BTreeSet<u32> {
    wish.map(|_| encryption.generations()).unwrap_or_default()
}

/// The endpoints that cannot work without the WireGuard engine.
fn encrypted_endpoints(desired: &Desired) -> Vec<EndpointId> {
    let needs = |endpoint: &&Endpoint| desired.networks.get(&endpoint.network).is_some_and(|n| n.encrypted);
    desired.endpoints.values().filter(needs).map(|endpoint| endpoint.id.clone()).collect()
}

/// What one pass saw, decided and did.
#[derive(Debug)]
pub struct Outcome {
    /// What there was before.
    pub observed: Observed,
    /// What was to be done.
    pub plan: Plan,
    /// What came of it.
    pub report: Report,
}

/// One pass: looks, plans, and takes each step once. `None` desires nothing of ours.
pub fn attempt(
    kernel: &mut dyn Kernel,
    desired: Option<&Desired>,
    depth: Depth,
) -> Result<Outcome, KernelError> {
    let observed = kernel.observe(desired, depth)?;
    let plan = mesh_planner::plan(desired, &observed);
    let report = execute(kernel, &plan);
    Ok(Outcome { observed, plan, report })
}

/// Whether an endpoint cannot work, or other nodes cannot be reached, while this has not been done.
/// The rest concerns the way to the host and to the outside, or takes away what is too much.
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

/// An error of the kernel as people see it, with all its reasons.
pub fn explain(error: &KernelError) -> Problem {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        let text = reason.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = reason.source();
    }
    let kind = match error {
        KernelError::NameTaken { .. } | KernelError::PortTaken { .. } | KernelError::IfnameTaken { .. } => {
            ProblemKind::Conflict
        }
        KernelError::NamespaceGone { .. } => ProblemKind::NotFound,
        KernelError::NoNamespace { .. } | KernelError::OwnNamespace { .. } => ProblemKind::Usage,
        _ => ProblemKind::Failed,
    };
    let problem = Problem::new(kind, message.replace('\n', " "));
    match error.hint() {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
