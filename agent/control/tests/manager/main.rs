//! Tests of a manager with an in-memory store, TLS over 127.0.0.1, and agents that keep records
//! instead of a kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue has failed")]

mod access;
mod agent;
mod backends;
mod changes;
mod cluster;
mod counting;
mod joining;
mod keys;
mod leases;
mod names;
mod networks;
mod nodes;
mod reports;
mod scale;
mod services;
mod sessions;
mod soft_state;
mod traffic;
