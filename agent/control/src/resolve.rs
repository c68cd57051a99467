//! Finds what people name: by id, by name, or by an unambiguous beginning of an id.

use mesh_model::{Name, Network, NetworkId, Node, NodeId};
use mesh_proto::{Problem, ProblemKind};
use mesh_store::Key;
use serde::de::DeserializeOwned;

use crate::core::Core;
use crate::keys;
use crate::records::Versioned;

/// The network that `text` names.
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

/// The node that `text` names.
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

/// The id that an index of names has for this one.
async fn named<T: DeserializeOwned>(
    core: &Core,
    text: &str,
    key: impl FnOnce(&Name) -> Key,
) -> Result<Option<T>, Problem> {
    let Ok(name) = text.parse::<Name>() else { return Ok(None) };
    let id: Option<Versioned<T>> = core.records.get(key(&name)).await?;
    Ok(id.map(|id| id.value))
}

/// The only one whose id begins so.
fn by_beginning<T>(
    what: &str,
    text: &str,
    all: Vec<T>,
    names: impl Fn(&T) -> (&str, &str),
) -> Result<T, Problem> {
    if text.is_empty() {
        return Err(Problem::new(ProblemKind::Usage, format!("name a {what}")));
    }
    let mut matches = all.into_iter().filter(|found| names(found).0.starts_with(text));
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
            .hint(format!("meshctl {what} ls shows those that do"))),
    }
}
