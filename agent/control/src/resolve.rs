//! Finds what people name: by id, by name, or by an unambiguous beginning of an id.

use mesh_model::{Network, Node};
use mesh_proto::{Problem, ProblemKind};

use crate::core::Core;
use crate::records::Versioned;

/// The network that `text` names.
pub(crate) async fn resolve_network(core: &Core, text: &str) -> Result<Versioned<Network>, Problem> {
    let networks = core.records.networks().await?;
    resolve("network", text, networks, |network| (network.value.id.as_str(), network.value.name.as_str()))
}

/// The node that `text` names.
pub(crate) async fn resolve_node(core: &Core, text: &str) -> Result<Versioned<Node>, Problem> {
    let nodes = core.records.nodes().await?;
    resolve("node", text, nodes, |node| (node.value.id.as_str(), node.value.name.as_str()))
}

fn resolve<T>(what: &str, text: &str, all: Vec<T>, names: impl Fn(&T) -> (&str, &str)) -> Result<T, Problem> {
    if text.is_empty() {
        return Err(Problem::new(ProblemKind::Usage, format!("name a {what}")));
    }
    let by_id = all.iter().position(|found| names(found).0 == text);
    let by_name = || all.iter().position(|found| names(found).1 == text);
    let index = match by_id.or_else(by_name) {
        Some(index) => Some(index),
        None => by_beginning(what, text, &all, &names)?,
    };
    index.and_then(|index| all.into_iter().nth(index)).ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, format!("{what} {text} does not exist"))
            .hint(format!("meshctl {what} ls shows those that do"))
    })
}

fn by_beginning<T>(
    what: &str,
    text: &str,
    all: &[T],
    names: impl Fn(&T) -> (&str, &str),
) -> Result<Option<usize>, Problem> {
    let mut matches = all.iter().enumerate().filter(|(_, found)| names(found).0.starts_with(text));
    let first = matches.next();
    if let (Some((_, one)), Some((_, other))) = (first, matches.next()) {
        let (one, other) = (names(one), names(other));
        return Err(Problem::new(
            ProblemKind::Usage,
            format!("{what} {text} is ambiguous: {} ({}) and {} ({})", one.0, one.1, other.0, other.1),
        ));
    }
    Ok(first.map(|(index, _)| index))
}
