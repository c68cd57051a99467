//! The trait of all engines.

use serde::{Deserialize, Serialize};

use crate::{EngineConfig, EngineKind, EngineStatus, Result};

/// Carries the frames of encrypted networks between nodes.
///
/// Calls block for a few milliseconds at most, except if a process must be started first.
pub trait WireguardEngine: Send {
    /// Returns the kind of engine.
    fn kind(&self) -> EngineKind;

    /// Applies `config`. Changes only what differs: sessions with unchanged peers and keys
    /// continue.
    fn apply(&mut self, config: &EngineConfig) -> Result<()>;

    /// Checks which of its keys each peer uses, if the engine does not notice this itself. Call it
    /// repeatedly while a peer has two keys.
    fn follow(&mut self) -> Result<()> {
        Ok(())
    }

    /// Checks that the engine responds; intended for a call each second. If it does not, ends it
    /// with its device. The next [`WireguardEngine::apply`] then starts another.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    /// Returns the status; an engine without a configuration has no peers.
    fn status(&mut self) -> Result<EngineStatus>;

    /// Removes the device and deletes all keys.
    fn remove(&mut self) -> Result<()>;
}

/// The engine that a node uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// The kernel's, if a trial shows that it works.
    #[default]
    Automatic,
    /// The kernel's, or none.
    Kernel,
    /// The engine in user space.
    Userspace,
}
