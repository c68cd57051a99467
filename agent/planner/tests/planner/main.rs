//! The planner, on a model of the kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod orders;
mod properties;
mod services;
mod support;
