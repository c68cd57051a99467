//! A member at work: its tasks, and the state that they share.

use std::fmt;
use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mesh_control::{Manager, NodeIdentity, NodeKey};
use mesh_ipam::Delays;
use mesh_kernel::Event;
use mesh_model::cluster::Cluster;
use mesh_model::desired::Encapsulation;
use mesh_model::{InterfacePatterns, Node};
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind, v1};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::agent::{Agent, now, saving};
use crate::attach::{Endpoints, not_written};
use crate::config::XdpChoice;
use crate::encryption::{self, Encryption, Engines};
use crate::fairness::{self, Fairness};
use crate::host::Host;
use crate::instance::StatePaths;
use crate::managers::{Backoff, Managers};
use crate::readdress::{Named, Readdress};
use crate::reconcile::SharedKernel;
use crate::services::ports::Reservation;
use crate::session::Probes;
use crate::status::tables::Occupancy;
use crate::view::ClusterView;
use crate::xdp::Xdp;
use crate::{copies, dns, health, inside, prober, reachability, reconcile, services, session};

/// How often it is seen to it that blocks are leased ahead of need, and given back.
const TEND: Duration = Duration::from_secs(1);
/// A subnet that had no block to spare is not asked for again for so long.
const TEND_AGAIN: Duration = Duration::from_secs(30);
/// How often the clock is compared with the certificate's times.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);
/// Clocks that differ by less, in milliseconds, do not keep a certificate from being renewed.
const CLOCKS_AGREE: u64 = 3_600_000;
/// A renewal of the certificate that failed is tried again after so long.
const RENEW_AGAIN: Duration = Duration::from_mins(1);
/// How long the control plane may take to end.
const DRAIN: Duration = Duration::from_secs(3);

/// What makes a host a member: in `member.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// This node's record, as it was when it joined.
    pub node: Node,
    /// The cluster.
    pub cluster: Cluster,
    /// `HOST:PORT` of every manager, as of then.
    pub managers: Vec<String>,
    /// Whether the cluster's store is on this node.
    pub keeps_store: bool,
    /// How the node's addresses were named.
    #[serde(default)]
    pub named: Named,
}

/// What a member stands on, whatever cluster it is a member of.
#[derive(Debug, Clone)]
pub struct Platform {
    /// Where its state is.
    pub paths: StatePaths,
    /// The host.
    pub host: Arc<dyn Host>,
    /// The kernel.
    pub kernel: SharedKernel,
    /// How packets are wrapped.
    pub encapsulation: Encapsulation,
    /// Why so.
    pub encapsulation_reason: String,
    /// Whether the data-path device's driver sends on what only passes through.
    pub xdp: XdpChoice,
    /// The host's interfaces that answer published ports.
    pub publish_interfaces: InterfacePatterns,
    /// When addresses and blocks may be used again.
    pub delays: Delays,
    /// What a name server needs; without it there is none.
    pub name_server: Option<dns::Settings>,
    /// What carries encrypted networks.
    pub engines: Arc<dyn Engines>,
    /// Entries that the table of flows should have room for, if somebody has said so.
    pub connection_entries: Option<u32>,
    /// On a manager: after how long all nodes are to make new keys.
    pub rotate_keys: Option<Duration>,
}

impl Platform {
    /// The host's ports that are reserved because they are published.
    pub(crate) fn reservation(&self) -> Option<Reservation> {
        let sysctl = self.host.reserved_ports()?;
        Some(Reservation::open(sysctl, self.paths.reserved_ports()))
    }
}

/// A manager and the socket that it is to serve.
pub struct ControlPlane {
    /// The manager.
    pub manager: Manager,
    /// Bound to its advertised address.
    pub listener: TcpListener,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// A running member.
#[derive(Debug)]
pub struct Member {
    /// What it knows and wants.
    pub agent: Arc<Agent>,
    /// Its way to a manager.
    pub managers: Arc<Managers>,
    /// Its endpoints.
    pub endpoints: Arc<Endpoints>,
    /// What it is a member of.
    pub membership: Membership,
    /// Its name server.
    pub names: dns::Reporter,
    /// Its part in encrypted networks.
    pub encryption: Arc<Encryption>,
    /// How many flows its datapath remembers.
    pub occupancy: Occupancy,
    /// How its flows' table is shared out.
    pub fairness: Arc<Fairness>,
    /// What follows the host's addresses.
    pub readdress: Arc<Readdress>,
    tasks: std::sync::Mutex<JoinSet<()>>,
    stop_serving: std::sync::Mutex<Option<oneshot::Sender<()>>>,
}

impl Member {
    /// Takes up what is on the disk, and begins to work.
    pub fn start(
        platform: &Platform,
        membership: Membership,
        identity: NodeIdentity,
        control_plane: Option<ControlPlane>,
    ) -> Result<Self, Problem> {
        let fresh = ClusterView::new(
            membership.cluster.clone(),
            membership.node.clone(),
            membership.managers.clone(),
        );
        let paths = platform.paths.clone();
        let (node, encapsulation) = (membership.node.clone(), platform.encapsulation);
        let agent = Agent::load(node, fresh, encapsulation, paths, platform.delays)
            .map_err(|error| not_written(&error))?;
        let agent = Arc::new(agent.publishing_on(platform.publish_interfaces.clone()));
        let (manager, listener) = match control_plane {
            Some(ControlPlane { manager, listener }) => (Some(manager), Some(listener)),
            None => (None, None),
        };
        let managers =
            Arc::new(Managers::new(agent.clone(), manager.clone(), identity, membership.managers.clone()));
        let endpoints = Arc::new(Endpoints::new(agent.clone(), managers.clone(), platform.host.clone()));
        let mut tasks = JoinSet::new();
        let (stop_serving, stopped) = oneshot::channel();
        if let (Some(manager), Some(listener)) = (manager, listener) {
            tasks.spawn(async move {
                // An error means that the sender is gone: the member has ended.
                let stop = async move { drop(stopped.await) };
                if let Err(error) = manager.serve(listener, stop).await {
                    tracing::error!(%error, "the control plane ended");
                }
            });
        }
        if let (Some(interval), Some(manager)) = (platform.rotate_keys, managers.own()) {
            let key_file = platform.paths.wireguard_keys();
            tasks.spawn(encryption::schedule::run(manager.clone(), interval, key_file));
        }
        let events = watch_kernel(platform);
        let encryption = Arc::new(Encryption::new(platform.engines.clone(), platform.paths.wireguard_keys()));
        let xdp = Xdp::new(platform.xdp, platform.host.clone());
        services::reserve(&agent, &platform.kernel);
        tasks.spawn(reconcile::run(agent.clone(), platform.kernel.clone(), encryption.clone(), xdp, events));
        tasks.spawn(encryption::run(agent.clone(), managers.clone(), encryption.clone()));
        tasks.spawn(encryption::follow(encryption.clone()));
        tasks.spawn(encryption::check(encryption.clone()));
        let probes = watch::Sender::new(Probes::new());
        let host = platform.host.clone();
        tasks.spawn(session::run(agent.clone(), managers.clone(), host, probes.subscribe()));
        tasks.spawn(prober::run(agent.clone(), platform.kernel.clone(), probes));
        tasks.spawn(reachability::run(agent.clone(), platform.kernel.clone()));
        tasks.spawn(services::run(agent.clone(), platform.kernel.clone()));
        let fairness = Arc::new(Fairness::default());
        tasks.spawn(fairness::run(agent.clone(), platform.kernel.clone(), fairness.clone()));
        tasks.spawn(health::run(agent.clone(), platform.host.clone()));
        let readdress = Arc::new(Readdress::new(
            agent.clone(),
            managers.clone(),
            platform.host.clone(),
            platform.paths.clone(),
            membership.named.clone(),
        ));
        tasks.spawn(readdress.clone().run());
        tasks.spawn(inside::run(agent.clone(), platform.host.clone()));
        tasks.spawn(services::taken::watch(agent.clone(), platform.host.clone()));
        if let Some(reservation) = platform.reservation() {
            tasks.spawn(services::ports::reserve(agent.clone(), reservation));
        }
        let mut names = dns::Reporter::default();
        if let Some(settings) = platform.name_server.clone() {
            let (reporter, task) = dns::start(agent.clone(), settings);
            tasks.spawn(task);
            names = reporter;
        }
        tasks.spawn(let_go(agent.clone(), endpoints.clone()));
        tasks.spawn(saving::run(agent.clone()));
        tasks.spawn(copies::keep(platform.paths.clone()));
        tasks.spawn(tend(agent.clone(), managers.clone(), endpoints.clone()));
        tasks.spawn(renew(agent.clone(), managers.clone(), platform.paths.identity()));
        Ok(Self {
            agent,
            managers,
            endpoints,
            membership,
            names,
            encryption,
            occupancy: Occupancy::default(),
            fairness,
            readdress,
            tasks: std::sync::Mutex::new(tasks),
            stop_serving: std::sync::Mutex::new(Some(stop_serving)),
        })
    }

    /// Ends all tasks; what the kernel has stays as it is. What had not been written yet is.
    pub async fn stop(&self) {
        let stop = self.stop_serving.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        drop(stop);
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        if let Some(manager) = self.managers.own() {
            // The control plane's own task ends by itself; all others never do.
            let served = timeout(DRAIN, tasks.join_next()).await;
            if served.is_err() {
                tracing::warn!("calls to the control plane were cut off");
            }
            manager.shutdown();
        }
        tasks.shutdown().await;
        if let Err(error) = self.agent.save_changes() {
            tracing::warn!(%error, "state that will be learnt anew was not saved");
        }
    }
}

/// Opens the socket of the control plane.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(address).await.map_err(|error| {
        let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
        let kind = if in_use { ProblemKind::Conflict } else { ProblemKind::Failed };
        let problem = Problem::new(kind, format!("cannot serve the control plane on {address}: {error}"));
        if in_use {
            let port = address.port();
            problem.hint(format!("see who has the port with: ss -ltnp 'sport = :{port}'"))
        } else {
            problem
        }
    })
}

/// Without events the loop still looks at everything from time to time.
fn watch_kernel(platform: &Platform) -> mpsc::Receiver<Event> {
    platform.host.watch_kernel().unwrap_or_else(|error| {
        tracing::warn!(%error, "changes of the kernel are only found by looking for them");
        mpsc::channel(1).1
    })
}

/// Lets go of endpoints whose namespaces are gone.
async fn let_go(agent: Arc<Agent>, endpoints: Arc<Endpoints>) {
    let mut passes = agent.passes();
    while passes.changed().await.is_ok() {
        let lost = passes.borrow_and_update().lost.clone();
        if !lost.is_empty() {
            endpoints.remove_lost(&lost).await;
        }
    }
}

/// Leases blocks before they are needed, and gives back those that are not.
async fn tend(agent: Arc<Agent>, managers: Arc<Managers>, endpoints: Arc<Endpoints>) {
    let mut ticks = interval(TEND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut not_before = Instant::now();
    loop {
        ticks.tick().await;
        if !managers.reachable() {
            continue;
        }
        if Instant::now() >= not_before && !endpoints.lease_ahead().await.is_empty() {
            not_before = Instant::now() + TEND_AGAIN;
        }
        agent.note(|state| state.pools.give_back_idle(now()));
        let given_back = agent.read(|state| state.pools.given_back());
        if given_back.is_empty() {
            continue;
        }
        // A restart must not use again what the manager has been told is free.
        let saving = agent.clone();
        let saved = tokio::task::spawn_blocking(move || saving.save_everything()).await;
        if !matches!(saved, Ok(Ok(()))) {
            continue;
        }
        let Ok(connected) = managers.connected().await else { continue };
        for lease in given_back {
            let request = v1::ReleaseLeaseRequest {
                network: lease.network.to_string(),
                prefix: lease.prefix.to_string(),
                revision: lease.revision,
            };
            if let Err(status) = ControlClient::new(connected.channel.clone()).release_lease(request).await {
                tracing::debug!(prefix = %lease.prefix, %status, "a block could not be given back yet");
            }
        }
    }
}

/// Whether to renew a certificate on a host whose clock shows `now`, and from which the clocks of
/// others differ by `ahead_ms`. While they differ by much it is not known whose is wrong, and a
/// certificate made by a wrong clock may be of no use: then only one that no clock takes for valid
/// is renewed.
fn is_due(
    identity: &NodeIdentity,
    now: Timestamp,
    ahead_ms: i64,
) -> Result<bool, mesh_control::IdentityError> {
    if ahead_ms.unsigned_abs() < CLOCKS_AGREE {
        return identity.is_due(now);
    }
    let others = now.checked_add(SignedDuration::from_millis(ahead_ms)).unwrap_or(now);
    Ok(identity.is_due(now)? && !identity.is_valid(now)? && !identity.is_valid(others)?)
}

/// How far the clocks of others are ahead of this host's: of most nodes on a manager, else of the
/// manager.
fn others_ahead(agent: &Agent, managers: &Managers) -> i64 {
    let ahead = match managers.own() {
        Some(manager) => manager.clocks_ahead(),
        None => agent.read(|state| state.manager_clock_ms),
    };
    ahead.unwrap_or_default()
}

/// Renews the node's certificate when its time has come.
async fn renew(agent: Arc<Agent>, managers: Arc<Managers>, path: std::path::PathBuf) {
    let mut backoff = Backoff::new(Duration::from_secs(1), RENEW_AGAIN);
    loop {
        let identity = managers.identity();
        match is_due(&identity, Timestamp::now(), others_ahead(&agent, &managers)) {
            Ok(true) => {}
            Ok(false) => {
                // Not until its time has come: the clock may be set, or the machine suspended.
                sleep(LOOK_AT_CLOCK).await;
                continue;
            }
            Err(error) => {
                tracing::error!(%error, "the certificate cannot be read, so it is not renewed");
                return pending().await;
            }
        }
        match renewed(&managers, &identity, &path).await {
            Ok(()) => {
                tracing::info!("renewed the certificate");
                backoff.reset();
            }
            Err(problem) => {
                tracing::warn!(%problem, "the certificate could not be renewed");
                sleep(backoff.pause()).await;
            }
        }
    }
}

async fn renewed(managers: &Managers, old: &NodeIdentity, path: &Path) -> Result<(), Problem> {
    let failed = |error: mesh_control::IdentityError| Problem::new(ProblemKind::Failed, error.to_string());
    let connected = managers.connected().await?;
    let key = NodeKey::generate().map_err(failed)?;
    let request = v1::RenewCertificateRequest { csr_pem: key.csr_pem.clone() };
    let answer = ControlClient::new(connected.channel).renew_certificate(request).await?.into_inner();
    let identity = key.into_identity(answer.certificate_pem, old.ca_pem.clone());
    if !identity.is_valid(Timestamp::now()).map_err(failed)? {
        let message =
            "the manager issued a certificate that is not valid now: its clock or this host's is wrong";
        return Err(Problem::new(ProblemKind::Failed, message));
    }
    identity.save(path).map_err(failed)?;
    managers.set_identity(identity);
    Ok(())
}
