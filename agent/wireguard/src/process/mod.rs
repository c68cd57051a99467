//! The engine in a process of its own: it holds the device and the keys (in memory only), and
//! outlives the daemon.
//!
//! If it dies, its descriptors are closed, the device vanishes, and nothing can leave by it any
//! more.

mod client;
mod protocol;
mod server;
mod stuck;

pub use client::{EngineCommand, EngineProcess};
pub use server::engine_main;
