//! The agent that runs on every host: keeps its kernel as the cluster wants it, serves the local
//! socket, and on a manager the control plane.
//!
//! State flows one way: a manager's records and the node's own endpoints make up what is desired
//! ([`agent`]); the loop ([`reconcile`]) compares it with what the kernel has, and acts. Nothing
//! that runs here is on the way of a packet.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod advertise;
pub mod agent;
pub mod api;
pub mod app;
pub mod attach;
mod blocking;
pub mod capabilities;
pub mod config;
pub mod copies;
mod detach;
pub mod dns;
pub mod encryption;
pub mod endpoint_store;
pub mod fairness;
mod health;
pub mod host;
mod inside;
pub mod instance;
pub mod managers;
pub mod member;
pub mod membership;
pub mod metrics;
pub mod platform;
pub mod prober;
pub mod reachability;
pub mod readdress;
pub mod reconcile;
pub mod reported;
pub mod services;
pub mod session;
pub mod status;
#[cfg(test)]
mod test_cluster;
#[cfg(test)]
mod test_host;
pub mod unreadable;
pub mod view;
pub mod xdp;

use mesh_sys::durable;
