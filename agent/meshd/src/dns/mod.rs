//! The name server of the networks that have a lease here: a process of its own, and what it is
//! given.

mod helper;
pub mod process;
mod wire;
mod zones;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_dns::{Status, Zones};
use mesh_model::Endpoint;
use mesh_proto::v1;
use tokio::sync::watch;
use tokio::time::sleep;

use self::helper::{Helper, Statistics, Wanted};
pub use self::zones::NamedEndpoint;
use self::zones::{Named, Networks};
use crate::agent::{Agent, State};
use crate::managers::Backoff;
use crate::services::Seen;

/// The port of DNS (RFC 1035, section 4.2).
const PORT: u16 = 53;
/// How often is looked whether the process still answers.
const LOOK: Duration = Duration::from_secs(5);
/// Pauses before sockets that could not be made are tried again.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// What a name server needs of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the process has its socket.
    pub run_dir: PathBuf,
    /// The file that names the resolvers of all other names (resolv.conf(5)).
    pub resolv_conf: PathBuf,
}

/// What the name server does, for people.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Of each network, by name.
    pub networks: BTreeMap<String, Status>,
    /// What does not work, a line each.
    pub problems: Vec<String>,
}

/// A name server at work, or none.
#[derive(Debug, Clone, Default)]
pub struct Reporter(Option<Sources>);

/// What a report is made of.
#[derive(Debug, Clone)]
struct Sources {
    statistics: Arc<Mutex<Statistics>>,
    problems: watch::Receiver<Vec<String>>,
}

impl Reporter {
    /// What it does now.
    pub fn report(&self) -> Report {
        match &self.0 {
            Some(Sources { statistics, problems }) => {
                // What a panic left there is asked anew.
                let networks = statistics.lock().unwrap_or_else(PoisonError::into_inner).now();
                Report { networks, problems: problems.borrow().clone() }
            }
            None => Report::default(),
        }
    }
}

/// What an endpoint's container should write into its resolv.conf: one server, which answers for
/// all of the container's networks. There is no search domain, since the server answers bare names;
/// with one, a resolver would look for a bare name that does not exist in the public domain of the
/// network's name.
pub fn client_settings(state: &State, endpoint: &Endpoint) -> Option<v1::Dns> {
    let server = zones::server_of(state, endpoint);
    let network = state.view.networks.get(&server.network)?;
    let gateways = || network.subnets.iter().map(|subnet| subnet.gateway);
    let gateway = gateways().find(|gateway| server.addresses().any(|own| own.is_ipv4() == gateway.is_ipv4()));
    Some(v1::Dns {
        nameservers: gateway.or_else(|| gateways().next()).iter().map(ToString::to_string).collect(),
        search: Vec::new(),
        options: vec!["ndots:0".to_owned()],
    })
}

/// Ends the process of an instance, if there is one.
pub fn end(run_dir: &Path) {
    helper::end(run_dir);
}

/// Makes a name server, and the task that keeps it up to date for ever.
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
    let mut passes = agent.passes();
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let (mut named, mut zones) = (Named::default(), Zones::default());
    loop {
        news.mark_unchanged();
        ended.mark_unchanged();
        // What takes its time is made of copies, while others go on.
        let (seen, networks) =
            agent.read(|state| (Seen::of(state, agent.id()), Networks::of(state, agent.id())));
        zones = named.zones(seen, agent.id(), networks, &zones);
        let gateways = zones.networks.iter();
        let wanted: Wanted =
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
        let pause = if again { backoff.pause() } else { LOOK };
        tokio::select! {
            _ = news.changed() => {}
            _ = ended.changed() => {}
            // The device that the sockets are bound to is made by a pass.
            _ = passes.changed(), if again => {}
            () = sleep(pause) => {}
        }
    }
}
