//! Encrypted networks on this node: its keys and its WireGuard engine.
//!
//! The engine is the kernel's, or a process that outlives this one. Each reconciliation applies the
//! desired tunnels to it before the datapath sends packets there. If the engine fails, the datapath
//! drops the packets: it never sends them in clear.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::wireguard::tunnel_address;
use mesh_model::{NodeId, Wireguard, naming};
use mesh_proto::{Problem, ProblemKind};
use mesh_state::{DesiredTunnels, sources};
use mesh_wireguard::{
    DropReason, EngineConfig, EngineKind, EngineStatus, Generation, KeyFile, OwnKey, PeerStatus,
    WireguardEngine,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::engines::Engines;
use crate::tunnel_problem::tunnel_problem;

/// Longest time that this node waits for nodes with smaller numbers to use their new keys.
const TURN: Duration = Duration::from_secs(30);
/// Time that a failure is reported after the engine was replaced.
const RECENT: Duration = Duration::from_secs(5);

/// The node's keys and its engine, for one caller at a time. Calls may block.
#[derive(Debug)]
pub struct Encryption {
    engines: Arc<dyn Engines>,
    key_file: PathBuf,
    state: Mutex<EngineState>,
    /// Counts the changes of what is to be announced.
    changed: watch::Sender<u64>,
    /// Counts the engines that failed and have to be replaced.
    failures: watch::Sender<u64>,
    /// Since when another node has two keys and the engine has to be asked which of them is in use,
    /// if one has.
    replacing: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct EngineState {
    keys: Option<KeyFile>,
    engine: Option<Box<dyn WireguardEngine>>,
    /// Why it is this one.
    reason: String,
    /// What the engine has.
    applied: Option<EngineConfig>,
    /// What it was last asked for.
    desired: Option<(DesiredTunnels, u16)>,
    /// The newest key is to be used, and the kernel's engine is not to know before the datapath is
    /// ready for it.
    switches_key: bool,
    /// Since when it is not yet this node's turn.
    waits_since: Option<Instant>,
    /// What the engine has may not be what it was given.
    in_doubt: bool,
    /// When an engine failed last, and why.
    failure: Option<(Instant, String)>,
}

impl std::fmt::Debug for EngineState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("desired", &self.desired).finish_non_exhaustive()
    }
}

/// The status of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnels {
    /// Which engine it is.
    pub engine: EngineKind,
    /// Why it is this one.
    pub reason: String,
    /// What it knows of the other nodes.
    pub peers: BTreeMap<NodeId, PeerStatus>,
    /// Packets that it dropped, by reason.
    pub drops: BTreeMap<DropReason, u64>,
}

/// How far a node is with replacing its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStage {
    /// One key, of that generation.
    One(Generation),
    /// A new one is there, and not in use before everybody knows it.
    Announced,
    /// The new one is in use, the old one still there.
    Active,
}

impl Encryption {
    /// Nothing is opened or started yet.
    pub fn new(engines: Arc<dyn Engines>, key_file: PathBuf) -> Self {
        let (changed, replacing) = (watch::Sender::new(0), watch::Sender::new(None));
        let failures = watch::Sender::new(0);
        Self { engines, key_file, state: Mutex::default(), changed, failures, replacing }
    }

    /// What the cluster is to know of this node's keys; `None` for one that has no usable ones.
    /// With `newest_alone`, the newest key only, also while there are two. Makes the first key.
    pub fn announcement(&self, newest_alone: bool) -> Result<Wireguard, Problem> {
        let mut state = self.lock();
        let keys = self.keys(&mut state)?.keys();
        let skip = if newest_alone { keys.len() - 1 } else { 0 };
        let public = |key: &OwnKey| (key.generation, key.private.public().to_string());
        Ok(Wireguard { port: self.engines.port(), keys: keys.iter().skip(skip).map(public).collect() })
    }

    /// Counts the changes of what is to be announced.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Since when another node has two keys and the engine has to be asked which of them is in use,
    /// if one has.
    pub(crate) fn replacing(&self) -> watch::Receiver<Option<Instant>> {
        self.replacing.subscribe()
    }

    /// Lets the engine check which of its keys each node uses.
    pub(crate) fn follow(&self) -> Result<(), Problem> {
        match &mut self.lock().engine {
            Some(engine) => engine.follow().map_err(|error| tunnel_problem(&error)),
            None => Ok(()),
        }
    }

    /// Counts the engines that failed and have to be replaced by the next call of
    /// [`Encryption::apply`].
    pub fn failures(&self) -> watch::Receiver<u64> {
        self.failures.subscribe()
    }

    /// Checks that the engine still responds, while one is needed.
    pub(crate) fn check(&self) {
        let mut state = self.lock();
        let Some(engine) = &mut state.engine else { return };
        let Err(error) = engine.check() else { return };
        tracing::warn!(%error, "replacing the engine of encrypted networks");
        state.failure = Some((Instant::now(), error.to_string()));
        state.applied = None;
        drop(state);
        self.failures.send_modify(|count| *count += 1);
    }

    /// The last failure of an engine, while it is recent: the engine that replaced it may work
    /// already.
    pub fn recent_failure(&self) -> Option<String> {
        let state = self.lock();
        let (_, reason) = state.failure.as_ref().filter(|(at, _)| at.elapsed() < RECENT)?;
        Some(format!("encrypted networks were interrupted, the engine was replaced: {reason}"))
    }

    /// Has the engine compared with its configuration by the next call of [`Encryption::apply`],
    /// even if nothing seems to have changed: peers and keys can change without an event.
    pub fn doubt(&self) {
        self.lock().in_doubt = true;
    }

    /// Applies the desired tunnels, and starts the engine if necessary. `mtu` is the largest MTU of
    /// an encrypted network on this node, in bytes. With `None` a running engine stays as it is.
    /// Returns whether the engine was called, so that its device may be new.
    pub fn apply(&self, desired: Option<&DesiredTunnels>, mtu: u32) -> Result<bool, Problem> {
        let Some(desired) = desired else { return Ok(false) };
        let mut state = self.lock();
        state.desired = Some((desired.clone(), u16::try_from(mtu).unwrap_or(u16::MAX)));
        self.apply_desired(&mut state)
    }

    /// The MTU that the engine has, in bytes.
    pub fn mtu(&self) -> Option<u32> {
        self.lock().applied.as_ref().map(|config| config.inner_mtu.into())
    }

    /// Of which generations the keys are that packets may be encrypted with from now on: with both
    /// of two, the datapath is to be ready for either, and [`Encryption::switch_key`] is to follow.
    pub fn generations(&self) -> BTreeSet<Generation> {
        let mut state = self.lock();
        let switches_key = state.switches_key;
        let Ok(keys) = self.keys(&mut state) else { return BTreeSet::new() };
        let newest = keys.keys().iter().rev().filter(|key| key.active).map(|key| key.generation);
        newest.take(if switches_key { 2 } else { 1 }).collect()
    }

    /// Gives the engine the newest key to use. The datapath is ready for it.
    pub fn switch_key(&self) -> Result<(), Problem> {
        let mut state = self.lock();
        let switches_key = std::mem::take(&mut state.switches_key);
        let applied = self.apply_desired(&mut state);
        state.switches_key = switches_key && applied.is_err();
        drop(state);
        self.changed.send_modify(|count| *count += 1);
        applied.map(drop)
    }

    fn apply_desired(&self, state: &mut EngineState) -> Result<bool, Problem> {
        let Some((desired, mtu)) = state.desired.clone() else { return Ok(false) };
        let mut keys = self.keys(state)?.keys().to_vec();
        if let Some(newest) = keys.last_mut().filter(|_| state.switches_key) {
            newest.active = false;
        }
        let engine = match &mut state.engine {
            Some(engine) => engine,
            none => {
                let (engine, reason) = self.engines.open().map_err(|error| tunnel_problem(&error))?;
                tracing::info!(engine = ?engine.kind(), reason, "selected the engine of encrypted networks");
                state.reason = reason;
                none.insert(engine)
            }
        };
        let device_index = match engine.kind() {
            EngineKind::Kernel => naming::WIREGUARD_KERNEL_INDEX,
            EngineKind::Userspace => naming::WIREGUARD_USERSPACE_INDEX,
        };
        let config = EngineConfig {
            device: naming::WIREGUARD.to_owned(),
            device_index: Some(device_index),
            listen_port: self.engines.port(),
            vxlan_port: desired.vxlan_port,
            inner_mtu: mtu,
            tunnel_address: tunnel_address(desired.number),
            sources: sources(desired.number),
            peers: desired.peers_beside(&keys),
            keys,
        };
        let kind = engine.kind();
        let in_doubt = std::mem::take(&mut state.in_doubt);
        let same = state.applied.as_ref() == Some(&config);
        if same && !in_doubt && self.engines.device_is_intact(kind, &config) {
            return Ok(false);
        }
        state.applied = None;
        engine.apply(&config).map_err(|error| tunnel_problem(&error))?;
        let asks = kind == EngineKind::Kernel && config.has_peers_with_two_keys();
        self.replacing.send_replace(asks.then(Instant::now));
        state.applied = Some(config);
        Ok(true)
    }

    /// Returns the status of the engine; `None` while none is needed.
    pub fn status(&self) -> Result<Option<Tunnels>, Problem> {
        let mut state = self.lock();
        let Some((desired, _)) = state.desired.clone() else { return Ok(None) };
        let Some(engine) = &mut state.engine else { return Ok(None) };
        let EngineStatus { engine, mut peers, drops } =
            engine.status().map_err(|error| tunnel_problem(&error))?;
        let known =
            desired.nodes.iter().filter_map(|(index, node)| Some((node.clone(), peers.remove(index)?)));
        let reason = state.reason.clone();
        Ok(Some(Tunnels { engine, reason, peers: known.collect(), drops }))
    }

    /// How far the node is with replacing its key.
    pub fn stage(&self) -> Result<KeyStage, Problem> {
        let mut state = self.lock();
        Ok(match self.keys(&mut state)?.keys() {
            [only] => KeyStage::One(only.generation),
            [.., newest] if !newest.active => KeyStage::Announced,
            _ => KeyStage::Active,
        })
    }

    /// Makes a new key of that generation or a later one, which the engine accepts from now on.
    pub fn announce_new(&self, generation: Generation) -> Result<(), Problem> {
        self.change_keys(|keys| keys.announce(generation).map(drop))
    }

    /// Whether this node may begin to use its newest key now that everybody knows it; `wanted` is
    /// the generation that was called for.
    ///
    /// The kernel's engine sends by no session of its old key from that moment. Would two nodes
    /// begin at the same one, each would ask for a session by a key that the other has just given
    /// up. So they do it in the order of their numbers: a node waits for those before it that it
    /// has sessions with, until it sees that they use theirs.
    pub fn has_turn(&self, wanted: Generation) -> Result<bool, Problem> {
        let Some(tunnels) = self.status()? else { return Ok(true) };
        let mut state = self.lock();
        let Some((desired, _)) = &state.desired else { return Ok(true) };
        let is_before = |number: &u16| *number < desired.number;
        let mut before = desired.nodes.iter().filter(|(number, _)| is_before(number)).map(|(_, node)| node);
        let uses_old = |node| {
            let generations = tunnels.peers.get(node).and_then(|peer| peer.generations);
            generations.is_some_and(|(_, theirs)| theirs < wanted)
        };
        let waits = tunnels.engine == EngineKind::Kernel && before.any(uses_old);
        let since = *state.waits_since.get_or_insert_with(Instant::now);
        Ok(!waits || since.elapsed() >= TURN)
    }

    /// Uses the newest key: to be called once everybody knows it, and this node [has its
    /// turn](Encryption::has_turn). Returns whether a reconciliation must prepare the
    /// datapath first.
    pub fn activate_new(&self) -> Result<bool, Problem> {
        let mut state = self.lock();
        let is_kernel = state.engine.as_ref().is_some_and(|engine| engine.kind() == EngineKind::Kernel);
        (state.switches_key, state.waits_since) = (is_kernel && state.applied.is_some(), None);
        let switches_key = state.switches_key;
        drop(state);
        let activated = self.change_keys(KeyFile::activate);
        if activated.is_err() {
            self.lock().switches_key = false;
        }
        activated.map(|()| switches_key)
    }

    /// Deletes the old key: to be called once no node uses it.
    pub fn retire_old(&self) -> Result<(), Problem> {
        self.change_keys(KeyFile::retire)
    }

    fn change_keys(
        &self,
        change: impl FnOnce(&mut KeyFile) -> mesh_wireguard::Result<()>,
    ) -> Result<(), Problem> {
        let mut state = self.lock();
        change(self.keys(&mut state)?).map_err(|error| tunnel_problem(&error))?;
        let applied = self.apply_desired(&mut state);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
        applied.map(drop)
    }

    /// Whether the engine sends to every node that it has a session with by this node's newest key.
    pub fn all_use_the_newest(&self) -> Result<bool, Problem> {
        let newest = {
            let mut state = self.lock();
            if state.switches_key {
                return Ok(false);
            }
            self.keys(&mut state)?.keys().last().map(|key| key.generation)
        };
        let peers = self.status()?.map(|tunnels| tunnels.peers).unwrap_or_default();
        let mut sessions = peers.values().filter_map(|peer| peer.generations);
        Ok(sessions.all(|(own, _)| Some(own) == newest))
    }

    /// The key file, opened or made when it is first needed. One that could not be opened is tried
    /// again each time: it may have been mended.
    fn keys<'s>(&self, state: &'s mut EngineState) -> Result<&'s mut KeyFile, Problem> {
        if state.keys.is_none() {
            state.keys = Some(KeyFile::open(&self.key_file).map_err(|error| tunnel_problem(&error))?);
        }
        state.keys.as_mut().ok_or_else(|| Problem::new(ProblemKind::Failed, "there is no key file"))
    }

    fn lock(&self) -> MutexGuard<'_, EngineState> {
        // After a panic, the next call compares the whole configuration.
        self.state.lock()
    }
}

#[cfg(test)]
#[path = "encryption_tests.rs"]
mod tests;
