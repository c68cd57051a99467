//! `--filter KEY=VALUE`, with Docker's rules: values of one key are alternatives, different keys
//! must all hold.

use clap::ValueEnum;

/// One `--filter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter<K> {
    /// What to look at.
    pub(crate) key: K,
    /// What it is to be.
    pub(crate) value: String,
}

/// The keys that a list can be filtered by.
pub(crate) trait Key: ValueEnum + Copy + PartialEq {
    /// Several values of this key must all hold instead of any of them.
    fn all_must_hold(self) -> bool {
        false
    }
}

/// Why a text is no filter.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum InvalidFilter {
    /// There is no `=`.
    #[error("a filter must be KEY=VALUE; the keys are {keys}")]
    Syntax {
        /// The keys that exist.
        keys: String,
    },
    /// The list has no such key.
    #[error("unknown filter key {key:?}; the keys are {keys}")]
    Key {
        /// What was given.
        key: String,
        /// The keys that exist.
        keys: String,
    },
}

/// Parses `KEY=VALUE`.
pub(crate) fn parse<K: Key>(text: &str) -> Result<Filter<K>, InvalidFilter> {
    let (key, value) = text.split_once('=').ok_or_else(|| InvalidFilter::Syntax { keys: keys::<K>() })?;
    let key =
        K::from_str(key, false).map_err(|_| InvalidFilter::Key { key: key.to_owned(), keys: keys::<K>() })?;
    Ok(Filter { key, value: value.to_owned() })
}

fn keys<K: Key>() -> String {
    let names: Vec<_> = K::value_variants().iter().filter_map(ValueEnum::to_possible_value).collect();
    names.iter().map(clap::builder::PossibleValue::get_name).collect::<Vec<_>>().join(", ")
}

/// Whether something passes all filters, when `holds` says whether it has a value under a key.
pub(crate) fn matches_all<K: Key>(filters: &[Filter<K>], holds: impl Fn(K, &str) -> bool) -> bool {
    filters.iter().all(|filter| {
        if filter.key.all_must_hold() {
            return holds(filter.key, &filter.value);
        }
        filters.iter().any(|other| other.key == filter.key && holds(other.key, &other.value))
    })
}

/// The keys of `network ls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkKey {
    /// The driver's name.
    Driver,
    /// How the id begins.
    Id,
    /// `LABEL` or `LABEL=VALUE`; several must all be there.
    Label,
    /// A part of the name.
    Name,
    /// The VNI.
    Vni,
}

impl Key for NetworkKey {
    fn all_must_hold(self) -> bool {
        self == Self::Label
    }
}

/// The keys of `node ls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeKey {
    /// `active` or `drain`.
    Availability,
    /// How the id begins.
    Id,
    /// A part of the name.
    Name,
    /// `manager` or `worker`.
    Role,
    /// `ready`, `unknown` or `down`.
    State,
}

impl Key for NodeKey {}

/// The keys of `endpoint ls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointKey {
    /// How the id begins.
    Id,
    /// A part of the name.
    Name,
    /// The network's name.
    Network,
    /// The node's name.
    Node,
    /// The service's name.
    Service,
}

impl Key for EndpointKey {}

/// The keys of `service ls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceKey {
    /// How the id begins.
    Id,
    /// `LABEL` or `LABEL=VALUE`; several must all be there.
    Label,
    /// `vip` or `dnsrr`.
    Mode,
    /// A part of the name.
    Name,
    /// The network's name.
    Network,
}

impl Key for ServiceKey {
    fn all_must_hold(self) -> bool {
        self == Self::Label
    }
}

/// The keys of `service ps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendKey {
    /// `healthy`, `unhealthy`, `unknown` or `none`.
    Health,
    /// How the endpoint's id begins.
    Id,
    /// A part of the endpoint's name.
    Name,
    /// The node's name.
    Node,
    /// `active` or `draining`.
    State,
    /// Whether it gets new connections: `yes` or `no`.
    Traffic,
}

impl Key for BackendKey {}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(texts: &[&str]) -> Vec<Filter<NetworkKey>> {
        texts.iter().map(|text| parse(text).unwrap()).collect()
    }

    #[test]
    fn an_unknown_key_is_refused_and_the_known_ones_named() {
        let error = parse::<NetworkKey>("colour=red").unwrap_err().to_string();
        assert_eq!(error, "unknown filter key \"colour\"; the keys are driver, id, label, name, vni");
        assert!(parse::<NetworkKey>("name").is_err());
    }

    #[test]
    fn values_of_one_key_are_alternatives_and_keys_must_all_hold() {
        let holds = |key, value: &str| match key {
            NetworkKey::Name => value == "app",
            NetworkKey::Vni => value == "4096",
            _ => false,
        };
        assert!(matches_all(&filters(&[]), holds));
        assert!(matches_all(&filters(&["name=web", "name=app"]), holds));
        assert!(matches_all(&filters(&["name=web", "vni=4096", "name=app"]), holds));
        assert!(!matches_all(&filters(&["name=app", "vni=4097"]), holds));
    }

    #[test]
    fn several_labels_must_all_be_there() {
        let holds = |_, value: &str| value == "tier=web";
        assert!(matches_all(&filters(&["label=tier=web"]), holds));
        assert!(!matches_all(&filters(&["label=tier=web", "label=team=a"]), holds));
    }
}
