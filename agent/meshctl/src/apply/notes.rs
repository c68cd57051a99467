//! Notes and warnings about a file that can be applied.

use std::fmt;

/// A key without effect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Ignored {
    /// Its line, counted from 1.
    pub(crate) line: u64,
    /// The path of keys to it, separated by dots.
    pub(crate) key: String,
    /// Why it has no effect.
    #[serde(skip)]
    pub(crate) why: Why,
}

/// Why a key has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// It concerns the container, not its networks; the value is the key without the names in its
    /// path.
    Container(String),
    /// It concerns networks, but Mesh does not support it, or not this value.
    NoUse,
    /// Compose has no such key.
    Unknown {
        /// The key that was probably meant.
        hint: Option<String>,
    },
    /// The profiles of the service are not active.
    Inactive(String),
}

/// A probable mistake.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Warning {
    /// Its line, counted from 1.
    pub(crate) line: u64,
    /// The path of keys to it, separated by dots; empty for a variable.
    pub(crate) key: String,
    /// The mistake, and what was probably meant.
    pub(crate) message: String,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.key)?;
        match &self.why {
            Why::Inactive(profiles) => write!(f, ", profile {profiles} is not active"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Returns the warning about a key that Compose does not have.
pub(super) fn unknown(ignored: &Ignored) -> Option<Warning> {
    let Why::Unknown { hint } = &ignored.why else { return None };
    let hint = hint.as_ref().map_or_else(String::new, |hint| format!("; {hint}"));
    let message = format!("{} is not a Compose key and has no effect{hint}", ignored.key);
    Some(Warning { line: ignored.line, key: ignored.key.clone(), message })
}
