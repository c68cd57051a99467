//! WireGuard between the nodes, for `--encrypted` networks.
//!
//! The rest of the product uses the trait [`WireguardEngine`]. There are three engines:
//! - [`KernelEngine`]: the kernel's WireGuard, configured over netlink;
//! - [`Userspace`]: Mesh's own engine inside this process;
//! - [`EngineProcess`]: the same in a separate process ([`engine_main`]) that continues when the
//!   daemon ends.
//!
//! [`EngineChoice`] configures the engine of a node. [`try_kernel_wireguard`] tests whether the
//! kernel's works. On the wire all are the same: VXLAN (RFC 7348) between tunnel addresses, inside
//! WireGuard. Nodes with different engines interoperate.
//!
//! # The device
//!
//! The device of the kernel's engine sends and receives IP packets: VXLAN over UDP over IPv4 from
//! the sender's tunnel source to the receiver's tunnel address, UDP checksum zero. It also emits
//! any other packet that a peer sends from its tunnel address.
//!
//! The device of the engine in user space is a TAP. A frame to send has [`FrameTag::mac`] as its
//! source MAC, which names network and peer; its destination MAC is the inner frame's. It may be a
//! TCP or UDP super-packet with an incomplete checksum. A received frame has the tag of its sender
//! as source MAC. It has passed these checks: it was encrypted with that peer's key, was sent from
//! that key's source address to this node's tunnel address, and is not a replay. Inner source MACs
//! are not carried.
//!
//! # Fail closed
//!
//! A frame leaves encrypted or not at all. It is dropped and counted by [`DropReason`] if its peer
//! is not configured, has no key, or has no session (after a bounded wait for a handshake). When
//! the engine ends for any reason, the kernel removes its device, and packets to it are dropped.
//!
//! # Keys
//!
//! [`KeyFile`] holds a node's key pairs on disk; during a rotation there are two. The engine in
//! user space has a link for each pair of own and peer's keys. It sends with the newest that has a
//! session, and accepts on all of them. The kernel's engine has one own key and accepts all keys of
//! a peer. The peer's tunnel address belongs to the key used for sending; see
//! [`WireguardEngine::follow`]. Packets have a different source address for each of a node's two
//! keys: [`TunnelSources`].

#![forbid(unsafe_code)]

mod config;
mod device;
mod engine;
mod error;
mod fake;
#[cfg(fuzzing)]
pub mod fuzzing;
mod kernel;
mod key_text;
mod keys;
mod packet;
mod process;
mod userspace;
mod wake;

pub use config::{
    DropReason, EngineConfig, EngineKind, EngineStatus, MIN_INNER_MTU, PeerConfig, PeerStatus, TunnelSources,
    VXLAN_OVERHEAD, WIREGUARD_OVERHEAD_V4, WIREGUARD_OVERHEAD_V6, inner_mtu,
};
pub use engine::{EngineChoice, WireguardEngine};
pub use error::{Error, Result};
pub use fake::FakeEngine;
pub use kernel::{KernelEngine, try_kernel_wireguard};
pub use keys::{Generation, KeyFile, OwnKey, PrivateKey, PublicKey};
pub use packet::FrameTag;
pub use process::{EngineCommand, EngineProcess, engine_main};
pub use userspace::Userspace;
