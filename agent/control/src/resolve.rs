//! Finds objects by id, by name, or by an unambiguous prefix of an id.

use std::sync::Arc;

use mesh_model::{EndpointId, Name, Network, NetworkId, Node, NodeId, Service, ServiceId};
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_store::Key;
use serde::de::DeserializeOwned;

use crate::core::Core;
use crate::keys;
use crate::records::Versioned;
use crate::view::View;

/// Shortest id prefix in a removal: a shorter one may match another object by mistake.
const SHORTEST_TO_REMOVE: usize = 4;

/// Refuses an id prefix that is too short to identify the object `name`, a `what`, for removal.
pub(crate) fn check_removable(what: &str, text: &str, name: &Name) -> Result<(), Problem> {
    // `NETWORK/NAME` ends with a full name.
    if text.eq_ignore_ascii_case(name.as_str()) || text.contains('/') || text.len() >= SHORTEST_TO_REMOVE {
        return Ok(());
    }
    Err(Problem::new(
        ProblemKind::Usage,
        format!(
            "{text} is too short for an id prefix: at least {SHORTEST_TO_REMOVE} characters are required"
        ),
    )
    .hint(format!("to remove {what} {name}, use its name")))
}

/// Returns the network that `text` names.
pub(crate) async fn resolve_network(core: &Core, text: &str) -> Result<Versioned<Network>, Problem> {
    let id = match text.parse::<NetworkId>() {
        Ok(id) => Some(id),
        Err(_) => named(core, text, keys::network_name).await?,
    };
    if let Some(id) = id
        && let Some(network) = core.records.get(keys::network(&id)).await?
    {
        return Ok(network);
    }
    let networks = core.records.networks().await?;
    by_beginning("network", text, networks, |network| {
        (network.value.id.as_str(), network.value.name.as_str())
    })
}

/// Returns the node that `text` names.
pub(crate) async fn resolve_node(core: &Core, text: &str) -> Result<Versioned<Node>, Problem> {
    let id = match text.parse::<NodeId>() {
        Ok(id) => Some(id),
        Err(_) => named(core, text, keys::node_name).await?,
    };
    if let Some(id) = id
        && let Some(node) = core.records.node(&id).await?
    {
        return Ok(node);
    }
    let nodes = core.records.nodes().await?;
    by_beginning("node", text, nodes, |node| (node.value.id.as_str(), node.value.name.as_str()))
}

/// Returns the service that `text` names, also as `NETWORK/NAME`, since a name is unique only
/// within its network.
pub(crate) async fn resolve_service(core: &Core, text: &str) -> Result<Arc<Service>, Problem> {
    core.catch_up().await?;
    service_in(&core.feed.view(), text)
}

/// Returns the network of a view that `text` names.
pub(crate) fn network_in<'a>(view: &'a View, text: &str) -> Result<&'a Network, Problem> {
    let named = view.networks.values().filter(|network| network.name.as_str() == text);
    let by_id = text.parse::<NetworkId>().ok().and_then(|id| view.networks.get(&id));
    match by_id.into_iter().chain(named).next() {
        Some(network) => Ok(network),
        None => by_beginning("network", text, view.networks.values().collect(), |network| {
            (network.id.as_str(), network.name.as_str())
        }),
    }
}

/// Returns the service of a view that `text` names.
pub(crate) fn service_in(view: &View, text: &str) -> Result<Arc<Service>, Problem> {
    if let Some((network, name)) = text.split_once('/') {
        let network = network_in(view, network)?;
        let name = name.parse::<Name>().ok();
        let named = name.map(|name| view.services.best_named(&name)).unwrap_or_default();
        let found = named.into_iter().find(|one| one.network == network.id);
        return found.cloned().ok_or_else(|| no_such_service(text));
    }
    if let Some(service) = text.parse::<ServiceId>().ok().and_then(|id| view.services.get(&id)) {
        return Ok(service.clone());
    }
    if let Ok(name) = text.parse::<Name>() {
        let named: Vec<&Arc<Service>> = view.services.best_named(&name);
        match named.as_slice() {
            [] => {}
            [service] => return Ok(Arc::clone(service)),
            several => return Err(on_several_networks(view, text, &name, several)),
        }
    }
    by_beginning("service", text, view.services.all().collect(), |service| {
        (service.id.as_str(), service.name.as_str())
    })
    .cloned()
}

fn on_several_networks(view: &View, text: &str, name: &Name, services: &[&Arc<Service>]) -> Problem {
    let network = |service: &&Arc<Service>| view.networks.get(&service.network).map(|n| &n.name);
    let mut paths: Vec<String> =
        services.iter().filter_map(network).map(|network| format!("{network}/{name}")).collect();
    paths.sort();
    Problem::new(ProblemKind::Usage, format!("service {text} is on several networks: {}", paths.join(", ")))
        .hint("use NETWORK/NAME")
}

fn no_such_service(text: &str) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("service {text} does not exist"))
        .hint("list services with: meshctl service ls")
}

/// Returns the part after `NETWORK/`, if that is given; the network must be this one.
pub(crate) fn within<'a>(view: &View, network: &Network, text: &'a str) -> Result<&'a str, Problem> {
    let Some((named, rest)) = text.split_once('/') else { return Ok(text) };
    if network_in(view, named)?.id == network.id {
        return Ok(rest);
    }
    Err(Problem::new(ProblemKind::Conflict, format!("endpoint {text} is not on network {}", network.name))
        .hint("a service's backends must be endpoints of its own network"))
}

/// Returns the endpoint of a network that `text` names: by id, name, or an unambiguous id prefix.
/// If several have one name, returns that of the `preferred` node.
pub(crate) fn resolve_endpoint(
    core: &Core,
    network: &Network,
    text: &str,
    preferred: &NodeId,
) -> Result<v1::Endpoint, Problem> {
    let text = within(&core.feed.view(), network, text)?;
    let mut found = match text.parse::<EndpointId>() {
        Ok(id) => core.endpoints.with_id(&id),
        Err(_) => text.parse().map(|name| core.endpoints.with_name(&network.id, &name)).unwrap_or_default(),
    };
    found.sort_by_key(|endpoint| endpoint.node_id != preferred.as_str());
    if found.len() > 1 && found.iter().all(|endpoint| endpoint.node_id != preferred.as_str()) {
        let ids: Vec<&str> = found.iter().map(|endpoint| endpoint.id.as_str()).collect();
        return Err(Problem::new(
            ProblemKind::Usage,
            format!("endpoint {text} is ambiguous: {}", ids.join(", ")),
        )
        .hint("use its id, or its name if several nodes have endpoints with this id"));
    }
    let endpoint = match found.into_iter().next() {
        Some(endpoint) => endpoint,
        None => elsewhere(core, network, text)?,
    };
    if endpoint.network_id != network.id.as_str() {
        let other = endpoint.network_id.parse().ok().and_then(|id: NetworkId| {
            core.feed.view().networks.get(&id).map(|network| network.name.to_string())
        });
        return Err(Problem::new(
            ProblemKind::Conflict,
            format!(
                "endpoint {text} is on network {}, not on {}",
                other.unwrap_or(endpoint.network_id),
                network.name
            ),
        )
        .hint("a service's backends must be endpoints of its own network"));
    }
    Ok(endpoint)
}

/// Returns an endpoint that is not found by id or by name in the network: by an id prefix, or by
/// name in another network.
fn elsewhere(core: &Core, network: &Network, text: &str) -> Result<v1::Endpoint, Problem> {
    let all = core.endpoints.list(None);
    if let Some(other) = all.iter().find(|endpoint| endpoint.name.eq_ignore_ascii_case(text)) {
        return Ok(other.clone());
    }
    let here = all.into_iter().filter(|endpoint| endpoint.network_id == network.id.as_str()).collect();
    by_beginning("endpoint", text, here, |endpoint| (&endpoint.id, &endpoint.name))
}

/// Returns the id of this name in an index of names.
async fn named<T: DeserializeOwned>(
    core: &Core,
    text: &str,
    key: impl FnOnce(&Name) -> Key,
) -> Result<Option<T>, Problem> {
    let Ok(name) = text.parse::<Name>() else { return Ok(None) };
    let id: Option<Versioned<T>> = core.records.get(key(&name)).await?;
    Ok(id.map(|id| id.value))
}

/// Returns the only object whose id has this prefix.
fn by_beginning<T>(
    what: &str,
    text: &str,
    all: Vec<T>,
    names: impl Fn(&T) -> (&str, &str),
) -> Result<T, Problem> {
    if text.is_empty() {
        return Err(Problem::new(ProblemKind::Usage, format!("name a {what}")));
    }
    // Names with exactly this spelling were looked up already.
    let is_spelled_otherwise = |found: &T| names(found).1.eq_ignore_ascii_case(text);
    let has_name = all.iter().any(is_spelled_otherwise);
    let mut matches = all.into_iter().filter(|found| {
        if has_name { is_spelled_otherwise(found) } else { names(found).0.starts_with(text) }
    });
    match (matches.next(), matches.next()) {
        (Some(found), None) => Ok(found),
        (Some(one), Some(other)) => {
            let (one, other) = (names(&one), names(&other));
            Err(Problem::new(
                ProblemKind::Usage,
                format!("{what} {text} is ambiguous: {} ({}) and {} ({})", one.0, one.1, other.0, other.1),
            ))
        }
        (None, _) => Err(Problem::new(ProblemKind::NotFound, format!("{what} {text} does not exist"))
            .hint(format!("list them with: meshctl {what} ls"))),
    }
}
