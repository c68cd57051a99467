//! The agent that runs on every host: keeps its kernel as the cluster wants it, serves the local
//! socket, and on a manager the control plane.
//!
//! State flows one way: a manager's records and the node's own endpoints make up what is desired
//! ([`agent`]); the loop ([`reconcile`]) compares it with what the kernel has, and acts. Nothing
//! that runs here is on the way of a packet.
#![forbid(unsafe_code)]

pub mod app;
pub mod capabilities;
pub mod config;
mod control_plane;
mod copies;
mod handle;
mod host_platform;
mod instance;
#[cfg(test)]
mod loop_tests;
mod lost_records;
mod member;
mod member_record;
mod membership;
mod occupancy;
mod platform;
mod readdress;
mod status;
#[cfg(test)]
mod test_platform;
