//! The words of Mesh as types: identifiers, the cluster's records, and the state of one node.
//!
//! Values are checked where they enter ([`id`], [`name`], [`net`]); past that point every value of
//! these types is valid. The records in [`cluster`], [`service`] and [`backend`] are what the store
//! keeps; [`endpoint`] is what a node keeps for itself; [`desired`], [`observed`] and [`plan`] are
//! what the planner works with.

pub mod backend;
pub mod cluster;
pub mod description;
pub mod desired;
pub mod effect;
pub mod endpoint;
pub mod fnv;
pub mod health;
pub mod host_policy;
pub mod id;
pub mod interfaces;
pub mod name;
pub mod naming;
pub mod net;
pub mod observed;
pub mod owner;
pub mod plan;
pub mod port_list;
pub mod published;
pub mod service;
pub mod survivor;
pub mod traffic;
pub mod wireguard;
pub mod word;

pub use backend::{Backend, BackendId, BackendState};
pub use cluster::{Availability, Lease, LeaseState, Network, Node, NodeState, Role, Subnet, Wireguard};
pub use description::Description;
pub use desired::Desired;
pub use endpoint::{Endpoint, EndpointPhase};
pub use health::{Finding, HealthCheck, HealthKind, Loopback};
pub use host_policy::{HostAccess, HostPolicy, MetadataAccess};
pub use id::{EndpointId, NetworkId, NodeId, ServiceId};
pub use interfaces::InterfacePatterns;
pub use mesh_ipam::Prefix;
pub use name::Name;
pub use net::{IfName, MacAddr, Mtu, Vni};
pub use observed::Observed;
pub use owner::{Owner, Runtime};
pub use plan::{Action, Plan};
pub use published::{Protocol, PublishMode, PublishedPort};
pub use service::{Affinity, EndpointMode, Service, WhenAllUnhealthy};
