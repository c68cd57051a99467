//! What a member knows and wants: shared by the session with a manager, the local API and the kernel loop.
//!
//! Every change of it makes a new generation and wakes the loop. A pass of the loop tells which generation it was of, so
//! that whoever made a change can wait until the kernel has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_ipam::Delays;
use mesh_model::desired::{Encapsulation, Peer, Underlay};
use mesh_model::{BackendId, Desired, Endpoint, EndpointId, NetworkId, Node, NodeId, NodeState};
use mesh_proto::Problem;
use tokio::sync::watch;

use crate::addresses::{AddressPools, SavedPools};
use crate::durable::{self, FileError, Survives};
use crate::encryption::Wish;
use crate::endpoint_store::EndpointStore;
use crate::instance::StatePaths;
use crate::services::{SavedNames, Soft};
use crate::view::ClusterView;

/// One pass of the kernel loop: what it was of, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// The generation of the wishes that it saw.
    pub generation: u64,
    /// The store's revision in them.
    pub revision: u64,
    /// Endpoints that a step failed for, and why.
    pub failed: BTreeMap<EndpointId, Problem>,
    /// Why no endpoint can be relied upon: a step that all depend on has failed.
    pub node_failure: Option<Problem>,
    /// Endpoints whose namespace and device are gone.
    pub lost: BTreeSet<EndpointId>,
    /// Everything that did not work, a line each.
    pub problems: Vec<String>,
    /// Name of the interface that has the data-path address; empty when none has it.
    pub underlay: String,
    /// MTU of that interface in bytes.
    pub underlay_mtu: u32,
    /// MTU of each network's endpoints on this node, in bytes.
    pub mtus: BTreeMap<NetworkId, u32>,
    /// Whether the programs were loaded in it, maybe with new and empty maps.
    pub loaded: bool,
}

/// The state behind the lock.
#[derive(Debug)]
pub struct State {
    /// The cluster's records.
    pub view: ClusterView,
    /// This node's endpoints.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    /// The addresses that may be handed out.
    pub pools: AddressPools,
    /// How the nodes are doing, as the manager last said.
    pub node_states: BTreeMap<NodeId, NodeState>,
    /// The manager that the session is with; empty when there is none.
    pub manager: String,
    /// Why there is no session; empty when there is one.
    pub session_problem: String,
    /// This node's endpoints that the manager does not take, and why.
    pub refused: BTreeMap<EndpointId, String>,
    /// What was found wrong at start, a line each.
    pub damage: Vec<String>,
    /// What nobody stores about services.
    pub soft: Soft,
    /// What does not work with services, a line each.
    pub service_problems: Vec<String>,
    /// How often the programs have been loaded.
    pub loads: u64,
    /// The last revision of which the kernel has all but services, and of which it has those.
    passed_revision: u64,
    serviced_revision: u64,
    /// What is wrong with this node's keys for encrypted networks.
    pub key_problem: Option<String>,
    generation: u64,
    /// Counts the changes of the view.
    view_number: u64,
    /// The count at which something of this node's own changed last: what an attach relies on.
    own_view_number: u64,
}

/// A member's state, its place on disk, and the signals between its tasks.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    encapsulation: Encapsulation,
    paths: StatePaths,
    store: EndpointStore,
    state: Mutex<State>,
    /// Held during a write, so that nothing older replaces something newer.
    saving: Mutex<()>,
    /// The count of the view that the disk has.
    view_on_disk: AtomicU64,
    generation: watch::Sender<u64>,
    /// Counts the changes of endpoints that may have to be reported.
    endpoints_changed: watch::Sender<u64>,
    /// The count up to which the manager knows of them.
    endpoints_told: watch::Sender<u64>,
    /// Counts the changes that services, names and health checks may follow from.
    services_changed: watch::Sender<u64>,
    /// Counts the changes of what is found out about this node's backends.
    health_found: watch::Sender<u64>,
    revision: watch::Sender<u64>,
    /// Of which generation the managers want this node's newest key to be.
    key_calls: watch::Sender<u32>,
    pass: watch::Sender<Pass>,
    applied: watch::Sender<u64>,
}

/// How long an attach or detach waits until the manager knows of it.
const TELLING: Duration = Duration::from_secs(1);

/// Milliseconds since 1970: what address pools count in.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Agent {
    /// Takes up what is on the disk; `fresh` is what a node knows that has just become a member.
    ///
    /// Endpoints whose caller was never told are undone: their records go, and with them the first pass removes what was
    /// made for them.
    pub fn load(
        node: Node,
        fresh: ClusterView,
        encapsulation: Encapsulation,
        paths: StatePaths,
        delays: Delays,
    ) -> Result<Self, FileError> {
        let store = EndpointStore::open(&paths.endpoints())?;
        let loaded = store.load()?;
        let mut damage: Vec<String> = loaded.damaged.iter().map(ToString::to_string).collect();
        for id in &loaded.unfinished {
            tracing::info!(endpoint = %id, "undoing an attach that never finished");
            store.remove(id)?;
        }
        let view = go_on_without(durable::read_json(&paths.view()), &mut damage)?.unwrap_or(fresh);
        let saved: SavedPools =
            go_on_without(durable::read_json(&paths.released()), &mut damage)?.unwrap_or_default();
        let names: SavedNames =
            go_on_without(durable::read_json(&paths.names()), &mut damage)?.unwrap_or_default();
        let endpoints = loaded.endpoints;
        // Those that ended with an earlier boot release their addresses now: nobody has counted their rest since.
        let mut in_use = endpoints.clone();
        in_use.extend(loaded.ended.iter().map(|(id, endpoint)| (id.clone(), endpoint.clone())));
        let mut pools = AddressPools::restore(node.id.clone(), delays, &view, &in_use, saved, now());
        for endpoint in loaded.ended.values() {
            tracing::info!(endpoint = %endpoint.name, "ended with an earlier boot of this host");
            for address in endpoint.addresses() {
                pools.release(&endpoint.network, address, now());
            }
        }
        let revision = view.revision;
        let state = State {
            view,
            endpoints,
            pools,
            node_states: BTreeMap::new(),
            manager: String::new(),
            session_problem: String::new(),
            refused: BTreeMap::new(),
            damage,
            soft: Soft::new(names.names),
            service_problems: Vec::new(),
            loads: 0,
            passed_revision: 0,
            serviced_revision: 0,
            key_problem: None,
            generation: 1,
            view_number: 1,
            own_view_number: 1,
        };
        Ok(Self {
            node,
            encapsulation,
            paths,
            store,
            state: Mutex::new(state),
            saving: Mutex::new(()),
            view_on_disk: AtomicU64::new(0),
            generation: watch::Sender::new(1),
            endpoints_changed: watch::Sender::new(1),
            endpoints_told: watch::Sender::new(0),
            services_changed: watch::Sender::new(1),
            health_found: watch::Sender::new(1),
            revision: watch::Sender::new(revision),
            key_calls: watch::Sender::new(0),
            pass: watch::Sender::new(Pass::default()),
            applied: watch::Sender::new(0),
        })
    }

    /// This node's identity.
    pub fn id(&self) -> &NodeId {
        &self.node.id
    }

    /// This node's record: as the cluster has it, or as it was when the node joined.
    pub fn node(&self) -> Node {
        self.read(|state| state.view.nodes.get(&self.node.id).cloned()).unwrap_or_else(|| self.node.clone())
    }

    /// How packets are wrapped.
    pub fn encapsulation(&self) -> Encapsulation {
        self.encapsulation
    }

    /// The endpoints' records on disk.
    pub fn endpoint_store(&self) -> &EndpointStore {
        &self.store
    }

    /// Looks at the state.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.lock())
    }

    /// Changes what the kernel should have, and wakes the loop. Returns the generation that has the change.
    pub fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> (u64, R) {
        let mut state = self.lock();
        let result = change(&mut state);
        state.generation += 1;
        self.generation.send_replace(state.generation);
        self.endpoints_changed.send_modify(|count| *count += 1);
        self.services_changed.send_modify(|count| *count += 1);
        (state.generation, result)
    }

    /// Changes what services and names follow from, and passes do not.
    pub fn adjust<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.lock());
        self.services_changed.send_modify(|count| *count += 1);
        result
    }

    /// Changes what the kernel has no part in.
    pub fn note<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state consistent before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new view; `changed` are the networks that differ, `None` when all may.
    pub fn set_view(&self, view: ClusterView, changed: Option<&BTreeSet<NetworkId>>) {
        let revision = view.revision;
        if !self.advance_revision(&view) {
            self.change(|state| self.replace_view(state, view, changed));
        }
        self.revision.send_replace(revision);
    }

    /// A view that differs in services only, or in nothing but its revision, makes no work for passes; true when this was
    /// one.
    fn advance_revision(&self, view: &ClusterView) -> bool {
        let mut state = self.lock();
        let before = state.view.revision;
        let same =
            ClusterView { revision: view.revision, services: view.services.clone(), ..state.view.clone() };
        if view.revision < before || *view != same {
            return false;
        }
        let same_services = view.services == state.view.services;
        // Published ports of an encrypted network need tunnels.
        if !same_services && Wish::of(view, &self.node.id) != Wish::of(&state.view, &self.node.id) {
            return false;
        }
        state.view = same;
        state.view_number += 1;
        if state.passed_revision == before {
            state.passed_revision = view.revision;
        }
        if same_services && state.serviced_revision == before {
            state.serviced_revision = view.revision;
        } else if !same_services {
            self.services_changed.send_modify(|count| *count += 1);
        }
        self.say_applied(&state);
        true
    }

    /// The kernel has a revision when it has both parts of it.
    fn say_applied(&self, state: &State) {
        let both = state.passed_revision.min(state.serviced_revision);
        self.applied.send_if_modified(|applied| std::mem::replace(applied, both) != both);
    }

    fn replace_view(&self, state: &mut State, view: ClusterView, changed: Option<&BTreeSet<NetworkId>>) {
        let ours = |view: &ClusterView| -> BTreeSet<_> {
            let mine = view.leases.values().filter(|lease| lease.node == self.node.id);
            mine.map(|lease| (lease.network.clone(), lease.prefix, lease.state.clone())).collect()
        };
        let own =
            changed.is_none() || ours(&view) != ours(&state.view) || view.networks != state.view.networks;
        // A store that was restored from a backup counts its revisions anew, and so have the pools to.
        let rewound = view.revision < state.view.revision;
        state.view = view;
        state.view_number += 1;
        if own {
            state.own_view_number = state.view_number;
        }
        let State { view, pools, endpoints, .. } = state;
        if rewound {
            pools.rebuild(view, endpoints, now());
            (state.passed_revision, state.serviced_revision) = (0, 0);
            self.say_applied(state);
        } else {
            pools.update(view, changed, now());
        }
    }

    /// What the kernel should have, with the generation of that wish.
    pub fn desired(&self) -> (u64, u64, Desired) {
        let state = self.lock();
        let view = &state.view;
        let own = view.nodes.get(&self.node.id).unwrap_or(&self.node);
        let peer = |node: &Node| Peer { address: node.data_path_addr, mtu: node.data_path_mtu };
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
            nodes,
            // Also those without a lease here: packets to them must not take the default route.
            networks: view.networks.clone(),
            leases: view.leases.values().cloned().collect(),
            wireguard_peers: BTreeMap::new(),
            endpoints: state.endpoints.clone(),
        };
        (state.generation, view.revision, desired)
    }

    /// What the WireGuard engine should do; `None` while this node has no part in an encrypted network.
    pub fn encryption(&self) -> Option<Wish> {
        self.read(|state| Wish::of(&state.view, &self.node.id))
    }

    /// Follows the revisions of the view.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The managers call for a key of that generation.
    pub fn call_for_key(&self, generation: u32) {
        self.key_calls.send_replace(generation);
    }

    /// Follows the managers' calls for new keys.
    pub fn key_calls(&self) -> watch::Receiver<u32> {
        self.key_calls.subscribe()
    }

    /// Waits until the cluster knows a key of this node; false when that takes longer than `timeout`.
    pub async fn has_announced_key(&self, timeout: Duration) -> bool {
        let mut revisions = self.revision.subscribe();
        let announced = revisions.wait_for(|_| self.node().wireguard.is_some());
        matches!(tokio::time::timeout(timeout, announced).await, Ok(Ok(_)))
    }

    /// Wakes when there is a new generation.
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Counts the changes of endpoints that may have to be reported.
    pub fn endpoint_changes(&self) -> watch::Receiver<u64> {
        self.endpoints_changed.subscribe()
    }

    /// The manager knows of all changes of endpoints up to this count.
    pub fn set_told(&self, count: u64) {
        self.endpoints_told.send_modify(|told| *told = count.max(*told));
    }

    /// Waits until the manager knows of all changes of endpoints so far, so that who asks it next finds them. Without a
    /// session nothing is waited for: the next one begins with all endpoints.
    pub async fn told(&self) {
        let wanted = *self.endpoints_changed.borrow();
        let mut told = self.endpoints_told.subscribe();
        if self.read(|state| state.manager.is_empty()) {
            return;
        }
        if tokio::time::timeout(TELLING, told.wait_for(|told| *told >= wanted)).await.is_err() {
            tracing::debug!("the manager is slow to take a report of endpoints");
        }
    }

    /// Follows the loop's passes.
    pub fn passes(&self) -> watch::Receiver<Pass> {
        self.pass.subscribe()
    }

    /// Follows the last revision that the kernel has.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Tells what came of a pass.
    pub fn finish_pass(&self, pass: Pass) {
        self.note(|state| {
            state.loads += u64::from(pass.loaded);
            if pass.node_failure.is_none() {
                state.passed_revision = state.passed_revision.max(pass.revision);
                self.say_applied(state);
            }
        });
        self.pass.send_replace(pass);
    }

    /// Wakes on changes that services, names and health checks may follow from.
    pub fn service_changes(&self) -> watch::Receiver<u64> {
        self.services_changed.subscribe()
    }

    /// Tells that the kernel has the services of a revision, but for these problems.
    pub fn finish_services(&self, revision: u64, problems: Vec<String>) {
        self.note(|state| {
            state.service_problems = problems;
            // The view may have been replaced by an earlier one meanwhile.
            if revision <= state.view.revision {
                state.serviced_revision = state.serviced_revision.max(revision);
                self.say_applied(state);
            }
        });
    }

    /// Tells why the kernel does not have the services as they should be.
    pub fn fail_services(&self, problems: Vec<String>) {
        self.note(|state| state.service_problems = problems);
    }

    /// Wakes when something else is known about this node's backends.
    pub fn health_changes(&self) -> watch::Receiver<u64> {
        self.health_found.subscribe()
    }

    /// These of this node's backends are checked from now on, and no others.
    pub(crate) fn set_checked(&self, backends: &BTreeSet<BackendId>) {
        if self.note(|state| state.soft.set_checked(backends)) {
            self.services_changed.send_modify(|count| *count += 1);
            self.health_found.send_modify(|count| *count += 1);
        }
    }

    /// A check of one of this node's backends has another result than before.
    pub(crate) fn set_health(&self, backend: BackendId, healthy: bool) {
        self.adjust(|state| state.soft.set_found(backend, healthy));
        self.health_found.send_modify(|count| *count += 1);
    }

    /// Waits for the end of a pass that has at least this generation.
    pub async fn pass_of(&self, generation: u64) -> Pass {
        let mut passes = self.pass.subscribe();
        // The sender lives as long as `self`, so that this cannot fail.
        passes
            .wait_for(|pass| pass.generation >= generation)
            .await
            .map(|pass| pass.clone())
            .unwrap_or_default()
    }

    /// Waits until the view has this revision; false when it has not come within `timeout`.
    pub async fn received(&self, revision: u64, timeout: Duration) -> bool {
        let mut revisions = self.revision.subscribe();
        let reached = revisions.wait_for(|received| *received >= revision);
        matches!(tokio::time::timeout(timeout, reached).await, Ok(Ok(_)))
    }

    /// Whether the disk has of the view what an attach relies on: this node's networks and leases.
    pub fn own_view_is_saved(&self) -> bool {
        let wanted = self.read(|state| state.own_view_number);
        self.view_on_disk.load(Ordering::Acquire) >= wanted
    }

    /// Makes sure that it has. It has to survive as much as the endpoint does whose attach relies on it.
    pub fn save_own_view(&self) -> Result<(), FileError> {
        let wanted = self.read(|state| state.own_view_number);
        self.save_view(wanted, Survives::Kill)
    }

    /// Writes what has changed of the view and of the pools, for the next start. Nothing of it has to be durable: what
    /// has is written where it is relied upon.
    pub fn save_changes(&self) -> Result<(), FileError> {
        let wanted = self.read(|state| state.view_number);
        self.save_view(wanted, Survives::Kill)?;
        self.save_names()?;
        self.save_pools(Survives::Kill)
    }

    fn save_names(&self) -> Result<(), FileError> {
        let _one_at_a_time = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(names) = self.note(|state| state.soft.take_changed_names()) else { return Ok(()) };
        durable::write_json(&self.paths.names(), &names, Survives::Kill)
    }

    /// Writes down which addresses rest, so that an agent that is killed the next moment does not hand them out at once.
    pub fn save_released(&self) -> Result<(), FileError> {
        self.save_pools(Survives::Kill)
    }

    /// Writes all of the view and of the pools durably: before another node is told that it may rely on it.
    pub fn save_everything(&self) -> Result<(), FileError> {
        let wanted = self.read(|state| state.view_number);
        self.save_view(wanted, Survives::PowerLoss)?;
        self.note(|state| state.pools.touch());
        self.save_pools(Survives::PowerLoss)
    }

    fn save_view(&self, wanted: u64, survives: Survives) -> Result<(), FileError> {
        let _one_at_a_time = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        if self.view_on_disk.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        let (number, view) = self.read(|state| (state.view_number, state.view.clone()));
        durable::write_json(&self.paths.view(), &view, survives)?;
        self.view_on_disk.store(number, Ordering::Release);
        Ok(())
    }

    fn save_pools(&self, survives: Survives) -> Result<(), FileError> {
        let _one_at_a_time = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pools) = self.note(|state| state.pools.take_changed()) else { return Ok(()) };
        let written = durable::write_json(&self.paths.released(), &pools, survives);
        if written.is_err() {
            self.note(|state| state.pools.touch());
        }
        written
    }
}

/// A damaged file of what can be learnt anew is no reason not to start.
fn go_on_without<T>(
    read: Result<Option<T>, FileError>,
    damage: &mut Vec<String>,
) -> Result<Option<T>, FileError> {
    match read {
        Err(error @ FileError::Content { .. }) => {
            tracing::warn!(%error, "going on without it");
            damage.push(error.to_string());
            Ok(None)
        }
        other => other,
    }
}
