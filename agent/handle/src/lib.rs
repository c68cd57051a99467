//! What the agent offers to everything that serves its users: the unix socket, the metrics, the CNI
//! plugin's socket, and later a Docker plugin or an HTTP API.
//!
//! Such a server depends on this crate and on nothing else of the agent. `meshd` implements
//! [`AgentHandle`] and passes it to each of them.
#![forbid(unsafe_code)]

mod attachment;

use std::fmt;

pub use attachment::{AttachedAddress, Attachment, Readiness};
use mesh_model::{Owner, Runtime};
use mesh_proto::{Problem, v1};
use tonic::async_trait;
use tonic::transport::Channel;

/// A connection to a manager.
#[derive(Debug, Clone)]
pub struct ManagerConnection {
    /// `HOST:PORT`, or `this node`.
    pub address: String,
    /// The connection.
    pub channel: Channel,
}

/// The agent of this host. Every call is complete when it returns; a call that needs a membership
/// fails on a host that is no member of a cluster.
#[async_trait]
pub trait AgentHandle: fmt::Debug + Send + Sync + 'static {
    /// Creates a cluster with this host as its first manager.
    async fn init(&self, request: v1::InitClusterRequest) -> Result<v1::InitClusterResponse, Problem>;

    /// Joins a cluster.
    async fn join(&self, request: v1::JoinClusterRequest) -> Result<v1::JoinClusterResponse, Problem>;

    /// Leaves the cluster, with `force` also while endpoints are attached.
    async fn leave(&self, force: bool) -> Result<(), Problem>;

    /// Attaches a container to a network.
    async fn attach(&self, request: v1::AttachRequest) -> Result<v1::Endpoint, Problem>;

    /// Detaches an endpoint of this node, named by id, unambiguous id prefix, name or NETWORK/NAME.
    async fn detach(&self, endpoint: &str) -> Result<v1::Endpoint, Problem>;

    /// Returns whether containers can be attached.
    fn readiness(&self) -> Readiness;

    /// Checks that a path leads to the network namespace of a container.
    async fn check_namespace(&self, path: &str) -> Result<(), Problem>;

    /// Detaches the endpoint that a runtime attached by this key; `None` if there is none. It needs
    /// no namespace.
    async fn detach_owned(&self, owner: &Owner) -> Result<Option<v1::Endpoint>, Problem>;

    /// Returns the attachment by this key; `None` if there is none.
    fn attachment(&self, owner: &Owner) -> Result<Option<Attachment>, Problem>;

    /// Returns the keys of all attachments of a runtime.
    fn owners(&self, runtime: Runtime) -> Result<Vec<Owner>, Problem>;

    /// Checks that an attachment is complete, in its namespace and on the host, and names what is
    /// missing.
    async fn check_attachment(&self, owner: &Owner) -> Result<(), Problem>;

    /// Returns whether the namespace of an attachment still exists.
    async fn is_namespace_alive(&self, owner: &Owner) -> Result<bool, Problem>;

    /// Returns the state of this agent, member or not.
    async fn status(&self) -> v1::StatusResponse;

    /// Returns this node's counters of one network, and the MTU of its endpoints here.
    async fn network_counters(&self, vni: u32) -> Result<v1::NetworkCountersResponse, Problem>;

    /// Returns this node's endpoints; `None` if the request selects others, too.
    fn own_endpoints(&self, request: &v1::ListEndpointsRequest) -> Option<v1::ListEndpointsResponse>;

    /// Returns whether a name or id is this node's.
    fn is_own_node(&self, node: &str) -> Result<bool, Problem>;

    /// Gives this node other addresses, named by address or interface; an empty text leaves one as
    /// it is.
    async fn set_addresses(&self, advertise: &str, data_path: &str) -> Result<v1::NodeStatus, Problem>;

    /// Returns a connection to a manager, for calls that concern the cluster.
    async fn manager(&self) -> Result<ManagerConnection, Problem>;

    /// Closes the connection to a manager that no longer answers, so that the next call of
    /// [`AgentHandle::manager`] opens another one.
    fn forget_manager(&self, address: &str);
}
