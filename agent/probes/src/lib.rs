//! Probes between nodes: which hosts are alive ([`hosts`]), and which paths work ([`paths`]).
#![forbid(unsafe_code)]

pub mod hosts;
pub mod paths;
mod probe;
