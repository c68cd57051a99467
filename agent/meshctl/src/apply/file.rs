//! The file as a whole: Compose's own keys that concern networks and services, and Mesh's own keys
//! under `x-mesh`. Unsupported keys are reported, never guessed.

use std::collections::BTreeMap;

use mesh_model::{Name, PublishedPort};

use super::network::{self, DEFAULT_NETWORK, Networks};
use super::notes;
use super::variables::Variables;
use super::yaml::{self, Invalid, Item, Reason};
use super::{Declared, Network, Service, service};

/// Inputs besides the file's text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    /// The project's name, unless the file sets one.
    pub(crate) project: String,
    /// The values of `$NAME`.
    pub(crate) variables: Variables,
    /// The active profiles; `*` means all.
    pub(crate) profiles: Vec<String>,
}

/// Reads a file.
pub(crate) fn read(text: &str, mut given: Given) -> Result<Declared, Invalid> {
    let mut document = yaml::parse(text)?;
    yaml::check_own_places(&document)?;
    // Compose lets a file use its project's name as a variable, even if the file sets it.
    let project = project(&document, &given)?;
    given.variables.entry("COMPOSE_PROJECT_NAME".to_owned()).or_insert_with(|| project.clone());
    let mut warnings = Vec::new();
    yaml::fill(&mut document, &given.variables, &mut warnings)?;
    let mut declared = interpret(&document, project, &given.profiles)?;
    warnings.extend(declared.ignored.iter().filter_map(notes::unknown));
    warnings.sort_by(|a, b| (a.line, &a.message).cmp(&(b.line, &b.message)));
    declared.warnings = warnings;
    Ok(declared)
}

fn project(document: &yaml::Node, given: &Given) -> Result<String, Invalid> {
    let mut document = document.clone();
    document.keep_only("name");
    yaml::fill(&mut document, &given.variables, &mut Vec::new())?;
    match Item::root(&document).section()?.take("name") {
        Some(name) => Ok(name.text()?.to_owned()),
        None => Ok(given.project.clone()),
    }
}

fn interpret(document: &yaml::Node, project: String, profiles: &[String]) -> Result<Declared, Invalid> {
    let root = Item::root(document);
    let mut ignored = Vec::new();
    let mut section = root.clone().section()?;
    section.take("name");
    let default_name = format!("{project}_{DEFAULT_NETWORK}");

    let mut networks: Vec<Network> = Vec::new();
    let mut names = Networks::new();
    let declared = section.take("networks").map_or_else(|| Ok(Vec::new()), |networks| networks.entries())?;
    for (key, item) in declared {
        // Names are unique in the cluster, so networks keep their names in the file. Only Compose's
        // default network gets the project's name as a prefix; otherwise all projects would share
        // it.
        let called = if key == DEFAULT_NETWORK { default_name.as_str() } else { key };
        let name = |item: &Item<'_>| called.parse::<Name>().map_err(|error| item.invalid_key(called, error));
        let network = network::read(item.clone(), name, &mut ignored)?;
        if networks.iter().any(|other| other.name.is_same(&network.name)) {
            return Err(item.invalid(Reason::Contradiction("another network of the file has this name")));
        }
        names.insert(key, network.name.clone());
        networks.push(network);
    }

    let (mut services, mut inactive): (Vec<Service>, Vec<Service>) = (Vec::new(), Vec::new());
    let declared = section.take("services").map_or_else(|| Ok(Vec::new()), |services| services.entries())?;
    for (key, item) in declared {
        let Some(mut read) = service::read(key, item.clone(), &mut ignored)? else { continue };
        if !read.is_active(profiles) {
            ignored.push(item.inactive(read.profiles()));
            inactive.extend(read.on(&item, &names).unwrap_or_default());
            continue;
        }
        if read.is_on(DEFAULT_NETWORK) && !names.contains_key(DEFAULT_NETWORK) {
            let name = default_name.parse::<Name>();
            let network = Network::named(name.map_err(|error| item.invalid_key(&default_name, error))?);
            names.insert(DEFAULT_NETWORK, network.name.clone());
            networks.push(network);
        }
        let read = read.on(&item, &names)?;
        let is_twin = |one: &Service| {
            services.iter().any(|other| other.network == one.network && other.name.is_same(&one.name))
        };
        if read.iter().any(is_twin) {
            return Err(item.invalid(Reason::Contradiction("another service of the file has this name")));
        }
        services.extend(read);
    }
    if let Some(port) = published_twice(&services) {
        return Err(root.invalid(Reason::PublishedTwice(port)));
    }
    section.finish(&mut ignored);
    ignored.sort_by(|a, b| (a.line, &a.key).cmp(&(b.line, &b.key)));
    Ok(Declared { project, networks, services, inactive, ignored, warnings: Vec::new() })
}

/// Returns a port that is declared twice, by one or two services. Ports of ranges are chosen so
/// that they do not conflict.
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
