//! Services and backends with their indexes. The cost of a change does not depend on their number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_model::{
    Backend, BackendId, EndpointId, Name, NetworkId, NodeId, Protocol, PublishedPort, Service, ServiceId,
};

/// The nodes that receive a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Audience {
    /// None: the service does not exist.
    Nobody,
    /// The nodes with a lease in its network.
    Holders,
    /// Every node: it has published ports.
    Everyone,
}

/// A service with its backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceRecords {
    pub(crate) service: Arc<Service>,
    pub(crate) backends: Vec<Arc<Backend>>,
}

/// All services and backends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Services {
    records: BTreeMap<ServiceId, Arc<Service>>,
    backends: BTreeMap<ServiceId, BTreeMap<EndpointId, Arc<Backend>>>,
    by_network: BTreeMap<NetworkId, BTreeSet<ServiceId>>,
    published: BTreeMap<NetworkId, BTreeSet<ServiceId>>,
    /// By the folded forms of their names.
    by_name: BTreeMap<Name, BTreeSet<ServiceId>>,
    by_endpoint: BTreeMap<EndpointId, BTreeSet<ServiceId>>,
    by_node: BTreeMap<NodeId, BTreeSet<(ServiceId, EndpointId)>>,
    by_number: BTreeMap<BackendId, (ServiceId, EndpointId)>,
    vips: BTreeMap<NetworkId, BTreeSet<IpAddr>>,
    ports: BTreeMap<(Protocol, u16), BTreeSet<ServiceId>>,
}

impl Services {
    pub(crate) fn get(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.records.get(id)
    }

    /// Returns a service with its backends, in order of their numbers.
    pub(crate) fn records(&self, id: &ServiceId) -> Option<ServiceRecords> {
        let service = self.records.get(id)?.clone();
        Some(ServiceRecords { service, backends: self.backends_of(id) })
    }

    /// Returns all services, in order of their ids.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.records.values()
    }

    /// Returns the backends of a service, in order of their numbers.
    pub(crate) fn backends_of(&self, id: &ServiceId) -> Vec<Arc<Backend>> {
        let mut backends: Vec<_> =
            self.backends.get(id).into_iter().flat_map(BTreeMap::values).cloned().collect();
        backends.sort_by_key(|backend| backend.id);
        backends
    }

    pub(crate) fn backend(&self, service: &ServiceId, endpoint: &EndpointId) -> Option<&Arc<Backend>> {
        self.backends.get(service)?.get(endpoint)
    }

    pub(crate) fn backend_by_number(&self, number: BackendId) -> Option<&Arc<Backend>> {
        let (service, endpoint) = self.by_number.get(&number)?;
        self.backend(service, endpoint)
    }

    /// Returns the backends of an endpoint.
    pub(crate) fn backends_at<'a>(
        &'a self,
        endpoint: &'a EndpointId,
    ) -> impl Iterator<Item = &'a Arc<Backend>> {
        let services = self.by_endpoint.get(endpoint).into_iter().flatten();
        services.filter_map(|service| self.backend(service, endpoint))
    }

    /// Returns the backends on a node.
    pub(crate) fn backends_on(&self, node: &NodeId) -> impl Iterator<Item = &Arc<Backend>> {
        let keys = self.by_node.get(node).into_iter().flatten();
        keys.filter_map(|(service, endpoint)| self.backend(service, endpoint))
    }

    /// Returns the nodes with backends.
    pub(crate) fn nodes_with_backends(&self) -> impl Iterator<Item = &NodeId> {
        self.by_node.keys()
    }

    /// Returns the services of a network.
    pub(crate) fn in_network(&self, network: &NetworkId) -> impl Iterator<Item = &ServiceId> {
        self.by_network.get(network).into_iter().flatten()
    }

    /// Returns the services of a network with published ports.
    pub(crate) fn published_in(&self, network: &NetworkId) -> impl Iterator<Item = &ServiceId> {
        self.published.get(network).into_iter().flatten()
    }

    /// Returns the services with a name in any spelling. There is one in each network, or more if
    /// they were created when names were case-sensitive.
    pub(crate) fn named(&self, name: &Name) -> impl Iterator<Item = &Arc<Service>> {
        let ids = self.by_name.get(&name.folded()).into_iter().flatten();
        ids.filter_map(|id| self.records.get(id))
    }

    /// Returns the services with exactly this spelling of a name; all, if there is none.
    pub(crate) fn best_named(&self, name: &Name) -> Vec<&Arc<Service>> {
        let all: Vec<_> = self.named(name).collect();
        let exact: Vec<_> = all.iter().filter(|service| service.name == *name).copied().collect();
        if exact.is_empty() { all } else { exact }
    }

    /// Returns the virtual addresses of a network that are in use.
    pub(crate) fn vips(&self, network: &NetworkId) -> Option<&BTreeSet<IpAddr>> {
        self.vips.get(network)
    }

    /// Returns whether some service publishes this port, on any address.
    pub(crate) fn is_published(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.contains_key(&(protocol, port))
    }

    /// Returns a service other than `but` with a port that matches the same packets.
    pub(crate) fn publisher(
        &self,
        wanted: &PublishedPort,
        but: Option<&ServiceId>,
    ) -> Option<(&Arc<Service>, PublishedPort)> {
        let ids = self.ports.get(&(wanted.protocol, wanted.published)).into_iter().flatten();
        ids.filter(|id| but != Some(id)).filter_map(|id| self.records.get(id)).find_map(|service| {
            let port = service.ports.iter().find(|port| port.conflicts_with(wanted))?;
            Some((service, *port))
        })
    }

    pub(super) fn audience(&self, id: &ServiceId) -> Audience {
        match self.records.get(id) {
            None => Audience::Nobody,
            Some(service) if service.ports.is_empty() => Audience::Holders,
            Some(_) => Audience::Everyone,
        }
    }

    pub(crate) fn put_service(&mut self, service: Arc<Service>) {
        self.remove_service(&service.id);
        let id = &service.id;
        insert(&mut self.by_network, service.network.clone(), id.clone());
        insert(&mut self.by_name, service.name.folded(), id.clone());
        if !service.ports.is_empty() {
            insert(&mut self.published, service.network.clone(), id.clone());
        }
        for vip in service.vips() {
            insert(&mut self.vips, service.network.clone(), vip);
        }
        for port in &service.ports {
            insert(&mut self.ports, (port.protocol, port.published), id.clone());
        }
        self.records.insert(id.clone(), service);
    }

    pub(crate) fn remove_service(&mut self, id: &ServiceId) -> Option<Arc<Service>> {
        let service = self.records.remove(id)?;
        remove(&mut self.by_network, &service.network, id);
        remove(&mut self.by_name, &service.name.folded(), id);
        remove(&mut self.published, &service.network, id);
        for vip in service.vips() {
            remove(&mut self.vips, &service.network, &vip);
        }
        for port in &service.ports {
            remove(&mut self.ports, &(port.protocol, port.published), id);
        }
        Some(service)
    }

    pub(super) fn put_backend(&mut self, backend: Arc<Backend>) {
        self.remove_backend(&backend.service, &backend.endpoint);
        let key = (backend.service.clone(), backend.endpoint.clone());
        insert(&mut self.by_endpoint, backend.endpoint.clone(), backend.service.clone());
        insert(&mut self.by_node, backend.node.clone(), key.clone());
        self.by_number.insert(backend.id, key);
        self.backends.entry(backend.service.clone()).or_default().insert(backend.endpoint.clone(), backend);
    }

    pub(super) fn remove_backend(
        &mut self,
        service: &ServiceId,
        endpoint: &EndpointId,
    ) -> Option<Arc<Backend>> {
        let of_service = self.backends.get_mut(service)?;
        let backend = of_service.remove(endpoint)?;
        if of_service.is_empty() {
            self.backends.remove(service);
        }
        let key = (service.clone(), endpoint.clone());
        remove(&mut self.by_endpoint, endpoint, service);
        remove(&mut self.by_node, &backend.node, &key);
        self.by_number.remove(&backend.id);
        Some(backend)
    }
}

fn insert<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: K, value: V) {
    index.entry(key).or_default().insert(value);
}

fn remove<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}
