//! The result of one reconciliation.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::{EndpointId, NetworkId};
use mesh_proto::Problem;

use crate::xdp_status::XdpStatus;

/// One run of the kernel loop: which desired state it applied, and the result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciliation {
    /// The generation of the desired state.
    pub generation: u64,
    /// The store's revision of the desired state.
    pub revision: u64,
    /// Endpoints for which a step failed, with the reason.
    pub failed: BTreeMap<EndpointId, Problem>,
    /// Why no endpoint works: a step failed that all depend on.
    pub node_failure: Option<Problem>,
    /// Endpoints whose namespace and device are gone.
    pub lost: BTreeSet<EndpointId>,
    /// Everything that failed, one line each.
    pub problems: Vec<String>,
    /// Name of the underlay interface; empty if no interface has the data-path address.
    pub underlay: String,
    /// MTU of that interface in bytes.
    pub underlay_mtu: u32,
    /// Whether the XDP program is attached to it.
    pub xdp: XdpStatus,
    /// MTU of each network's endpoints on this node, in bytes.
    pub mtus: BTreeMap<NetworkId, u32>,
    /// Whether it loaded the programs, possibly with new and empty maps.
    pub loaded: bool,
}
