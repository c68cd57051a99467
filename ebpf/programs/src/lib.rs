//! Parsing and building of packets for the datapath's programs, independent of maps and of the
//! kernel.
//!
//! All functions take and return byte arrays of fixed size, so that they compile for eBPF and are
//! tested on the host. The programs themselves are in the binary of this crate, built for
//! `bpfel-unknown-none`.

#![no_std]
#![expect(clippy::inline_always, reason = "an eBPF function call costs a frame of the 512-byte stack")]

pub mod arp;
pub mod checksum;
pub mod flow;
pub mod headers;
pub mod ip;
pub mod ndp;
pub mod rate;
pub mod refusal;
pub mod too_big;
pub mod transport;
pub mod vxlan;
