//! Benchmarks with peers side by side.
//!
//! Whatever is compared runs on the same machine in the same run, in turn (A B C A B C ...), so
//! that a noisy machine is as noisy for all; medians and ratios are what counts. Nothing here fails
//! because a figure is poor.

pub mod attach;
mod bridge_vxlan;
pub mod cli;
mod cni;
pub mod encrypted;
pub mod fuzz;
mod instruments;
pub mod lb;
pub mod overlay;
mod report;
mod stats;
pub mod turns;
mod wireguard_peer;
