//! The services' records in a node's view of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::{Backend, BackendId, NetworkId, Service, ServiceId};
use mesh_planner::services::Records;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use crate::parts::{Part, Parts};

/// All services that this node knows, with their backends. Copies share what they have in common:
/// there may be ten thousand services, of which one changes at a time.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Lists")]
pub struct ServiceRecords {
    services: Parts<ServiceId, Arc<Records>>,
    /// Whose each backend is.
    owners: Parts<BackendId, Arc<ServiceId>>,
    /// The services with published ports, and those with a health check.
    published: Arc<BTreeSet<ServiceId>>,
    checked: Arc<BTreeSet<ServiceId>>,
}

/// All else follows from the services.
impl PartialEq for ServiceRecords {
    fn eq(&self, other: &Self) -> bool {
        self.services == other.services
    }
}

impl Eq for ServiceRecords {}

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
        let mut owners = Vec::with_capacity(backends.len());
        for backend in backends {
            if let Some(records) = records.get_mut(&backend.service) {
                owners.push((backend.id, Arc::new(backend.service.clone())));
                records.backends.insert(backend.id, backend);
            }
        }
        let those = |has: fn(&Service) -> bool| {
            let those = records.values().filter(|records| has(&records.service));
            Arc::new(those.map(|records| records.service.id.clone()).collect())
        };
        let (published, checked) = (those(is_published), those(is_checked));
        let services = records.into_iter().map(|(id, records)| (id, Arc::new(records))).collect();
        Self { services, owners: owners.into_iter().collect(), published, checked }
    }

    /// A service, if it is known.
    pub fn get(&self, id: &ServiceId) -> Option<&Records> {
        self.services.get(id).map(Arc::as_ref)
    }

    /// The service that a backend is of, and the backend.
    pub fn backend(&self, id: BackendId) -> Option<(&Records, &Backend)> {
        let records = self.get(self.owners.get(&id)?)?;
        Some((records, records.backends.get(&id)?))
    }

    /// How many services there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there is no service.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All services, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceId, &Records)> {
        self.services.iter().map(|(id, records)| (id, records.as_ref()))
    }

    /// All services, in the order of their ids.
    pub fn values(&self) -> impl Iterator<Item = &Records> {
        self.services.iter().map(|(_, records)| records.as_ref())
    }

    /// The services in parts, always as many: of a part that is the same `Arc` as before, nothing
    /// has changed.
    pub fn parts(&self) -> &[Part<ServiceId, Arc<Records>>] {
        self.services.parts()
    }

    /// The services with published ports.
    pub fn published(&self) -> impl Iterator<Item = &Records> {
        self.published.iter().filter_map(|id| self.get(id))
    }

    /// Returns the published ports of all protocols.
    pub fn published_ports(&self) -> BTreeSet<u16> {
        let ports = self.published().flat_map(|records| &records.service.ports);
        ports.map(|port| port.published).collect()
    }

    /// The services with a health check.
    pub fn checked(&self) -> impl Iterator<Item = &Records> {
        self.checked.iter().filter_map(|id| self.get(id))
    }

    /// The services that differ between two versions, those that only one has included.
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> BTreeSet<&'a ServiceId> {
        self.services.changed_since(&before.services).collect()
    }

    /// Puts a service, new or not; its backends stay.
    pub fn put_service(&mut self, service: Service) {
        let id = service.id.clone();
        mark(&mut self.published, &id, is_published(&service));
        mark(&mut self.checked, &id, is_checked(&service));
        if let Some(records) = self.services.get_mut(&id) {
            Arc::make_mut(records).service = service;
        } else {
            self.services.insert(id, Arc::new(Records { service, backends: BTreeMap::new() }));
        }
    }

    /// Forgets a service and its backends.
    pub fn remove_service(&mut self, id: &ServiceId) {
        let Some(records) = self.services.remove(id) else { return };
        for backend in records.backends.keys() {
            // Numbers go round after millions.
            if self.owners.get(backend).is_some_and(|owner| **owner == *id) {
                self.owners.remove(backend);
            }
        }
        mark(&mut self.published, id, false);
        mark(&mut self.checked, id, false);
    }

    /// Puts a backend of a known service, new or not.
    pub fn put_backend(&mut self, backend: Backend) -> Result<(), UnknownService> {
        let Some(records) = self.services.get_mut(&backend.service) else {
            return Err(UnknownService { backend: backend.id, service: backend.service });
        };
        if self.owners.get(&backend.id).is_none_or(|owner| **owner != backend.service) {
            self.owners.insert(backend.id, Arc::new(backend.service.clone()));
        }
        Arc::make_mut(records).backends.insert(backend.id, backend);
        Ok(())
    }

    /// Forgets a backend; one that is not known is none.
    pub fn remove_backend(&mut self, backend: BackendId) {
        if let Some(service) = self.owners.remove(&backend)
            && let Some(records) = self.services.get_mut(&service)
        {
            Arc::make_mut(records).backends.remove(&backend);
        }
    }

    /// Forgets the services of a network.
    pub fn remove_network(&mut self, network: &NetworkId) {
        let of_network = self.values().filter(|records| records.service.network == *network);
        let gone: Vec<ServiceId> = of_network.map(|records| records.service.id.clone()).collect();
        for id in gone {
            self.remove_service(&id);
        }
    }
}

fn is_published(service: &Service) -> bool {
    !service.ports.is_empty()
}

fn is_checked(service: &Service) -> bool {
    service.health.is_some()
}

/// Whether a service is one of these; a set that has it right stays the same.
fn mark(those: &mut Arc<BTreeSet<ServiceId>>, id: &ServiceId, is_one: bool) {
    if those.contains(id) == is_one {
        return;
    }
    let those = Arc::make_mut(those);
    if is_one {
        those.insert(id.clone());
    } else {
        those.remove(id);
    }
}

/// As records are saved: each has its own keys.
#[derive(Deserialize)]
struct Lists {
    services: Vec<Service>,
    backends: Vec<Backend>,
}

impl From<Lists> for ServiceRecords {
    fn from(lists: Lists) -> Self {
        Self::new(lists.services, lists.backends)
    }
}

/// Without a copy of them all.
impl Serialize for ServiceRecords {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Services<'a>(&'a ServiceRecords);
        struct Backends<'a>(&'a ServiceRecords);
        impl Serialize for Services<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0.values().map(|records| &records.service))
            }
        }
        impl Serialize for Backends<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0.values().flat_map(|records| records.backends.values()))
            }
        }
        let mut lists = serializer.serialize_struct("ServiceRecords", 2)?;
        lists.serialize_field("services", &Services(self))?;
        lists.serialize_field("backends", &Backends(self))?;
        lists.end()
    }
}

#[cfg(test)]
mod tests {
    use mesh_model::{HealthCheck, HealthKind, Protocol, PublishedPort};
    use proptest::prelude::*;

    use super::*;
    use crate::fake as test_cluster;

    #[derive(Debug, Clone)]
    enum Change {
        /// A service, whether it has a port, and whether it has a check.
        Put(u32, bool, bool),
        Remove(u32),
        Backend(u32, u32),
        NoBackend(u32),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (0u32..40, any::<bool>(), any::<bool>()).prop_map(|(n, port, check)| Change::Put(n, port, check)),
            (0u32..40).prop_map(Change::Remove),
            (0u32..40, 0u32..3).prop_map(|(n, b)| Change::Backend(n, b)),
            (0u32..120).prop_map(Change::NoBackend),
        ]
    }

    fn service(n: u32, port: bool, check: bool) -> Service {
        let kind = HealthKind::Tcp { port: 80 };
        let check = check.then(|| HealthCheck::new(kind, std::time::Duration::from_secs(2), 3).unwrap());
        Service {
            ports: port.then(|| PublishedPort::ingress(80, 80, Protocol::Tcp)).into_iter().collect(),
            health: check,
            ..test_cluster::service(n)
        }
    }

    proptest! {
        /// What is found by indexes is what a look at all finds, and the disk gives back what it
        /// was given.
        #[test]
        fn the_indexes_follow_every_change(changes in prop::collection::vec(change(), 0..80)) {
            let mut records = ServiceRecords::default();
            for change in changes {
                let before = records.clone();
                match change {
                    Change::Put(n, port, check) => records.put_service(service(n, port, check)),
                    Change::Remove(n) => records.remove_service(&test_cluster::service(n).id),
                    Change::Backend(n, b) => {
                        let service = test_cluster::service(n);
                        let is_known = records.get(&service.id).is_some();
                        let put = records.put_backend(test_cluster::backend(&service, 1 + n * 3 + b));
                        prop_assert_eq!(put.is_ok(), is_known);
                    }
                    Change::NoBackend(b) => records.remove_backend((b + 1).try_into().unwrap()),
                }
                prop_assert!(records.changed_since(&before).len() <= 1);
                prop_assert_eq!(records == before, records.changed_since(&before).is_empty());
            }
            let ids = |those: Vec<&Records>| those.into_iter().map(|r| r.service.id.clone()).collect::<Vec<_>>();
            let those = |has: fn(&Service) -> bool| records.values().filter(|r| has(&r.service)).collect();
            prop_assert_eq!(ids(records.published().collect()), ids(those(|s| !s.ports.is_empty())));
            prop_assert_eq!(ids(records.checked().collect()), ids(those(|s| s.health.is_some())));
            for number in (1..=120).map(|b| BackendId::try_from(b).unwrap()) {
                let found = records.values().find(|r| r.backends.contains_key(&number));
                prop_assert_eq!(records.backend(number).map(|(r, _)| r), found);
            }
            let text = serde_json::to_string(&records).unwrap();
            let read: ServiceRecords = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&read, &records);
            prop_assert!(read.owners.iter().eq(records.owners.iter()));
            prop_assert_eq!((&read.published, &read.checked), (&records.published, &records.checked));
        }
    }
}
