//! Two engines in two network namespaces, with real traffic between them.
//!
//! An engine's device takes the peer from the source MAC of a frame. So if the device's own MAC has
//! that form, the namespace's IP stack can send such frames. A permanent neighbour entry sets the
//! other device as destination.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue has failed")]

mod failures;
mod foreign;
mod pair;
mod process;
mod protection;
mod relay;
mod rotation;
mod transfer;
