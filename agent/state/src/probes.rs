//! Results of probes.

use std::collections::BTreeMap;

use mesh_model::NodeId;

/// Which of the probed nodes answer.
pub type Probes = BTreeMap<NodeId, bool>;
