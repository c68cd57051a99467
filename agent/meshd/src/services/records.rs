//! The services' records in a node's view of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::{Backend, BackendId, NetworkId, Service, ServiceId};
use mesh_planner::services::Records;
use serde::{Deserialize, Serialize};

/// All services that this node knows, with their backends. Copies share what they have in common: there may be
/// ten thousand services, of which one changes at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Lists", into = "Lists")]
pub struct ServiceRecords(Arc<BTreeMap<ServiceId, Arc<Records>>>);

/// A backend of a service that is not known.
#[derive(Debug, thiserror::Error)]
#[error("backend {backend} is of service {service}, which is not known")]
pub struct UnknownService {
    /// The backend.
    pub backend: BackendId,
    /// The service.
    pub service: ServiceId,
}

impl ServiceRecords {
    /// Services with their backends. Backends of none of them are left out.
    pub fn new(services: Vec<Service>, backends: Vec<Backend>) -> Self {
        let mut records: BTreeMap<ServiceId, Records> = services
            .into_iter()
            .map(|service| (service.id.clone(), Records { service, backends: BTreeMap::new() }))
            .collect();
        for backend in backends {
            if let Some(records) = records.get_mut(&backend.service) {
                records.backends.insert(backend.id, backend);
            }
        }
        Self(Arc::new(records.into_iter().map(|(id, records)| (id, Arc::new(records))).collect()))
    }

    /// A service, if it is known.
    pub fn get(&self, id: &ServiceId) -> Option<&Records> {
        self.0.get(id).map(Arc::as_ref)
    }

    /// All services, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceId, &Records)> {
        self.0.iter().map(|(id, records)| (id, records.as_ref()))
    }

    /// All services, in the order of their ids.
    pub fn values(&self) -> impl Iterator<Item = &Records> {
        self.0.values().map(Arc::as_ref)
    }

    /// The services that differ between two versions, those that only one has included.
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> BTreeSet<&'a ServiceId> {
        if Arc::ptr_eq(&self.0, &before.0) {
            return BTreeSet::new();
        }
        let same = |a: &Arc<Records>, b: &Arc<Records>| Arc::ptr_eq(a, b) || a == b;
        let changed = self.0.iter().filter(|(id, now)| before.0.get(*id).is_none_or(|then| !same(now, then)));
        let gone = before.0.keys().filter(|id| !self.0.contains_key(*id));
        changed.map(|(id, _)| id).chain(gone).collect()
    }

    /// Puts a service, new or not; its backends stay.
    pub fn put_service(&mut self, service: Service) {
        let services = Arc::make_mut(&mut self.0);
        if let Some(records) = services.get_mut(&service.id) {
            Arc::make_mut(records).service = service;
        } else {
            let records = Records { service, backends: BTreeMap::new() };
            services.insert(records.service.id.clone(), Arc::new(records));
        }
    }

    /// Forgets a service and its backends.
    pub fn remove_service(&mut self, id: &ServiceId) {
        if self.0.contains_key(id) {
            Arc::make_mut(&mut self.0).remove(id);
        }
    }

    /// Puts a backend of a known service, new or not.
    pub fn put_backend(&mut self, backend: Backend) -> Result<(), UnknownService> {
        match Arc::make_mut(&mut self.0).get_mut(&backend.service) {
            Some(records) => {
                Arc::make_mut(records).backends.insert(backend.id, backend);
                Ok(())
            }
            None => Err(UnknownService { backend: backend.id, service: backend.service }),
        }
    }

    /// Forgets a backend; one that is not known is none.
    pub fn remove_backend(&mut self, backend: BackendId) {
        let known = self.0.iter().find(|(_, records)| records.backends.contains_key(&backend));
        if let Some(service) = known.map(|(id, _)| id.clone())
            && let Some(records) = Arc::make_mut(&mut self.0).get_mut(&service)
        {
            Arc::make_mut(records).backends.remove(&backend);
        }
    }

    /// Forgets the services of a network.
    pub fn remove_network(&mut self, network: &NetworkId) {
        if self.values().any(|records| records.service.network == *network) {
            Arc::make_mut(&mut self.0).retain(|_, records| records.service.network != *network);
        }
    }
}

/// As records are saved: each has its own keys.
#[derive(Serialize, Deserialize)]
struct Lists {
    services: Vec<Service>,
    backends: Vec<Backend>,
}

impl From<Lists> for ServiceRecords {
    fn from(lists: Lists) -> Self {
        Self::new(lists.services, lists.backends)
    }
}

impl From<ServiceRecords> for Lists {
    fn from(records: ServiceRecords) -> Self {
        let services = records.values().map(|records| records.service.clone()).collect();
        let backends = records.values().flat_map(|records| records.backends.values().cloned()).collect();
        Self { services, backends }
    }
}
