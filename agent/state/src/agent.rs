//! The state that a member's tasks share, and the signals between them.
//!
//! A change of the desired state increments the generation and wakes the kernel loop. Each
//! reconciliation reports its generation, so that a task can wait until the kernel has its change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use mesh_ipam::Delays;
use mesh_model::desired::{Encapsulation, Peer, Underlay};
use mesh_model::wireguard::DEFAULT_PORT;
use mesh_model::{
    BackendId, Desired, Endpoint, EndpointId, EndpointPhase, Finding, InterfacePatterns, Node, NodeId,
};
use mesh_proto::v1;
use mesh_sys::durable::{self, FileError};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use crate::addresses::{AddressPools, SavedPools};
use crate::changes::{Signal, Versions};
use crate::clock::now;
use crate::damage::without_damaged;
use crate::desired_tunnels::DesiredTunnels;
use crate::endpoint_store::EndpointStore;
use crate::own_endpoints::OwnEndpoints;
use crate::reconciliation::Reconciliation;
use crate::soft::{SavedHealth, SavedNames, Soft};
use crate::state::{LostView, State};
use crate::state_paths::StatePaths;
use crate::tracked::Tracked;
use crate::unreadable::Unreadable;
use crate::view::ClusterView;

/// A node's state, its files, and the signals between its tasks.
#[derive(Debug)]
pub struct Agent {
    pub(crate) node: Node,
    encapsulation: Encapsulation,
    publish_interfaces: InterfacePatterns,
    pub(crate) paths: StatePaths,
    pub(crate) store: EndpointStore,
    state: Mutex<State>,
    /// Held during a write, so that older content never replaces newer.
    pub(crate) saving: Mutex<()>,
    /// Signals changes that must be on disk soon.
    pub(crate) unsaved: Notify,
    /// Number of the view on disk.
    pub(crate) view_on_disk: AtomicU64,
    generation: watch::Sender<u64>,
    /// Number of changes of endpoints that managers may have to receive.
    endpoints_changed: watch::Sender<u64>,
    /// Number of those that the manager has received.
    endpoints_received: watch::Sender<u64>,
    /// Number of changes that concern services, names and health checks.
    pub(crate) services_changed: watch::Sender<u64>,
    /// Number of changes of the results of this node's health checks.
    health_found: watch::Sender<u64>,
    pub(crate) revision: watch::Sender<u64>,
    /// Whether `State::view` is a view that the cluster has or had.
    pub(crate) view_known: watch::Sender<bool>,
    /// The generation that the managers require of this node's newest key.
    key_calls: watch::Sender<u32>,
    pub(crate) reconciliation: watch::Sender<Reconciliation>,
    pub(crate) applied: watch::Sender<u64>,
}

/// Number of the view at start.
const FIRST: u64 = 1;
/// Time that an attach or detach waits for its report to be received.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

impl Agent {
    /// Loads the state from disk; `fresh` is the view of a node that has just become a member.
    ///
    /// Attaches that never returned are undone: their records are removed, and the first
    /// reconciliation removes their devices.
    pub fn load(
        node: Node,
        fresh: ClusterView,
        encapsulation: Encapsulation,
        paths: StatePaths,
        delays: Delays,
    ) -> Result<Self, FileError> {
        let store = EndpointStore::open(&paths.endpoints(), &paths.endpoint_copies())?;
        let loaded = store.load()?;
        let mut damage: Vec<String> = loaded.damaged.iter().map(ToString::to_string).collect();
        for id in &loaded.unfinished {
            tracing::info!(endpoint = %id, "undoing an attach that never finished");
            store.remove(id)?;
        }
        let known_damage = damage.len();
        let saved_view = without_damaged(durable::read_json(&paths.view()), &mut damage)?;
        let is_damaged = damage.len() > known_damage;
        let view_on_disk = if saved_view.is_some() { FIRST } else { 0 };
        // A lost view does not show what this node has.
        let is_lost = saved_view.is_none() && (is_damaged || !loaded.endpoints.is_empty());
        let view = saved_view.unwrap_or(fresh);
        let saved: SavedPools =
            without_damaged(durable::read_json(&paths.released()), &mut damage)?.unwrap_or_default();
        let names: SavedNames =
            without_damaged(durable::read_json(&paths.names()), &mut damage)?.unwrap_or_default();
        let health: SavedHealth =
            without_damaged(durable::read_json(&paths.health()), &mut damage)?.unwrap_or_default();
        let endpoints = loaded.endpoints;
        // Endpoints of an earlier boot release their addresses now: the time since then does not
        // count as rest.
        let mut in_use = endpoints.clone();
        in_use.extend(loaded.ended.iter().map(|(id, endpoint)| (id.clone(), endpoint.clone())));
        let lost_view = is_lost.then(|| LostView { pools: saved.clone(), delays });
        let mut pools = AddressPools::restore(node.id.clone(), delays, &view, &in_use, saved, now());
        for endpoint in loaded.ended.values() {
            tracing::info!(endpoint = %endpoint.name, "ended with an earlier boot of this host");
            for address in endpoint.addresses() {
                pools.release(&endpoint.network, address, now());
            }
        }
        let revision = view.revision;
        let view_known = watch::Sender::new(lost_view.is_none());
        let state = State {
            view: Tracked::new(view),
            lost_view,
            endpoints: OwnEndpoints::new(endpoints),
            removing: loaded.removing.union(&loaded.unfinished).cloned().collect(),
            lost: Vec::new(),
            pools,
            node_states: Tracked::default(),
            manager: String::new(),
            session_problem: String::new(),
            refused: BTreeMap::new(),
            report_problems: Vec::new(),
            manager_clock_ms: None,
            unreadable: Unreadable::default(),
            damage,
            soft: Soft::new(names.names, health),
            paths: Tracked::default(),
            service_problems: Vec::new(),
            port_conflicts: Vec::new(),
            inside_problems: Vec::new(),
            address_problem: None,
            loads: 0,
            reconciled_revision: 0,
            serviced_revision: 0,
            key_problem: None,
            generation: 1,
            view_number: FIRST,
            own_view_number: FIRST,
        };
        Ok(Self {
            node,
            encapsulation,
            publish_interfaces: InterfacePatterns::default(),
            paths,
            store,
            state: Mutex::new(state),
            saving: Mutex::new(()),
            unsaved: Notify::new(),
            view_on_disk: AtomicU64::new(view_on_disk),
            generation: watch::Sender::new(1),
            endpoints_changed: watch::Sender::new(1),
            endpoints_received: watch::Sender::new(0),
            services_changed: watch::Sender::new(1),
            health_found: watch::Sender::new(1),
            revision: watch::Sender::new(revision),
            view_known,
            key_calls: watch::Sender::new(0),
            reconciliation: watch::Sender::new(Reconciliation::default()),
            applied: watch::Sender::new(0),
        })
    }

    /// Accepts traffic to published ports only on these interfaces of the host.
    #[must_use]
    pub fn publishing_on(mut self, interfaces: InterfacePatterns) -> Self {
        self.publish_interfaces = interfaces;
        self
    }

    /// Returns this node's id.
    pub fn id(&self) -> &NodeId {
        &self.node.id
    }

    /// Returns this node's record: the cluster's, or the one from joining.
    pub fn node(&self) -> Node {
        self.read(|state| state.view.nodes.get(&self.node.id).cloned()).unwrap_or_else(|| self.node.clone())
    }

    /// Returns how packets are encapsulated.
    pub fn encapsulation(&self) -> Encapsulation {
        self.encapsulation
    }

    /// Returns the store of the endpoints' records.
    pub fn endpoint_store(&self) -> &EndpointStore {
        &self.store
    }

    /// Returns the attached endpoints.
    pub fn attached(&self) -> BTreeSet<EndpointId> {
        let is_attached = |endpoint: &&Endpoint| endpoint.phase == EndpointPhase::Attached;
        self.read(|state| state.endpoints.values().filter(is_attached).map(|e| e.id.clone()).collect())
    }

    /// Reads the state.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(&self.lock())
    }

    /// Changes the state, and wakes the tasks that follow from what changed (see [`Signal`]).
    pub fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        self.update_generation(change).1
    }

    /// Does the same as [`Agent::update`], and returns also the generation that has the change.
    pub fn update_generation<R>(&self, change: impl FnOnce(&mut State) -> R) -> (u64, R) {
        let mut state = self.lock();
        let before = Versions::of(&state);
        let result = change(&mut state);
        for signal in Versions::of(&state).signals_since(&before) {
            match signal {
                Signal::KernelLoop => {
                    state.generation += 1;
                    self.generation.send_replace(state.generation);
                }
                Signal::EndpointReports => self.endpoints_changed.send_modify(|count| *count += 1),
                Signal::Services => self.services_changed.send_modify(|count| *count += 1),
                Signal::HealthReports => self.health_found.send_modify(|count| *count += 1),
                Signal::Saving => self.unsaved.notify_one(),
            }
        }
        (state.generation, result)
    }

    /// Wakes the kernel loop for what it follows from beside the state: a new key for encrypted
    /// networks, or other ports that masqueraded packets must avoid.
    pub fn wake_kernel_loop(&self) {
        let mut state = self.lock();
        state.generation += 1;
        self.generation.send_replace(state.generation);
    }

    /// Wakes the services' tasks: something in the kernel changed that is theirs.
    pub fn wake_services(&self) {
        self.services_changed.send_modify(|count| *count += 1);
    }

    /// Receives other nodes' endpoints from a manager.
    pub fn receive_endpoints(&self, message: &v1::Endpoints) {
        self.update(|state| state.soft.receive_endpoints(message, &mut state.unreadable));
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state consistent before anything in it can panic.
        self.state.lock()
    }

    /// Returns the generation, the revision and the desired state of the kernel.
    pub fn desired(&self) -> (u64, u64, Desired) {
        let state = self.lock();
        let view = &state.view;
        let own = view.nodes.get(&self.node.id).unwrap_or(&self.node);
        let peer = |node: &Node| Peer {
            address: node.data_path_addr,
            control_address: Some(node.advertise_addr.ip()).filter(|ip| *ip != node.data_path_addr),
            host_addresses: node.host_addrs.clone(),
            mtu: node.data_path_mtu,
            wireguard_port: node.wireguard.as_ref().map_or(0, |wireguard| wireguard.port),
        };
        let mut avoided_ports = view.services.published_ports();
        avoided_ports.insert(own.wireguard.as_ref().map_or(DEFAULT_PORT, |wireguard| wireguard.port));
        let mut nodes: BTreeMap<_, _> =
            view.nodes.values().map(|node| (node.id.clone(), peer(node))).collect();
        nodes.entry(own.id.clone()).or_insert_with(|| peer(own));
        let desired = Desired {
            node: own.id.clone(),
            underlay: Underlay {
                address: own.data_path_addr,
                port: view.cluster.data_path_port,
                encapsulation: self.encapsulation,
                dsr: view.cluster.dsr,
            },
            publish_interfaces: self.publish_interfaces.clone(),
            nodes,
            // Also networks without a lease here: packets to them must not take the default route.
            networks: view.networks.clone(),
            leases: view.leases.values().cloned().collect(),
            wireguard_peers: BTreeMap::new(),
            wireguard_number: 0,
            wireguard_generations: BTreeSet::new(),
            avoided_ports,
            endpoints: (*state.endpoints).clone(),
        };
        (state.generation, view.revision, desired)
    }

    /// Returns the desired tunnels; `None` while this node has no part in an encrypted network.
    pub fn encryption(&self) -> Option<DesiredTunnels> {
        self.read(|state| DesiredTunnels::of(&state.view, &self.node.id))
    }

    /// Receives the managers' request for a key of this generation.
    pub fn call_for_key(&self, generation: u32) {
        self.key_calls.send_replace(generation);
    }

    /// Subscribes to the managers' requests for new keys.
    pub fn key_calls(&self) -> watch::Receiver<u32> {
        self.key_calls.subscribe()
    }

    /// Waits until the cluster knows a key of this node. Returns false after `timeout`.
    pub async fn has_announced_key(&self, timeout: Duration) -> bool {
        self.sees(timeout, |_| self.node().wireguard.is_some()).await
    }

    /// Waits for a session with a manager. Returns false after `timeout`.
    pub async fn is_in_session(&self, timeout: Duration) -> bool {
        self.sees(timeout, |_| self.read(|state| !state.manager.is_empty())).await
    }

    /// Waits until the cluster's records are known. Without them the kernel must stay as it is.
    pub async fn view_known(&self) {
        // The sender lives as long as `self`.
        let _ = self.view_known.subscribe().wait_for(|known| *known).await;
    }

    /// Subscribes to the generations of the desired state.
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Subscribes to changes of endpoints that managers may have to receive.
    pub fn endpoint_changes(&self) -> watch::Receiver<u64> {
        self.endpoints_changed.subscribe()
    }

    /// Notes that the manager has received all changes of endpoints up to this count.
    pub fn set_endpoints_received(&self, count: u64) {
        self.endpoints_received.send_modify(|received| *received = count.max(*received));
    }

    /// Waits until the manager has received all changes of endpoints so far, so that its answers
    /// include them. Returns at once without a session: the next one begins with all endpoints.
    pub async fn endpoints_reported(&self) {
        let wanted = *self.endpoints_changed.borrow();
        let mut received = self.endpoints_received.subscribe();
        if self.read(|state| state.manager.is_empty()) {
            return;
        }
        if tokio::time::timeout(REPORT_TIMEOUT, received.wait_for(|received| *received >= wanted))
            .await
            .is_err()
        {
            tracing::debug!("the manager has not confirmed a report of endpoints in time");
        }
    }

    /// Subscribes to the results of reconciliations.
    pub fn reconciliations(&self) -> watch::Receiver<Reconciliation> {
        self.reconciliation.subscribe()
    }

    /// Subscribes to changes that concern services, names and health checks.
    pub fn service_changes(&self) -> watch::Receiver<u64> {
        self.services_changed.subscribe()
    }

    /// Subscribes to the results of this node's health checks.
    pub fn health_changes(&self) -> watch::Receiver<u64> {
        self.health_found.subscribe()
    }

    /// Sets which of this node's backends are checked from now on.
    pub fn set_checked(&self, backends: &BTreeSet<BackendId>) {
        self.update(|state| state.soft.set_checked(backends));
    }

    /// Sets the result of a check of one of this node's backends, which is another than before.
    pub fn set_health(&self, backend: BackendId, finding: Finding) {
        self.update(|state| state.soft.set_found(backend, finding));
    }

    /// Waits for the end of a reconciliation of at least this generation.
    pub async fn reconciled(&self, generation: u64) -> Reconciliation {
        let mut reconciliations = self.reconciliation.subscribe();
        // The sender lives as long as `self`, so that this cannot fail.
        reconciliations
            .wait_for(|reconciliation| reconciliation.generation >= generation)
            .await
            .map(|reconciliation| reconciliation.clone())
            .unwrap_or_default()
    }
}
