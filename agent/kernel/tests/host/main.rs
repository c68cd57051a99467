//! The kernel as it really is: each test is a host of its own, in a network namespace.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

#[path = "../../../planner/tests/planner/support.rs"]
mod shapes;

mod convergence;
mod devices;
mod endpoints;
mod events;
mod firewall;
mod foreign;
mod support;
