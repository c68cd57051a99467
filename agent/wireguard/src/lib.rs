//! WireGuard between the hosts of a mesh, for networks that are `--encrypted`.
mod base64;
mod config;
mod engine;
mod error;
mod fake;
mod kernel;
mod keys;
mod packet;
mod process;
mod sys;
mod userspace;

pub use config::{
    DropReason, EngineConfig, EngineKind, EngineStatus, PeerConfig, PeerStatus, VXLAN_OVERHEAD,
    WIREGUARD_OVERHEAD_V4, WIREGUARD_OVERHEAD_V6, inner_mtu,
};
pub use engine::{EngineChoice, WireguardEngine};
pub use error::{Error, Result};
pub use fake::FakeEngine;
pub use kernel::{KernelEngine, kernel_has_wireguard};
pub use keys::{Generation, KeyFile, OwnKey, PrivateKey, PublicKey};
pub use packet::FrameTag;
pub use process::{EngineCommand, EngineProcess, engine_main};
pub use userspace::Userspace;
