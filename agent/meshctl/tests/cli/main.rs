//! The real binary against an agent with fixed answers: what scripts and people get.

#![expect(clippy::unwrap_used, reason = "test code, also outside of the test functions themselves")]

mod agent;
mod apply;
mod cni;
mod compose;
mod documents;
mod errors;
mod names;
mod objects;
mod requests;
mod service;
mod services;
mod shells;
