//! The manager: allocation, validation, sessions, certificate authority and enrollment.
//!
//! A [`Manager`] works on a store and serves three services. [`join`] makes a host a member,
//! [`connect`] connects a member to a manager; the manager's own agent uses
//! [`Manager::local_channel`] instead. [`session_client`] describes what agents must do in their
//! sessions.
#![forbid(unsafe_code)]

mod access;
mod attempts;
mod changes;
pub mod clock;
mod connections;
mod core;
mod endpoints;
mod enroll;
mod errors;
mod feed;
#[cfg(fuzzing)]
pub mod fuzzing;
mod health;
pub mod identity;
mod join;
mod keys;
mod layout;
mod leases;
pub mod limits;
mod liveness;
mod manager;
mod networks;
mod node_status;
mod nodes;
mod paths;
mod problems;
mod readdress;
mod records;
mod reports;
mod resolve;
mod rotation;
mod rpc;
mod services;
pub mod session_client;
mod sessions;
mod tasks;
pub mod token;
pub mod transport;
mod view;

pub use access::{Access, Method};
pub use identity::{CertificateAuthority, Fingerprint, IdentityError, NodeIdentity, NodeKey, PeerIdentity};
pub use join::{JoinParameters, Joined, join};
pub use liveness::{Standing, probe_targets};
pub use manager::{ClusterParameters, Manager, ManagerError, ThisNode};
pub use records::RecordError;
pub use rpc::MemberService;
pub use token::JoinToken;
pub use transport::{PeerInfo, connect};
