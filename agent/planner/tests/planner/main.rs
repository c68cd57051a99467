//! Tests of the planner with a model of the kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue should panic")]

mod orders;
mod properties;
mod services;
mod support;
