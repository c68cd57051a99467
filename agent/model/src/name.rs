//! Names that people give.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most characters of a name: a DNS label's limit (RFC 1035, section 2.3.4), since names resolve.
const MAX_LEN: usize = 63;

/// A name of a network, endpoint, service or node: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A text that is no name.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no valid name: 1 to 63 of a-z A-Z 0-9 _ . - and a letter or digit first")]
pub struct InvalidName {
    /// What was given.
    pub text: String,
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both are the same name. Names that differ in case only are the same name, as in DNS.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }

    /// The form that all spellings of the same name share, for keys.
    #[must_use]
    pub fn folded(&self) -> Self {
        Self(self.0.to_ascii_lowercase())
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if first && rest && text.len() <= MAX_LEN {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName { text: text.to_owned() })
        }
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_case_only_are_the_same_name() {
        let [web, upper, other]: [Name; 3] = ["web", "WEB", "web2"].map(|text| text.parse().unwrap());
        assert!(web.is_same(&upper) && !web.is_same(&other));
        assert_eq!(web.folded(), upper.folded());
    }

    #[test]
    fn a_name_may_hold_dots_dashes_and_underscores_but_not_begin_with_them() {
        for good in ["a", "web-1", "My_net.v2", &"x".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-web", ".net", "_x", "a b", "naïve", "a/b", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
