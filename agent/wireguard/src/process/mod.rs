//! The engine in a separate process: it holds the device and the keys (in memory only), and
//! outlives the daemon.
//!
//! If it dies, its descriptors are closed and the device is removed, so nothing can leave through
//! it.

mod client;
mod protocol;
mod server;
mod stuck;

pub use client::{EngineCommand, EngineProcess};
pub use server::engine_main;
