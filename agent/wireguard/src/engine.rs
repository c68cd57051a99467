//! The trait that all engines have.

use serde::{Deserialize, Serialize};

use crate::{EngineConfig, EngineKind, EngineStatus, Error, Result, kernel::kernel_has_wireguard};

/// Something that carries the frames of encrypted networks between nodes.
///
/// Calls block for some milliseconds at most, except when a process has to be started first.
pub trait WireguardEngine: Send {
    /// Which engine it is.
    fn kind(&self) -> EngineKind;

    /// Makes `config` true. Only what differs is touched: sessions with peers and keys that stay go on.
    fn apply(&mut self, config: &EngineConfig) -> Result<()>;

    /// What it reports; an engine that was given no configuration yet has no peers.
    fn status(&mut self) -> Result<EngineStatus>;

    /// Removes the device and forgets all keys.
    fn remove(&mut self) -> Result<()>;
}

/// Which engine a node is to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// The kernel's if it has one.
    #[default]
    Automatic,
    /// The kernel's, or none.
    Kernel,
    /// The one in user space.
    Userspace,
}

impl EngineChoice {
    /// The engine that is used here; fails if it is the kernel's and there is none.
    pub fn resolve(self) -> Result<EngineKind> {
        match self {
            Self::Userspace => Ok(EngineKind::Userspace),
            _ if kernel_has_wireguard() => Ok(EngineKind::Kernel),
            Self::Automatic => Ok(EngineKind::Userspace),
            Self::Kernel => Err(Error::NoKernelWireguard),
        }
    }
}
