//! The unix socket of the CNI plugin: a runtime's calls become attachments.
//!
//! [`serve`] accepts the plugin's connections. Everything that the specification says about
//! configurations, results and errors is here, and nothing about networks: that is the agent's,
//! behind [`AgentHandle`](mesh_handle::AgentHandle).
//!
//! Source: the CNI specification 1.1.0 and its conventions.
#![forbid(unsafe_code)]

mod add;
mod args;
mod attachments;
mod config;
mod fields;
mod gc;
mod network;
mod problems;
mod result;
mod server;
mod spooled;
mod status;
mod turns;

pub use server::serve;
