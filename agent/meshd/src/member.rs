//! A running member: its tasks, and the state that they share.

use std::sync::Arc;
use std::time::Duration;

use mesh_control::NodeIdentity;
use mesh_endpoints::{Endpoints, upkeep};
use mesh_kernel::Event;
use mesh_probes::{hosts, paths};
use mesh_proto::Problem;
use mesh_reconciler::{Encryption, Xdp, engine_check, inside, peer_keys, reconcile};
use mesh_services::fairness::{self, Fairness};
use mesh_services::{health_checks, name_server, port_conflicts, reserved_ports, tables};
use mesh_session::{Managers, rekey, rekey_schedule, renewal, session_client};
use mesh_state::{Agent, ClusterView, Probes, file_problem, saving};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::control_plane::ControlPlane;
use crate::copies;
use crate::lost_records;
use crate::member_record::Membership;
use crate::occupancy::Occupancy;
use crate::platform::Platform;
use crate::readdress::Readdress;

/// How long the control plane may take to end.
const DRAIN: Duration = Duration::from_secs(3);

/// A running member.
#[derive(Debug)]
pub(crate) struct Member {
    /// Its state.
    pub(crate) agent: Arc<Agent>,
    /// Its connections to managers.
    pub(crate) managers: Arc<Managers>,
    /// Its endpoints.
    pub(crate) endpoints: Arc<Endpoints>,
    /// The record of the membership.
    pub(crate) membership: Membership,
    /// Its name server.
    pub(crate) names: name_server::Reporter,
    /// Its part in encrypted networks.
    pub(crate) encryption: Arc<Encryption>,
    /// The number of entries of its connection table.
    pub(crate) occupancy: Occupancy,
    /// How its connection table is divided among networks.
    pub(crate) fairness: Arc<Fairness>,
    /// The task that follows the host's addresses.
    pub(crate) readdress: Arc<Readdress>,
    tasks: parking_lot::Mutex<JoinSet<()>>,
    stop_serving: parking_lot::Mutex<Option<oneshot::Sender<()>>>,
}

impl Member {
    /// Loads the state from disk, and starts the tasks.
    pub(crate) fn start(
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
            .map_err(|error| file_problem(&error))?;
        let agent = Arc::new(agent.publishing_on(platform.publish_interfaces.clone()));
        lost_records::restore(&agent, platform);
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
            tasks.spawn(rekey_schedule::run(manager.clone(), interval, key_file));
        }
        let events = watch_kernel(platform);
        let encryption = Arc::new(Encryption::new(platform.engines.clone(), platform.paths.wireguard_keys()));
        let xdp = Xdp::new(platform.xdp, platform.host.clone());
        tables::reserve(&agent, &platform.kernel);
        tasks.spawn(reconcile::run(agent.clone(), platform.kernel.clone(), encryption.clone(), xdp, events));
        tasks.spawn(rekey::run(agent.clone(), managers.clone(), encryption.clone()));
        tasks.spawn(peer_keys::run(encryption.clone()));
        tasks.spawn(engine_check::run(encryption.clone()));
        let probes = watch::Sender::new(Probes::new());
        let host = platform.host.clone();
        tasks.spawn(session_client::run(agent.clone(), managers.clone(), host, probes.subscribe()));
        tasks.spawn(hosts::run(agent.clone(), platform.kernel.clone(), probes));
        tasks.spawn(paths::run(agent.clone(), platform.kernel.clone()));
        tasks.spawn(tables::run(agent.clone(), platform.kernel.clone()));
        let fairness = Arc::new(Fairness::default());
        tasks.spawn(fairness::run(agent.clone(), platform.kernel.clone(), fairness.clone()));
        tasks.spawn(health_checks::run(agent.clone(), platform.host.clone()));
        let readdress = Arc::new(Readdress::new(
            agent.clone(),
            managers.clone(),
            platform.host.clone(),
            platform.paths.clone(),
            membership.named.clone(),
        ));
        tasks.spawn(readdress.clone().run());
        tasks.spawn(inside::run(agent.clone(), platform.host.clone()));
        tasks.spawn(port_conflicts::watch(agent.clone(), platform.host.clone()));
        if let Some(reservation) = platform.reservation() {
            tasks.spawn(reserved_ports::reserve(agent.clone(), reservation));
        }
        let mut names = name_server::Reporter::default();
        if let Some(settings) = platform.name_server.clone() {
            let (reporter, task) = name_server::start(agent.clone(), settings);
            tasks.spawn(task);
            names = reporter;
        }
        tasks.spawn(upkeep::detach_lost(agent.clone(), endpoints.clone()));
        tasks.spawn(saving::run(agent.clone()));
        tasks.spawn(copies::keep(platform.paths.clone()));
        tasks.spawn(upkeep::lease_ahead(agent.clone(), managers.clone(), endpoints.clone()));
        tasks.spawn(renewal::run(agent.clone(), managers.clone(), platform.paths.identity()));
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
            tasks: parking_lot::Mutex::new(tasks),
            stop_serving: parking_lot::Mutex::new(Some(stop_serving)),
        })
    }

    /// Ends all tasks, and saves their state. The kernel stays as it is.
    pub(crate) async fn stop(&self) {
        let stop = self.stop_serving.lock().take();
        drop(stop);
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
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
            tracing::warn!(%error, "soft state was not saved; the managers send it again");
        }
    }
}

/// Without events the kernel loop still observes periodically.
fn watch_kernel(platform: &Platform) -> mpsc::Receiver<Event> {
    platform.host.watch_kernel().unwrap_or_else(|error| {
        tracing::warn!(%error, "kernel events cannot be received: changes are found by the periodic observation only");
        mpsc::channel(1).1
    })
}
