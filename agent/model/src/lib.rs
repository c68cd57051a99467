//! The words of Mesh as types: identifiers, the cluster's records, and the state of one node.
//!
//! Values are checked where they enter ([`id`], [`name`], [`net`]); past that point every value of these types
//! is valid. The records in [`cluster`] are what the store keeps; [`endpoint`] is what a node keeps for itself;
//! [`desired`], [`observed`] and [`plan`] are what the planner works with.

pub mod cluster;
pub mod desired;
pub mod effect;
pub mod endpoint;
pub mod id;
pub mod name;
pub mod naming;
pub mod net;
pub mod observed;
pub mod plan;

pub use cluster::{Availability, Lease, LeaseState, Network, Node, NodeState, Role, Subnet};
pub use desired::Desired;
pub use endpoint::{Endpoint, EndpointPhase};
pub use id::{EndpointId, NetworkId, NodeId};
pub use mesh_ipam::Prefix;
pub use name::Name;
pub use net::{IfName, MacAddr, Mtu, Vni};
pub use observed::Observed;
pub use plan::{Action, Plan};
