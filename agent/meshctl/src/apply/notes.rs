//! Notes and warnings about a file that can be applied.

use std::fmt;

/// A key that is without effect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Ignored {
    /// Where, counted from 1.
    pub(crate) line: u64,
    /// All keys that lead to it, with dots between them.
    pub(crate) key: String,
    /// Why it is without effect.
    #[serde(skip)]
    pub(crate) why: Why,
}

/// Why a key is without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// It concerns the container and not its networks; this is the key without the names that lead
    /// to it.
    Container(String),
    /// It concerns networks, and Mesh has no use for it, or not for this value.
    NoUse,
    /// Compose has no such key.
    Unknown {
        /// What was probably meant.
        hint: Option<String>,
    },
    /// The profiles of the service are not active.
    Inactive(String),
}

/// Something that is probably a mistake.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Warning {
    /// Where, counted from 1.
    pub(crate) line: u64,
    /// All keys that lead to it, with dots between them; empty for a variable.
    pub(crate) key: String,
    /// What is wrong, and what was probably meant.
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

/// The warning about a key that Compose does not have.
pub(super) fn unknown(ignored: &Ignored) -> Option<Warning> {
    let Why::Unknown { hint } = &ignored.why else { return None };
    let hint = hint.as_ref().map_or_else(String::new, |hint| format!("; {hint}"));
    let message = format!("{} is not a Compose key and has no effect{hint}", ignored.key);
    Some(Warning { line: ignored.line, key: ignored.key.clone(), message })
}
