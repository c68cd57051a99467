//! This node's endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_host::{Host, blocking};
use mesh_ipam::prefix::Family;
use mesh_model::NetworkId;
use mesh_proto::Problem;
use mesh_session::Managers;
use mesh_state::{Agent, file_problem};
use mesh_sys::durable::FileError;
use parking_lot::Mutex;

/// Held by a request for a lease.
pub(crate) type Turn = Arc<tokio::sync::Mutex<()>>;

/// Attaches and detaches containers.
#[derive(Debug)]
pub struct Endpoints {
    pub(crate) agent: Arc<Agent>,
    pub(crate) managers: Arc<Managers>,
    pub(crate) host: Arc<dyn Host>,
    /// One request for a lease at a time for each network and family: its answer serves all who
    /// wait.
    pub(crate) leasing: Mutex<BTreeMap<(NetworkId, Family), Turn>>,
}

impl Endpoints {
    /// Endpoints of this node.
    pub fn new(agent: Arc<Agent>, managers: Arc<Managers>, host: Arc<dyn Host>) -> Self {
        Self { agent, managers, host, leasing: Mutex::default() }
    }

    /// Writes to the disk where that may take its time.
    pub(crate) async fn blocking(
        &self,
        write: impl FnOnce(&Agent) -> Result<(), FileError> + Send + 'static,
    ) -> Result<(), Problem> {
        let agent = self.agent.clone();
        blocking(move || write(&agent)).await.map_err(|error| file_problem(&error))
    }
}
