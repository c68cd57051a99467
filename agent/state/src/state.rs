//! The state that a node's tasks share.

use std::collections::{BTreeMap, BTreeSet};

use mesh_ipam::Delays;
use mesh_model::{EndpointId, NodeId, NodeState};

use crate::addresses::{AddressPools, SavedPools};
use crate::lost_device::Lost;
use crate::own_endpoints::OwnEndpoints;
use crate::paths::Paths;
use crate::soft::Soft;
use crate::tracked::Tracked;
use crate::unreadable::Unreadable;
use crate::view::ClusterView;

/// Why a manager does not accept an endpoint of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One line.
    pub why: String,
    /// Whether another endpoint has the name.
    pub name_taken: bool,
}

/// The state behind the lock.
#[derive(Debug)]
pub struct State {
    /// The cluster's records.
    pub view: Tracked<ClusterView>,
    /// Set while the saved view is lost and no manager has sent another.
    pub(crate) lost_view: Option<LostView>,
    /// This node's endpoints.
    pub endpoints: OwnEndpoints,
    /// Endpoints that had been removed when the agent started: the kernel may have had something of
    /// them.
    pub(crate) removing: BTreeSet<EndpointId>,
    /// Endpoints without a record that wait for the cluster's records.
    pub(crate) lost: Vec<Lost>,
    /// The addresses that this node may allocate.
    pub pools: AddressPools,
    /// The states of the nodes, as last received from the manager.
    pub node_states: Tracked<BTreeMap<NodeId, NodeState>>,
    /// The manager of the session; empty without a session.
    pub manager: String,
    /// Why there is no session; empty during a session.
    pub session_problem: String,
    /// This node's endpoints that the manager refuses.
    pub refused: BTreeMap<EndpointId, Refusal>,
    /// Other parts of this node's reports that the manager refuses, one line each.
    pub report_problems: Vec<String>,
    /// Milliseconds by which the manager's clock is ahead of this host's.
    pub manager_clock_ms: Option<i64>,
    /// Messages about soft state that are not valid.
    pub unreadable: Unreadable,
    /// Damage found at start, one line each.
    pub damage: Vec<String>,
    /// Soft state of services.
    pub soft: Soft,
    /// State of this node's paths to other nodes.
    pub paths: Tracked<Paths>,
    /// Problems of services, one line each.
    pub service_problems: Vec<String>,
    /// Conflicts of published ports with this host's sockets, one line each.
    pub port_conflicts: Vec<String>,
    /// Problems inside the namespaces of this node's endpoints, one line each.
    pub inside_problems: Vec<String>,
    /// An address of this node that the host no longer has.
    pub address_problem: Option<String>,
    /// Number of times that the programs were loaded.
    pub loads: u64,
    /// The last revision that the kernel has without its services, and the last whose services it
    /// has.
    pub(crate) reconciled_revision: u64,
    pub(crate) serviced_revision: u64,
    /// Problem with this node's keys for encrypted networks.
    pub key_problem: Option<String>,
    pub(crate) generation: u64,
    /// Counts the changes of the view.
    pub(crate) view_number: u64,
    /// The count at which something of this node's own changed last: what an attach relies on.
    pub(crate) own_view_number: u64,
}

impl State {
    /// Returns whether the saved view is lost and no manager has sent another.
    pub fn is_view_lost(&self) -> bool {
        self.lost_view.is_some()
    }
}

/// What is kept until a manager sends a view, while the saved one is lost.
#[derive(Debug)]
pub(crate) struct LostView {
    pub(crate) pools: SavedPools,
    pub(crate) delays: Delays,
}
