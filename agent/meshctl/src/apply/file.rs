//! The file as a whole: Compose's own keys where they mean something to a network or a service, and Mesh's own ones
//! under `x-mesh`. What is not understood is noted, never guessed.

use std::collections::{BTreeMap, HashMap};

use mesh_model::{Name, PublishedPort};

use super::yaml::{self, Invalid, Item, Reason};
use super::{Declared, Network, Service, network, service};

/// The network of services that name none, as Compose calls it.
pub(super) const DEFAULT_NETWORK: &str = "default";

/// The networks of a file by the names that they have inside it.
pub(super) type Networks<'a> = BTreeMap<&'a str, Name>;

/// Reads a file; `project` is the project's name unless the file tells one, and `variables` are what `$NAME` stands for.
pub(crate) fn read(
    text: &str,
    project: &str,
    variables: HashMap<String, String>,
) -> Result<Declared, Invalid> {
    let document = yaml::parse(text, variables)?;
    let root = Item::root(&document);
    let mut ignored = Vec::new();
    let mut section = root.clone().section()?;
    let project = match section.take("name") {
        Some(name) => name.text()?.to_owned(),
        None => project.to_owned(),
    };
    let default_name = format!("{project}_{DEFAULT_NETWORK}");

    let mut networks: Vec<Network> = Vec::new();
    let mut names = Networks::new();
    let declared = section.take("networks").map_or_else(|| Ok(Vec::new()), |networks| networks.entries())?;
    for (key, item) in declared {
        // Names are the cluster's, so networks are called as the file calls them; only the one that Compose makes
        // up itself has the project's name in front, or all projects would share it.
        let called = if key == DEFAULT_NETWORK { default_name.as_str() } else { key };
        let name = |item: &Item<'_>| called.parse::<Name>().map_err(|error| item.invalid_key(called, error));
        let network = network::read(item.clone(), name, &mut ignored)?;
        if networks.iter().any(|other| other.name == network.name) {
            return Err(item.invalid(Reason::Contradiction("another network of the file has this name")));
        }
        names.insert(key, network.name.clone());
        networks.push(network);
    }

    let mut services: Vec<Service> = Vec::new();
    let declared = section.take("services").map_or_else(|| Ok(Vec::new()), |services| services.entries())?;
    for (key, item) in declared {
        let Some(mut read) = service::read(key, item.clone(), &mut ignored)? else { continue };
        if read.is_on(DEFAULT_NETWORK) && !names.contains_key(DEFAULT_NETWORK) {
            let name = default_name.parse::<Name>();
            let network = Network::named(name.map_err(|error| item.invalid_key(&default_name, error))?);
            names.insert(DEFAULT_NETWORK, network.name.clone());
            networks.push(network);
        }
        services.extend(read.on(&item, &names)?);
    }
    if let Some(port) = published_twice(&services) {
        return Err(root.invalid(Reason::PublishedTwice(port)));
    }
    section.finish(&mut ignored);
    ignored.sort_by(|a, b| (a.line, &a.key).cmp(&(b.line, &b.key)));
    Ok(Declared { project, networks, services, ignored })
}

/// A port that two services of the file, or one twice, have; those of ranges are chosen so that they do not.
fn published_twice(services: &[Service]) -> Option<PublishedPort> {
    let mut taken: BTreeMap<_, Vec<PublishedPort>> = BTreeMap::new();
    let ports = services.iter().flat_map(|service| &service.ports);
    for port in ports.filter(|port| port.published.start() == port.published.end()) {
        let port = port.with(*port.published.start());
        let others = taken.entry((port.protocol, port.published)).or_default();
        if others.iter().any(|other| other.conflicts_with(&port)) {
            return Some(port);
        }
        others.push(port);
    }
    None
}

#[cfg(test)]
mod tests;
