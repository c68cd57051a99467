//! The agent's figures for monitoring systems: one text, asked for on the local socket or over
//! HTTP.
//!
//! It is made of the status and of nothing else, so that both say the same and nothing is collected
//! twice.
#![forbid(unsafe_code)]

mod exposition;
mod families;
mod server;
mod text;

pub use server::serve;
pub use text::text;
