//! WireGuard between the hosts of a mesh, for networks that are `--encrypted`.
//!
//! [`WireguardEngine`] is what the rest of the product sees. There are three:
//! - [`KernelEngine`]: the kernel's WireGuard, configured over netlink;
//! - [`Userspace`]: an engine of our own inside this process, see there for how it moves packets;
//! - [`EngineProcess`]: the same in a process of its own ([`engine_main`]) that goes on when the
//!   daemon ends.
//!
//! [`EngineChoice`] configures which of them a node uses, and [`try_kernel_wireguard`] whether the
//! kernel's works. On the wire all are the same: VXLAN (RFC 7348) between tunnel addresses, inside
//! WireGuard. Hosts with different engines understand each other.
//!
//! # What the programs that feed the device have to know
//!
//! The device of the kernel's engine takes and lets out IP packets: VXLAN over UDP over IPv4 from
//! this node's tunnel address to the peer's, UDP checksum zero, and whatever else a peer sends from
//! its tunnel address.
//!
//! The device of the engine in user space is a TAP. A frame to send has [`FrameTag::mac`] as its
//! source MAC, which names network and peer; its destination MAC is the inner frame's. It may be a
//! super-packet of TCP or UDP, with its checksum to be completed. A frame that arrives has the tag
//! of its sender as source MAC, and has passed these checks: it was encrypted with that peer's key,
//! came from that key's source address to our tunnel address, and was never seen before. Inner
//! source MACs are not carried.
//!
//! # Fail closed
//!
//! A frame leaves encrypted or not at all: for a peer that is not configured, has no key, or has no
//! session (beyond a bounded wait for a handshake) it is dropped and counted by [`DropReason`].
//! When the engine ends in whatever way, the kernel removes its device, and what was to go there is
//! dropped by whoever wanted to send it.
//!
//! # Keys
//!
//! [`KeyFile`] holds a node's key pairs on disk. A rotation has two at a time; the engine in user
//! space has a link for each pair of own and peer's keys, sends with the newest that has a session,
//! and accepts on all of them. The kernel's has one own key; it accepts on all of the peers', and a
//! peer's tunnel address belongs to that of them which is sent with: see
//! [`WireguardEngine::follow`]. Packets come from another address for each of two keys:
//! [`TunnelSources`].

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
