//! Names of everything that a lab makes.

use crate::{Error, Netns, Result};

/// Longest prefix or container name.
const MAX_LEN: usize = 32;

/// The naming of one lab.
#[derive(Debug, Clone)]
pub(super) struct Names<'a> {
    prefix: &'a str,
}

impl<'a> Names<'a> {
    pub(super) fn new(prefix: &'a str) -> Self {
        Self { prefix }
    }

    /// Namespace of the bridge.
    pub(super) fn underlay(&self) -> Netns {
        self.namespace("underlay")
    }

    /// Namespace of the machine outside.
    pub(super) fn client(&self) -> Netns {
        self.namespace("client")
    }

    /// Namespace of the machine outside on the second network.
    pub(super) fn second_client(&self) -> Netns {
        self.namespace("client2")
    }

    /// Namespace of a host or container.
    pub(super) fn namespace(&self, name: &str) -> Netns {
        Netns::named(format!("{}-{name}", self.prefix))
    }

    /// Directory in bpffs of a host's meshd.
    pub(super) fn bpffs(&self, host: &str) -> std::path::PathBuf {
        format!("/sys/fs/bpf/mesh-{}-{host}", self.prefix).into()
    }
}

/// Name of host `number`.
pub(super) fn host(number: usize) -> String {
    format!("h{number}")
}

/// Whether the lab itself uses this name for a host or machine, so that no container can have it.
pub(super) fn is_reserved(name: &str) -> bool {
    matches!(name, "underlay" | "client" | "client2")
        || name
            .strip_prefix('h')
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Refuses what cannot be part of a file's and namespace's name.
pub(super) fn validate(name: &str) -> Result<()> {
    let tail = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let valid = name.len() <= MAX_LEN
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.bytes().all(tail);
    if valid { Ok(()) } else { Err(Error::InvalidName(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-a", "a b", "a\n", &"x".repeat(33)] {
            assert!(validate(bad).is_err(), "{bad:?}");
        }
        for good in ["ml", "ml-2", "web.1", "A_b"] {
            assert!(validate(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_container_cannot_have_a_hosts_name() {
        assert!(is_reserved("h1") && is_reserved("h20") && is_reserved("client") && is_reserved("underlay"));
        assert!(!is_reserved("h") && !is_reserved("h1a") && !is_reserved("web"));
    }
}
