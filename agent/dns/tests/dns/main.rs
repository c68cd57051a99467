//! The server on real sockets in a namespace of its own, asked by real resolver clients.
//!
//! Needs root, and `dig` and `getent`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faults;
mod forwarding;
mod lab;
mod names;
