//! This node's relations with the managers.
//!
//! [`Managers`] connects to one. [`session_client`] receives the cluster's records and reports what
//! this node has. [`rekey`] replaces the node's keys for encrypted networks, [`rekey_schedule`]
//! calls for that on a manager, [`renewal`] renews the node's certificate.
#![forbid(unsafe_code)]

mod host_facts;
mod managers;
pub mod rekey;
pub mod rekey_schedule;
pub mod renewal;
mod reported;
pub mod session_client;

pub use managers::{Connected, Managers};
