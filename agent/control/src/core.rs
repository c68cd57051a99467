//! State shared by all calls and sessions of one manager.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use mesh_model::cluster::Cluster;
use mesh_model::{NodeId, NodeState, Role};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tracing::info;

use crate::attempts::Attempts;
use crate::endpoints::Endpoints;
use crate::feed::Feed;
use crate::health::Health;
use crate::identity::{CertificateAuthority, PeerIdentity};
use crate::leases::desk::LeaseDesk;
use crate::limits;
use crate::liveness::Liveness;
use crate::paths::PathReports;
use crate::records::{RecordError, Records};
use crate::reports::{Checker, Faults, Routes};
use crate::services::desk::ServiceDesk;
use crate::sessions::registry::Sessions;

/// The state of every node.
pub(crate) type NodeStates = Arc<BTreeMap<NodeId, NodeState>>;

/// One manager's state.
pub(crate) struct Core {
    pub(crate) records: Records,
    pub(crate) authority: CertificateAuthority,
    pub(crate) feed: Feed,
    pub(crate) sessions: Sessions,
    pub(crate) endpoints: Endpoints,
    pub(crate) health: Health,
    pub(crate) leases: LeaseDesk,
    pub(crate) paths: PathReports,
    pub(crate) services: ServiceDesk,
    /// Serializes creations on this manager: concurrent ones would all conflict.
    pub(crate) creating: tokio::sync::Mutex<()>,
    cluster: Cluster,
    own: PeerIdentity,
    liveness: Mutex<Liveness>,
    pub(crate) liveness_changed: Notify,
    states: watch::Sender<NodeStates>,
    begun: tokio::time::Instant,
    /// The routes of each node's host, as last reported by its agent.
    routes: Mutex<BTreeMap<NodeId, Routes>>,
    /// Faults in the nodes' reports.
    pub(crate) faults: Faults,
    /// Attempts to join with wrong tokens.
    pub(crate) attempts: Attempts,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("cluster", &self.cluster.id)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn new(
        records: Records,
        feed: Feed,
        authority: CertificateAuthority,
        cluster: Cluster,
        own: PeerIdentity,
    ) -> Self {
        let core = Self {
            records,
            authority,
            feed,
            sessions: Sessions::default(),
            endpoints: Endpoints::default(),
            health: Health::default(),
            leases: LeaseDesk::default(),
            paths: PathReports::default(),
            services: ServiceDesk::default(),
            creating: tokio::sync::Mutex::default(),
            cluster,
            own,
            liveness: Mutex::default(),
            liveness_changed: Notify::new(),
            states: watch::Sender::default(),
            begun: tokio::time::Instant::now(),
            routes: Mutex::default(),
            faults: Faults::default(),
            attempts: Attempts::default(),
        };
        core.follow_members();
        core.derive_states();
        core
    }

    /// Waits until the view contains everything that is in the store now.
    pub(crate) async fn catch_up(&self) -> Result<(), RecordError> {
        self.feed.catch_up(&**self.records.store()).await
    }

    /// Returns the nodes that have not reported their endpoints since this manager started.
    pub(crate) fn nodes_without_report(&self) -> BTreeSet<NodeId> {
        let view = self.feed.view();
        view.nodes.keys().filter(|node| !self.endpoints.has_report(node)).cloned().collect()
    }

    /// Right after this manager's start, waits until all nodes have reported their endpoints, or a
    /// timeout.
    pub(crate) async fn first_reports(&self) {
        let mut reports = self.endpoints.reports();
        let all = reports.wait_for(|_| self.nodes_without_report().is_empty());
        // Later, this returns at once.
        let _ = tokio::time::timeout_at(self.begun + limits::FIRST_REPORTS, all).await;
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Returns this manager's own identity.
    pub(crate) fn own(&self) -> &PeerIdentity {
        &self.own
    }

    pub(crate) fn node_id(&self) -> &NodeId {
        &self.own.node
    }

    pub(crate) fn end_sessions(&self) {
        self.sessions.end_all();
    }

    /// Returns a receiver of the states of all nodes.
    pub(crate) fn states(&self) -> watch::Receiver<NodeStates> {
        self.states.subscribe()
    }

    /// Returns whether a node is known to be down.
    pub(crate) fn is_down(&self, node: &NodeId) -> bool {
        self.states.borrow().get(node) == Some(&NodeState::Down)
    }

    /// Records a message from an agent.
    pub(crate) fn message_received(&self, node: &NodeId) {
        self.sessions.record_seen(node);
        if self.liveness(|liveness| liveness.message_received(node, Instant::now())) {
            self.liveness_changed.notify_one();
        }
    }

    /// Records the end of an agent's session.
    pub(crate) fn session_ended(&self, node: &NodeId) {
        self.paths.forget(node);
        self.liveness(|liveness| liveness.closed(node));
        self.liveness_changed.notify_one();
    }

    /// Records which nodes' datapaths respond to an agent.
    pub(crate) fn probed(&self, prober: &NodeId, seen: impl Iterator<Item = (NodeId, bool)>) {
        let now = Instant::now();
        self.liveness(|liveness| {
            for (target, answering) in seen {
                liveness.probed(prober, &target, answering, now);
            }
        });
        self.liveness_changed.notify_one();
    }

    /// Replaces the routes of an agent's host.
    pub(crate) fn set_routes(&self, node: &NodeId, routes: Routes) {
        self.routes.lock().insert(node.clone(), routes);
    }

    /// Returns the routes of all hosts.
    pub(crate) fn routes(&self) -> BTreeMap<NodeId, Routes> {
        self.routes.lock().clone()
    }

    /// Checks a node's report against the current records.
    pub(crate) fn checked<T>(&self, node: &NodeId, check: impl FnOnce(Checker<'_>) -> T) -> T {
        let view = self.feed.view();
        let is_trusted = view.nodes.get(node).is_some_and(|node| node.role == Role::Manager);
        check(Checker { view: &view, node, is_trusted })
    }

    fn liveness<T>(&self, change: impl FnOnce(&mut Liveness) -> T) -> T {
        change(&mut self.liveness.lock())
    }

    /// Deletes the state of removed nodes.
    pub(crate) fn follow_members(&self) {
        let nodes: BTreeSet<NodeId> = self.feed.view().nodes.keys().cloned().collect();
        self.endpoints.retain(&nodes);
        self.health.retain(&nodes);
        self.faults.retain(&nodes);
        self.routes.lock().retain(|node, _| nodes.contains(node));
        let view = self.feed.view();
        let managers = view.nodes.values().filter(|node| node.role == Role::Manager);
        let managers = managers.map(|node| node.id.clone()).collect();
        drop(view);
        self.liveness(|liveness| liveness.set_nodes(nodes, managers));
    }

    /// Derives the states of all nodes from the messages and probes so far.
    pub(crate) fn derive_states(&self) {
        let states = self.liveness(|liveness| liveness.states(Instant::now()));
        self.states.send_if_modified(|known| {
            let is_changed = **known != states;
            if is_changed {
                for (node, state) in states.iter().filter(|(node, state)| known.get(*node) != Some(*state)) {
                    info!(%node, ?state, "a node's state changed");
                }
                *known = Arc::new(states);
            }
            is_changed
        });
    }
}
