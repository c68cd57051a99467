//! The trait that all engines have.

use serde::{Deserialize, Serialize};

use crate::{EngineConfig, EngineKind, EngineStatus, Result};

/// Something that carries the frames of encrypted networks between nodes.
///
/// Calls block for some milliseconds at most, except when a process has to be started first.
pub trait WireguardEngine: Send {
    /// Which engine it is.
    fn kind(&self) -> EngineKind;

    /// Makes `config` true. Only what differs is touched: sessions with peers and keys that stay go
    /// on.
    fn apply(&mut self, config: &EngineConfig) -> Result<()>;

    /// Looks which of its keys each peer uses, where the engine does not notice by itself: to be
    /// called again and again while a peer has two.
    fn follow(&mut self) -> Result<()> {
        Ok(())
    }

    /// Checks that it still responds; for a caller that asks every second or so. An engine that
    /// does not is ended, with its device, and the next [`WireguardEngine::apply`] starts another.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    /// What it reports; an engine that was given no configuration yet has no peers.
    fn status(&mut self) -> Result<EngineStatus>;

    /// Removes the device and forgets all keys.
    fn remove(&mut self) -> Result<()>;
}

/// Which engine a node is to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// The kernel's where a trial shows that it works.
    #[default]
    Automatic,
    /// The kernel's, or none.
    Kernel,
    /// The one in user space.
    Userspace,
}
