//! What the datapath's programs know of packets: parsing and building, free of maps and of the
//! kernel.
//!
//! Everything here takes and returns byte arrays of fixed size, so that it compiles for eBPF and is
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
