//! Encrypted networks on this node: its keys, its WireGuard engine, and what both are to do.
//!
//! The engine is the kernel's, or a process that outlives this one. Each pass of the kernel loop
//! gives it what the view asks for, before the datapath sends anything there; whatever goes wrong
//! here, the datapath has no way around it.

mod check;
mod engines;
mod follow;
mod keys;
pub mod schedule;
mod wish;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_model::wireguard::{tunnel_address, tunnel_source};
use mesh_model::{NodeId, Wireguard, naming};
use mesh_proto::{Problem, ProblemKind};
use mesh_wireguard::{
    DropReason, EngineConfig, EngineKind, EngineStatus, Error, Generation, KeyFile, OwnKey, PeerStatus,
    TunnelSources, WireguardEngine,
};
use tokio::sync::watch;

pub use check::run as check;
pub use engines::{Engines, HostEngines};
pub use follow::run as follow;
pub use keys::run;
pub use wish::Wish;

/// How long this node waits at most for others whose turn it is before its own to use their new
/// keys.
const TURN: Duration = Duration::from_secs(30);
/// How long an engine's failure is reported after it was replaced.
const RECENT: Duration = Duration::from_secs(5);

/// The node's keys and its engine, for one caller at a time. Calls may block.
#[derive(Debug)]
pub struct Encryption {
    engines: Arc<dyn Engines>,
    key_file: PathBuf,
    state: Mutex<State>,
    /// Counts the changes of what is to be announced.
    changed: watch::Sender<u64>,
    /// Counts the engines that failed and have to be replaced.
    failures: watch::Sender<u64>,
    /// Since when another node has two keys and the engine has to be asked which of them is in use,
    /// if one has.
    replacing: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct State {
    keys: Option<KeyFile>,
    engine: Option<Box<dyn WireguardEngine>>,
    /// Why it is this one.
    reason: String,
    /// What the engine has.
    applied: Option<EngineConfig>,
    /// What it was last asked for.
    wish: Option<(Wish, u16)>,
    /// The newest key is to be used, and the kernel's engine is not to know before the datapath is
    /// ready for it.
    goes_over: bool,
    /// Since when it is not yet this node's turn.
    waits_since: Option<Instant>,
    /// What the engine has may not be what it was given.
    in_doubt: bool,
    /// When an engine failed last, and why.
    failure: Option<(Instant, String)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("wish", &self.wish).finish_non_exhaustive()
    }
}

/// What the engine says.
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
    fn replacing(&self) -> watch::Receiver<Option<Instant>> {
        self.replacing.subscribe()
    }

    /// Lets the engine look which of its keys each node uses.
    fn follow(&self) -> Result<(), Problem> {
        match &mut self.lock().engine {
            Some(engine) => engine.follow().map_err(|error| explain(&error)),
            None => Ok(()),
        }
    }

    /// Counts the engines that failed and have to be replaced by the next call of
    /// [`Encryption::apply`].
    pub fn failures(&self) -> watch::Receiver<u64> {
        self.failures.subscribe()
    }

    /// Checks that the engine still responds, while one is needed.
    fn check(&self) {
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

    /// Gives the engine what is wished for, starting it if there is none. `mtu` is the largest of
    /// an encrypted network on this node, in bytes. Without a wish nothing happens: an engine that
    /// runs goes on. Tells whether the engine was asked for anything, so that its device may be
    /// new.
    pub fn apply(&self, wish: Option<&Wish>, mtu: u32) -> Result<bool, Problem> {
        let Some(wish) = wish else { return Ok(false) };
        let mut state = self.lock();
        state.wish = Some((wish.clone(), u16::try_from(mtu).unwrap_or(u16::MAX)));
        self.apply_wish(&mut state)
    }

    /// The MTU that the engine has, in bytes.
    pub fn mtu(&self) -> Option<u32> {
        self.lock().applied.as_ref().map(|config| config.inner_mtu.into())
    }

    /// Of which generations the keys are that packets may be encrypted with from now on: with both
    /// of two, the datapath is to be ready for either, and [`Encryption::go_over`] is to follow.
    pub fn generations(&self) -> BTreeSet<Generation> {
        let mut state = self.lock();
        let goes_over = state.goes_over;
        let Ok(keys) = self.keys(&mut state) else { return BTreeSet::new() };
        let newest = keys.keys().iter().rev().filter(|key| key.active).map(|key| key.generation);
        newest.take(if goes_over { 2 } else { 1 }).collect()
    }

    /// Gives the engine the newest key to use. The datapath is ready for it.
    pub fn go_over(&self) -> Result<(), Problem> {
        let mut state = self.lock();
        let goes_over = std::mem::take(&mut state.goes_over);
        let applied = self.apply_wish(&mut state);
        state.goes_over = goes_over && applied.is_err();
        drop(state);
        self.changed.send_modify(|count| *count += 1);
        applied.map(drop)
    }

    fn apply_wish(&self, state: &mut State) -> Result<bool, Problem> {
        let Some((wish, mtu)) = state.wish.clone() else { return Ok(false) };
        let mut keys = self.keys(state)?.keys().to_vec();
        if let Some(newest) = keys.last_mut().filter(|_| state.goes_over) {
            newest.active = false;
        }
        let engine = match &mut state.engine {
            Some(engine) => engine,
            none => {
                let (engine, reason) = self.engines.open().map_err(|error| explain(&error))?;
                tracing::info!(engine = ?engine.kind(), reason, "what carries encrypted networks");
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
            vxlan_port: wish.vxlan_port,
            inner_mtu: mtu,
            tunnel_address: tunnel_address(wish.number),
            sources: sources(wish.number),
            peers: wish.peers_beside(&keys),
            keys,
        };
        let kind = engine.kind();
        let in_doubt = std::mem::take(&mut state.in_doubt);
        let same = state.applied.as_ref() == Some(&config);
        if same && !in_doubt && self.engines.device_is_intact(kind, &config) {
            return Ok(false);
        }
        state.applied = None;
        engine.apply(&config).map_err(|error| explain(&error))?;
        let asks = kind == EngineKind::Kernel && config.has_peers_with_two_keys();
        self.replacing.send_replace(asks.then(Instant::now));
        state.applied = Some(config);
        Ok(true)
    }

    /// What the engine says; `None` while none is needed.
    pub fn status(&self) -> Result<Option<Tunnels>, Problem> {
        let mut state = self.lock();
        let Some((wish, _)) = state.wish.clone() else { return Ok(None) };
        let Some(engine) = &mut state.engine else { return Ok(None) };
        let EngineStatus { engine, mut peers, drops } = engine.status().map_err(|error| explain(&error))?;
        let known = wish.nodes.iter().filter_map(|(index, node)| Some((node.clone(), peers.remove(index)?)));
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
        let Some((wish, _)) = &state.wish else { return Ok(true) };
        let is_before = |number: &u16| *number < wish.number;
        let mut before = wish.nodes.iter().filter(|(number, _)| is_before(number)).map(|(_, node)| node);
        let uses_old = |node| {
            let generations = tunnels.peers.get(node).and_then(|peer| peer.generations);
            generations.is_some_and(|(_, theirs)| theirs < wanted)
        };
        let waits = tunnels.engine == EngineKind::Kernel && before.any(uses_old);
        let since = *state.waits_since.get_or_insert_with(Instant::now);
        Ok(!waits || since.elapsed() >= TURN)
    }

    /// Uses the newest key: to be called once everybody knows it, and this node [has its
    /// turn](Encryption::has_turn). Tells whether a pass of the loop has to make the datapath ready
    /// first.
    pub fn activate_new(&self) -> Result<bool, Problem> {
        let mut state = self.lock();
        let is_kernel = state.engine.as_ref().is_some_and(|engine| engine.kind() == EngineKind::Kernel);
        (state.goes_over, state.waits_since) = (is_kernel && state.applied.is_some(), None);
        let goes_over = state.goes_over;
        drop(state);
        let activated = self.change_keys(KeyFile::activate);
        if activated.is_err() {
            self.lock().goes_over = false;
        }
        activated.map(|()| goes_over)
    }

    /// Forgets the old key: to be called once nobody uses it.
    pub fn retire_old(&self) -> Result<(), Problem> {
        self.change_keys(KeyFile::retire)
    }

    fn change_keys(
        &self,
        change: impl FnOnce(&mut KeyFile) -> mesh_wireguard::Result<()>,
    ) -> Result<(), Problem> {
        let mut state = self.lock();
        change(self.keys(&mut state)?).map_err(|error| explain(&error))?;
        let applied = self.apply_wish(&mut state);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
        applied.map(drop)
    }

    /// Whether the engine sends to every node that it has a session with by this node's newest key.
    pub fn all_use_the_newest(&self) -> Result<bool, Problem> {
        let newest = {
            let mut state = self.lock();
            if state.goes_over {
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
    fn keys<'s>(&self, state: &'s mut State) -> Result<&'s mut KeyFile, Problem> {
        if state.keys.is_none() {
            state.keys = Some(KeyFile::open(&self.key_file).map_err(|error| explain(&error))?);
        }
        state.keys.as_mut().ok_or_else(|| Problem::new(ProblemKind::Failed, "there is no key file"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic has left is compared with the next wish as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where packets of the node with that number come from inside the tunnels.
fn sources(number: u16) -> TunnelSources {
    TunnelSources { even: tunnel_source(number, false), odd: tunnel_source(number, true) }
}

/// An engine's error as people see it.
pub(crate) fn explain(error: &Error) -> Problem {
    let problem = |kind| Problem::new(kind, format!("encrypted networks do not work on this node: {error}"));
    match error {
        Error::PortTaken { port } => problem(ProblemKind::Conflict).hint(format!(
            "see who has it with `ss -lunp 'sport = :{port}'`, or choose another with wireguard_port in the configuration"
        )),
        Error::DeviceTaken { device } => {
            problem(ProblemKind::Conflict).hint(format!("see what it is with: ip -d link show {device}"))
        }
        Error::NoTun { .. } => problem(ProblemKind::Failed)
            .hint("load the module tun, and give meshd access to /dev/net/tun and CAP_NET_ADMIN"),
        Error::KeyFileMode { path, .. } => problem(ProblemKind::Failed)
            .hint(format!("chmod 600 {}, if nobody else can have read it; else remove it", path.display())),
        Error::NoKernelWireguard | Error::Trial(_) => problem(ProblemKind::Failed).hint(
            "load the module wireguard, or set wireguard_engine to automatic or userspace in the configuration",
        ),
        // Errors of the engine's process come as text.
        Error::Remote(text) if text.contains("is taken by another program") => {
            problem(ProblemKind::Conflict).hint(
                "see who has it with `ss -lunp`, or choose another port with wireguard_port in the configuration",
            )
        }
        _ => problem(ProblemKind::Failed),
    }
}

#[cfg(test)]
mod tests;
