//! The kernel loop: brings the kernel to the desired state and keeps it there.
//!
//! [`reconcile`] observes, plans, applies and reports. It owns the kernel's links, routes, firewall
//! and programs, the WireGuard engine ([`Encryption`]) and the XDP program ([`Xdp`]). [`inside`]
//! restores what endpoints have lost in their own namespaces. The services' part of the kernel is
//! `mesh-services`'.
#![forbid(unsafe_code)]

mod attempt;
mod encryption;
pub mod engine_check;
mod engines;
pub mod fake;
pub mod inside;
pub mod peer_keys;
pub mod reconcile;
mod tunnel_problem;
mod xdp;

pub use attempt::{Outcome, attempt};
pub use encryption::{Encryption, KeyStage, Tunnels};
pub use engines::{Engines, HostEngines};
pub use tunnel_problem::tunnel_problem;
pub use xdp::{Xdp, XdpPolicy};
