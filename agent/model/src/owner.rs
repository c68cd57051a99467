//! Who an endpoint was attached for: the key by which a container runtime finds it again.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::IfName;

/// Most bytes of a configuration's name and of a container's id.
const MAX_LEN: usize = 255;

/// The interface through which a runtime attaches containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// The Container Network Interface: podman, containerd, Kubernetes, Nomad.
    Cni,
}

impl Runtime {
    /// Its name, as users see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cni => "cni",
        }
    }
}

/// One attachment in a runtime's terms.
///
/// It never contains a namespace's path or a pod's name: a runtime uses both again for another
/// container while the old one's attachment still stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Owner {
    runtime: Runtime,
    config: String,
    container: String,
    ifname: IfName,
}

/// An [`Owner`] as it is stored, before it is checked.
#[derive(Deserialize)]
struct Fields {
    runtime: Runtime,
    config: String,
    container: String,
    ifname: IfName,
}

/// A text that cannot be part of an [`Owner`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOwner {
    /// A configuration's name.
    #[error(
        "{0:?} is no valid name of a network configuration: 1 to 255 letters, digits, _ . - and a letter or digit first"
    )]
    Config(String),
    /// A container's id.
    #[error("{0:?} is no valid container id: 1 to 255 letters, digits, _ . - and a letter or digit first")]
    Container(String),
}

impl Owner {
    /// The key of the interface `ifname` that the runtime's configuration `config` gives to
    /// `container`. Both texts have the characters that the CNI specification allows.
    pub fn new(
        runtime: Runtime,
        config: &str,
        container: &str,
        ifname: IfName,
    ) -> Result<Self, InvalidOwner> {
        if !is_valid(config) {
            return Err(InvalidOwner::Config(shortened(config)));
        }
        if !is_valid(container) {
            return Err(InvalidOwner::Container(shortened(container)));
        }
        Ok(Self { runtime, config: config.to_owned(), container: container.to_owned(), ifname })
    }

    /// The runtime's interface.
    pub const fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// The name of the runtime's network configuration.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// The runtime's id of the container or sandbox.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The interface's name inside the container.
    pub const fn ifname(&self) -> &IfName {
        &self.ifname
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runtime, config, container, ifname } = self;
        write!(f, "{}:{config}/{container}/{ifname}", runtime.as_str())
    }
}

impl TryFrom<Fields> for Owner {
    type Error = InvalidOwner;

    fn try_from(fields: Fields) -> Result<Self, InvalidOwner> {
        Self::new(fields.runtime, &fields.config, &fields.container, fields.ifname)
    }
}

/// The specification's pattern, with a limit of length: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
fn is_valid(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    first && rest && text.len() <= MAX_LEN
}

/// As much of a refused text as an error shows.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(config: &str, container: &str) -> Result<Owner, InvalidOwner> {
        Owner::new(Runtime::Cni, config, container, "eth0".parse().unwrap())
    }

    #[test]
    fn ids_with_other_characters_than_the_specification_allows_are_refused() {
        assert!(owner("app", "f09415a0a022").is_ok());
        assert!(owner("app", "default-web_1.a").is_ok());
        for id in ["", "../x", "-a", ".a", "a/b", "a b", "a\u{1b}[1m", &"a".repeat(256)] {
            assert!(matches!(owner("app", id), Err(InvalidOwner::Container(_))), "{id:?}");
            assert!(matches!(owner(id, "abc"), Err(InvalidOwner::Config(_))), "{id:?}");
        }
    }

    #[test]
    fn a_stored_owner_is_checked_when_it_is_read() {
        let json = serde_json::to_string(&owner("app", "abc").unwrap()).unwrap();
        assert_eq!(serde_json::from_str::<Owner>(&json).unwrap(), owner("app", "abc").unwrap());
        assert!(serde_json::from_str::<Owner>(&json.replace("abc", "../abc")).is_err());
    }

    #[test]
    fn an_owner_is_shown_as_one_line() {
        assert_eq!(owner("app", "abc").unwrap().to_string(), "cni:app/abc/eth0");
    }
}
