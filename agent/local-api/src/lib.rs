//! The unix socket that `meshctl` connects to: for root and the group `mesh`.
//!
//! It serves what the local agent does, and forwards calls that concern the cluster to a manager.
#![forbid(unsafe_code)]

mod control;
mod local;
mod socket;

pub use socket::{bind, serve};
