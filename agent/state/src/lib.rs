//! What a node knows: its view of the cluster, its endpoints, its addresses and its soft state.
//!
//! [`Agent`] shares it between the node's tasks, wakes those that a change concerns, and keeps on
//! disk what must outlive a restart. No task lives here but the one that saves ([`saving`]).
#![forbid(unsafe_code)]

pub mod addresses;
mod agent;
mod changes;
mod clock;
mod damage;
mod desired_tunnels;
mod endpoint_message;
pub mod endpoint_store;
pub mod fake;
mod file_problem;
mod lost;
mod lost_device;
mod named_endpoint;
mod own_endpoints;
pub mod parts;
pub mod paths;
mod probes;
mod reconciliation;
mod revisions;
pub mod saving;
mod service_records;
mod soft;
mod state;
mod state_paths;
mod tracked;
mod unreadable;
mod view;
mod xdp_status;

pub use agent::Agent;
pub use clock::now;
pub use desired_tunnels::{DesiredTunnels, sources};
pub use endpoint_message::endpoint_message;
pub use file_problem::file_problem;
pub use lost_device::Lost;
pub use named_endpoint::NamedEndpoint;
pub use own_endpoints::OwnEndpoints;
pub use probes::Probes;
pub use reconciliation::Reconciliation;
pub use service_records::ServiceRecords;
pub use soft::Soft;
pub use state::{Refusal, State};
pub use state_paths::StatePaths;
pub use tracked::Tracked;
pub use unreadable::Unreadable;
pub use view::{ClusterView, ViewError};
pub use xdp_status::XdpStatus;
