//! This node's endpoints.

use std::collections::BTreeMap;
use std::ops::Deref;

use mesh_model::{Endpoint, EndpointId, EndpointPhase};

/// This node's endpoints, by id. Counts its changes: which endpoints there are concerns the kernel
/// and the managers; that one is attached concerns services and names only.
#[derive(Debug, Default)]
pub struct OwnEndpoints {
    endpoints: BTreeMap<EndpointId, Endpoint>,
    version: u64,
    phase_version: u64,
}

impl OwnEndpoints {
    pub(crate) fn new(endpoints: BTreeMap<EndpointId, Endpoint>) -> Self {
        Self { endpoints, version: 0, phase_version: 0 }
    }

    /// Adds an endpoint.
    pub fn insert(&mut self, endpoint: Endpoint) {
        self.version += 1;
        self.endpoints.insert(endpoint.id.clone(), endpoint);
    }

    /// Removes an endpoint, and returns it if it was there.
    pub fn remove(&mut self, id: &EndpointId) -> Option<Endpoint> {
        let removed = self.endpoints.remove(id);
        self.version += u64::from(removed.is_some());
        removed
    }

    /// Marks an endpoint as attached. Returns whether it is there.
    pub fn set_attached(&mut self, id: &EndpointId) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(id) else { return false };
        endpoint.phase = EndpointPhase::Attached;
        self.phase_version += 1;
        true
    }

    /// Returns the number of additions and removals so far.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Returns the number of changes of phases so far.
    pub(crate) fn phase_version(&self) -> u64 {
        self.phase_version
    }
}

impl Deref for OwnEndpoints {
    type Target = BTreeMap<EndpointId, Endpoint>;

    fn deref(&self) -> &Self::Target {
        &self.endpoints
    }
}
