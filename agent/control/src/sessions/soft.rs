//! Data for agents that is in no record: the health of backends, the endpoints, and requests.

use std::collections::BTreeSet;

use mesh_model::{BackendId, NetworkId, NodeId};
use mesh_proto::Problem;
use mesh_proto::v1::{
    BackendHealth, BackendHealthEntry, Change, Endpoint, Endpoints, RotateKeys, change, manager_message::Kind,
};
use tokio::sync::broadcast::error::RecvError;

use super::writer::Writer;
use crate::endpoints::EndpointNews;
use crate::health::HealthNews;
use crate::view::{Level, View};

impl Writer<'_> {
    /// Sends everything, at the session's start.
    pub(super) async fn send_all_soft(&self) -> Result<(), Problem> {
        self.send_all_health().await?;
        self.send_network_endpoints(&self.networks_with_lease()).await?;
        let generation = self.core.feed.view().generation;
        if generation > 0 { self.send_generation(generation).await } else { Ok(()) }
    }

    pub(super) async fn send_generation(&self, number: u32) -> Result<(), Problem> {
        self.send(Kind::RotateKeys(RotateKeys { number })).await
    }

    /// Sends the health of all backends that the agent knows.
    async fn send_all_health(&self) -> Result<(), Problem> {
        let message = {
            let view = self.core.feed.view();
            let put = self.core.health.all().into_iter().filter(|(id, _)| self.knows(&view, *id));
            let unheard = view.nodes.keys().filter(|node| !self.core.health.has_report(node));
            BackendHealth { put: put.map(entry).collect(), all: true, unheard: ids(unheard) }
        };
        self.send(Kind::BackendHealth(message)).await
    }

    /// Sends changes of the health; after a gap, all of it.
    pub(super) async fn send_health(&self, news: Result<HealthNews, RecvError>) -> Result<(), Problem> {
        let Ok(news) = news else { return self.send_all_health().await };
        let put: Vec<_> = {
            let view = self.core.feed.view();
            news.iter().filter(|(id, _)| self.knows(&view, **id)).map(|(id, ok)| entry((*id, *ok))).collect()
        };
        self.send_some_health(put).await
    }

    /// Sends the health of the backends that the agent has just received.
    pub(super) async fn send_health_of_new(&self, changes: &[Change]) -> Result<(), Problem> {
        let backends = changes.iter().filter_map(|change| match &change.kind {
            Some(change::Kind::PutBackend(backend)) => BackendId::try_from(backend.id).ok(),
            _ => None,
        });
        let put = backends.filter_map(|id| Some(entry((id, Some(self.core.health.get(id)?))))).collect();
        self.send_some_health(put).await
    }

    async fn send_some_health(&self, put: Vec<BackendHealthEntry>) -> Result<(), Problem> {
        if put.is_empty() {
            return Ok(());
        }
        self.send(Kind::BackendHealth(BackendHealth { put, all: false, unheard: Vec::new() })).await
    }

    /// Sends all endpoints of other nodes in these networks.
    pub(super) async fn send_network_endpoints(&self, networks: &BTreeSet<NetworkId>) -> Result<(), Problem> {
        if networks.is_empty() {
            return Ok(());
        }
        let own = |endpoint: &Endpoint| endpoint.node_id == self.node.as_str();
        let lists = networks.iter().flat_map(|network| self.core.endpoints.visible(network));
        let put = lists.filter(|endpoint| !own(endpoint)).collect();
        let unheard = {
            let view = self.core.feed.view();
            ids(view.nodes.keys().filter(|node| !self.core.endpoints.has_report(node)))
        };
        let networks = networks.iter().map(ToString::to_string).collect();
        self.send(Kind::Endpoints(Endpoints { put, removed: Vec::new(), all: true, networks, unheard })).await
    }

    /// Sends changes of the endpoints; after a gap, all of them.
    pub(super) async fn send_endpoints(
        &self,
        news: Result<std::sync::Arc<EndpointNews>, RecvError>,
    ) -> Result<(), Problem> {
        let Ok(news) = news else {
            return self.send_network_endpoints(&self.networks_with_lease()).await;
        };
        if news.node == *self.node {
            return Ok(());
        }
        let is_here = |endpoint: &&Endpoint| {
            let network = endpoint.network_id.parse::<NetworkId>();
            network.is_ok_and(|network| self.known.get(&network) == Some(&Level::Full))
        };
        let message = Endpoints {
            put: news.put.iter().filter(is_here).cloned().collect(),
            removed: news.removed.iter().filter(is_here).map(|endpoint| endpoint.id.clone()).collect(),
            ..Endpoints::default()
        };
        if message.put.is_empty() && message.removed.is_empty() {
            return Ok(());
        }
        self.send(Kind::Endpoints(message)).await
    }

    /// Returns the networks of which the agent receives all records.
    pub(super) fn networks_with_lease(&self) -> BTreeSet<NetworkId> {
        let full = self.known.iter().filter(|(_, level)| **level == Level::Full);
        full.map(|(network, _)| network.clone()).collect()
    }

    /// Returns whether the agent has received the backend.
    fn knows(&self, view: &View, backend: BackendId) -> bool {
        let Some(backend) = view.services.backend_by_number(backend) else { return false };
        let level = self.known.get(&backend.network).copied();
        Level::receives(level, view.audience(&backend.service))
    }
}

fn entry((id, healthy): (BackendId, Option<bool>)) -> BackendHealthEntry {
    BackendHealthEntry {
        backend: id.get(),
        healthy: healthy == Some(true),
        unknown: healthy.is_none(),
        error: String::new(),
    }
}

fn ids<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> Vec<String> {
    nodes.map(ToString::to_string).collect()
}
