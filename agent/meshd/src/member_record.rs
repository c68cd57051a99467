//! The record of a membership on disk.

use mesh_model::Node;
use mesh_model::cluster::Cluster;
use serde::{Deserialize, Serialize};

/// The record of a membership, in `member.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// This node's record, as it was when it joined.
    pub(crate) node: Node,
    /// The cluster.
    pub(crate) cluster: Cluster,
    /// `HOST:PORT` of every manager, as of then.
    pub(crate) managers: Vec<String>,
    /// Whether the cluster's store is on this node.
    pub(crate) keeps_store: bool,
    /// How the node's addresses were named.
    #[serde(default)]
    pub(crate) named: Named,
}

/// How the addresses of this node were named: texts as `cluster init` and `join` take them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    /// An address or an interface, with an optional port; empty: the host's only global address.
    pub(crate) advertise: String,
    /// An address or an interface; empty: the advertised address.
    pub(crate) data_path: String,
}
