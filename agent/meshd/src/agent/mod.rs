//! What a member knows and wants: shared by the session with a manager, the local API and the
//! kernel loop.
//!
//! Every change of it makes a new generation and wakes the loop. A pass of the loop tells which
//! generation it was of, so that whoever made a change can wait until the kernel has it.

mod revisions;
pub mod saving;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_ipam::Delays;
use mesh_model::desired::{Encapsulation, Peer, Underlay};
use mesh_model::wireguard::DEFAULT_PORT;
use mesh_model::{
    BackendId, Desired, Endpoint, EndpointId, EndpointPhase, Finding, InterfacePatterns, NetworkId, Node,
    NodeId, NodeState,
};
use mesh_proto::{Problem, v1};
use tokio::sync::{Notify, watch};

use self::saving::go_on_without;
use crate::addresses::{AddressPools, SavedPools};
use crate::durable::{self, FileError};
use crate::encryption::Wish;
use crate::endpoint_store::EndpointStore;
use crate::instance::StatePaths;
use crate::reachability::Paths;
use crate::services::{SavedHealth, SavedNames, Soft};
use crate::unreadable::Unreadable;
use crate::view::ClusterView;
use crate::xdp::XdpStatus;

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
    /// Whether that interface's driver runs the XDP program.
    pub xdp: XdpStatus,
    /// MTU of each network's endpoints on this node, in bytes.
    pub mtus: BTreeMap<NetworkId, u32>,
    /// Whether the programs were loaded in it, maybe with new and empty maps.
    pub loaded: bool,
}

/// Why a manager does not accept an endpoint of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One line.
    pub why: String,
    /// Another endpoint has the name.
    pub name_taken: bool,
}

/// The state behind the lock.
#[derive(Debug)]
pub struct State {
    /// The cluster's records.
    pub view: ClusterView,
    /// The saved view is lost, and no manager has sent one yet.
    lost_view: Option<LostView>,
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
    /// This node's endpoints that the manager does not accept.
    pub refused: BTreeMap<EndpointId, Refusal>,
    /// What else the manager does not accept of this node's reports, a line each.
    pub report_problems: Vec<String>,
    /// By how many milliseconds the manager's clock is ahead of this host's.
    pub manager_clock_ms: Option<i64>,
    /// Messages about soft state that cannot be read.
    pub unreadable: Unreadable,
    /// What was found wrong at start, a line each.
    pub damage: Vec<String>,
    /// What nobody stores about services.
    pub soft: Soft,
    /// What this node finds out about its paths to other nodes.
    pub paths: Paths,
    /// What does not work with services, a line each.
    pub service_problems: Vec<String>,
    /// Conflicts of published ports with this host's sockets, a line each.
    pub port_conflicts: Vec<String>,
    /// What is wrong inside the namespaces of this node's endpoints, a line each.
    pub inside_problems: Vec<String>,
    /// Which of this node's addresses the host has lost.
    pub address_problem: Option<String>,
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

impl State {
    /// Whether the saved view is lost, and no manager has sent one yet.
    pub fn is_view_lost(&self) -> bool {
        self.lost_view.is_some()
    }
}

/// What waits for a view while the saved one is lost.
#[derive(Debug)]
struct LostView {
    pools: SavedPools,
    delays: Delays,
}

/// A member's state, its place on disk, and the signals between its tasks.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    encapsulation: Encapsulation,
    publish_interfaces: InterfacePatterns,
    paths: StatePaths,
    store: EndpointStore,
    state: Mutex<State>,
    /// Held during a write, so that nothing older replaces something newer.
    saving: Mutex<()>,
    /// There is something that should be on the disk soon.
    unsaved: Notify,
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
    /// Whether `State::view` is what the cluster has or had.
    view_known: watch::Sender<bool>,
    /// Of which generation the managers want this node's newest key to be.
    key_calls: watch::Sender<u32>,
    pass: watch::Sender<Pass>,
    applied: watch::Sender<u64>,
}

/// The count of the view that an agent begins with.
const FIRST: u64 = 1;
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
    /// Endpoints whose caller was never told are undone: their records go, and with them the first
    /// pass removes what was made for them.
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
        let saved_view = go_on_without(durable::read_json(&paths.view()), &mut damage)?;
        let is_damaged = damage.len() > known_damage;
        let view_on_disk = if saved_view.is_some() { FIRST } else { 0 };
        // A view that was lost says nothing of what this node has.
        let is_lost = saved_view.is_none() && (is_damaged || !loaded.endpoints.is_empty());
        let view = saved_view.unwrap_or(fresh);
        let saved: SavedPools =
            go_on_without(durable::read_json(&paths.released()), &mut damage)?.unwrap_or_default();
        let names: SavedNames =
            go_on_without(durable::read_json(&paths.names()), &mut damage)?.unwrap_or_default();
        let health: SavedHealth =
            go_on_without(durable::read_json(&paths.health()), &mut damage)?.unwrap_or_default();
        let endpoints = loaded.endpoints;
        // Those that ended with an earlier boot release their addresses now: nobody has counted
        // their rest since.
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
            view,
            lost_view,
            endpoints,
            pools,
            node_states: BTreeMap::new(),
            manager: String::new(),
            session_problem: String::new(),
            refused: BTreeMap::new(),
            report_problems: Vec::new(),
            manager_clock_ms: None,
            unreadable: Unreadable::default(),
            damage,
            soft: Soft::new(names.names, health),
            paths: Paths::default(),
            service_problems: Vec::new(),
            port_conflicts: Vec::new(),
            inside_problems: Vec::new(),
            address_problem: None,
            loads: 0,
            passed_revision: 0,
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
            endpoints_told: watch::Sender::new(0),
            services_changed: watch::Sender::new(1),
            health_found: watch::Sender::new(1),
            revision: watch::Sender::new(revision),
            view_known,
            key_calls: watch::Sender::new(0),
            pass: watch::Sender::new(Pass::default()),
            applied: watch::Sender::new(0),
        })
    }

    /// Has published ports answered on these of the host's interfaces only.
    #[must_use]
    pub fn publishing_on(mut self, interfaces: InterfacePatterns) -> Self {
        self.publish_interfaces = interfaces;
        self
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

    /// The endpoints whose attach is done.
    pub fn attached(&self) -> BTreeSet<EndpointId> {
        let is_attached = |endpoint: &&Endpoint| endpoint.phase == EndpointPhase::Attached;
        self.read(|state| state.endpoints.values().filter(is_attached).map(|e| e.id.clone()).collect())
    }

    /// Looks at the state.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.lock())
    }

    /// Changes what the kernel should have, and wakes the loop. Returns the generation that has the
    /// change.
    pub fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> (u64, R) {
        let mut state = self.lock();
        let result = change(&mut state);
        state.generation += 1;
        self.generation.send_replace(state.generation);
        self.endpoints_changed.send_modify(|count| *count += 1);
        self.services_changed.send_modify(|count| *count += 1);
        (state.generation, result)
    }

    /// Has the loop look again at what the kernel should have: something in a service that it
    /// follows from has changed.
    pub fn look_again(&self) {
        let mut state = self.lock();
        state.generation += 1;
        self.generation.send_replace(state.generation);
    }

    /// Changes what services and names follow from, and passes do not.
    pub fn adjust<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.lock());
        self.services_changed.send_modify(|count| *count += 1);
        result
    }

    /// Takes what a manager says of other nodes' endpoints.
    pub(crate) fn learn_endpoints(&self, message: &v1::Endpoints) {
        self.adjust(|state| state.soft.tell_endpoints(message, &mut state.unreadable));
        self.unsaved.notify_one();
    }

    /// Changes what the kernel has no part in.
    pub fn note<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state consistent before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the kernel should have, with the generation of that wish.
    pub fn desired(&self) -> (u64, u64, Desired) {
        let state = self.lock();
        let view = &state.view;
        let own = view.nodes.get(&self.node.id).unwrap_or(&self.node);
        let peer = |node: &Node| Peer {
            address: node.data_path_addr,
            control_address: Some(node.advertise_addr.ip()).filter(|ip| *ip != node.data_path_addr),
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
            // Also those without a lease here: packets to them must not take the default route.
            networks: view.networks.clone(),
            leases: view.leases.values().cloned().collect(),
            wireguard_peers: BTreeMap::new(),
            wireguard_number: 0,
            wireguard_generations: BTreeSet::new(),
            avoided_ports,
            endpoints: state.endpoints.clone(),
        };
        (state.generation, view.revision, desired)
    }

    /// What the WireGuard engine should do; `None` while this node has no part in an encrypted
    /// network.
    pub fn encryption(&self) -> Option<Wish> {
        self.read(|state| Wish::of(&state.view, &self.node.id))
    }

    /// The managers call for a key of that generation.
    pub fn call_for_key(&self, generation: u32) {
        self.key_calls.send_replace(generation);
    }

    /// Follows the managers' calls for new keys.
    pub fn key_calls(&self) -> watch::Receiver<u32> {
        self.key_calls.subscribe()
    }

    /// Waits until the cluster knows a key of this node; false when that takes longer than
    /// `timeout`.
    pub async fn has_announced_key(&self, timeout: Duration) -> bool {
        self.sees(timeout, |_| self.node().wireguard.is_some()).await
    }

    /// Waits for the first session with a manager; false when that takes longer than `timeout`.
    pub async fn is_in_session(&self, timeout: Duration) -> bool {
        self.sees(timeout, |_| self.read(|state| !state.manager.is_empty())).await
    }

    /// Waits until the cluster's records are known. What the kernel has must not follow from the
    /// lack of them: it stays as it is until a manager has sent them.
    pub async fn view_known(&self) {
        // The sender lives as long as `self`.
        let _ = self.view_known.subscribe().wait_for(|known| *known).await;
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

    /// Waits until the manager has all changes of endpoints so far: a query to it then returns
    /// them. Returns at once without a session: the next one begins with all endpoints.
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

    /// Wakes on changes that services, names and health checks may follow from.
    pub fn service_changes(&self) -> watch::Receiver<u64> {
        self.services_changed.subscribe()
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
    pub(crate) fn set_health(&self, backend: BackendId, finding: Finding) {
        self.adjust(|state| state.soft.set_found(backend, finding));
        self.unsaved.notify_one();
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
}
