//! The name server of the networks with a lease on this node: a separate process and its inputs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_dns::{Status, Zones};
use mesh_host::Backoff;
use mesh_state::Agent;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::sleep;

use super::helper::{Helper, ServedAddresses, Statistics};
use super::settings::Settings;
use super::zones::{Named, Networks};
use crate::inputs::Inputs;

/// Interval between checks whether the process responds.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Delays before another attempt to create sockets.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The name server's status for people.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Status by network name.
    pub networks: BTreeMap<String, Status>,
    /// Failures, one line each.
    pub problems: Vec<String>,
}

/// The status of a running name server, or of none.
#[derive(Debug, Clone, Default)]
pub struct Reporter(Option<Sources>);

/// The sources of a report.
#[derive(Debug, Clone)]
struct Sources {
    statistics: Arc<Mutex<Statistics>>,
    problems: watch::Receiver<Vec<String>>,
}

impl Reporter {
    /// Returns the current status.
    pub fn report(&self) -> Report {
        match &self.0 {
            Some(Sources { statistics, problems }) => {
                // Statistics are still readable after a panic.
                let networks = statistics.lock().now();
                Report { networks, problems: problems.borrow().clone() }
            }
            None => Report::default(),
        }
    }
}

/// Creates a name server, and the task that keeps it up to date.
pub fn start(agent: Arc<Agent>, settings: Settings) -> (Reporter, impl Future<Output = ()> + Send) {
    let statistics = Arc::new(Mutex::new(Statistics::new(settings.run_dir.clone())));
    let problems = watch::Sender::new(Vec::new());
    let reporter = Reporter(Some(Sources { statistics, problems: problems.subscribe() }));
    (reporter, run(agent, settings, problems))
}

async fn run(agent: Arc<Agent>, settings: Settings, problems: watch::Sender<Vec<String>>) {
    agent.view_known().await;
    let gone = watch::Sender::new(0);
    let mut ended = gone.subscribe();
    let mut helper = Helper::new(settings, gone);
    let mut news = agent.service_changes();
    let mut reconciliations = agent.reconciliations();
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let (mut named, mut zones) = (Named::default(), Zones::default());
    loop {
        news.mark_unchanged();
        ended.mark_unchanged();
        // Derive the zones from copies, without the lock.
        let (seen, networks) =
            agent.read(|state| (Inputs::of(state, agent.id()), Networks::of(state, agent.id())));
        zones = named.zones(seen, agent.id(), networks, &zones);
        let gateways = zones.networks.iter();
        let wanted: ServedAddresses =
            gateways.map(|(name, zone)| (name.clone(), zone.gateways.iter().copied().collect())).collect();
        let now = zones.clone();
        let followed = tokio::task::spawn_blocking(move || {
            let failed = helper.follow(&now, &wanted);
            (helper, failed)
        });
        // A panic ends the agent.
        let Ok((same, failed)) = followed.await else { return };
        helper = same;
        let again = !failed.is_empty();
        problems.send_if_modified(|before| {
            let changed = *before != failed;
            for problem in failed.iter().filter(|problem| !before.contains(problem)) {
                tracing::debug!("{problem}");
            }
            *before = failed;
            changed
        });
        if !again {
            backoff.reset();
        }
        let pause = if again { backoff.pause() } else { CHECK_INTERVAL };
        tokio::select! {
            _ = news.changed() => {}
            _ = ended.changed() => {}
            // A reconciliation creates the device that the sockets are bound to.
            _ = reconciliations.changed(), if again => {}
            () = sleep(pause) => {}
        }
    }
}
