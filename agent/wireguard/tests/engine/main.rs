//! Two engines in two network namespaces, and real traffic through them.
//!
//! An engine's device takes the peer from the source MAC of a frame. So a device whose own MAC is
//! of that form makes the namespace's IP stack a source of such frames; a fixed neighbour entry
//! names the other device as destination.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod failures;
mod foreign;
mod pair;
mod process;
mod protection;
mod relay;
mod rotation;
mod transfer;
