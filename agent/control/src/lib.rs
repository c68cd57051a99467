//! The manager: allocation, validation, sessions, certificate authority and join
#![forbid(unsafe_code)]

mod access;
mod core;
mod enroll;
pub mod identity;
mod join;
mod keys;
pub mod limits;
mod manager;
mod records;
mod service;
pub mod token;
pub mod transport;

pub use access::{Access, Method};
pub use identity::{CertificateAuthority, Fingerprint, IdentityError, NodeIdentity, NodeKey, PeerIdentity};
pub use join::{JoinParameters, Joined, join};
pub use manager::{ClusterParameters, Manager, ManagerError, ThisNode};
pub use records::RecordError;
pub use service::MemberService;
pub use token::JoinToken;
pub use transport::{PeerInfo, connect};
