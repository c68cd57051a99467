//! Identifiers: 96 random bits, written as 24 lowercase hexadecimal characters.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Characters of an identifier.
const LEN: usize = 24;

/// A text that is no identifier.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no id: an id is 24 lowercase hexadecimal characters")]
pub struct InvalidId {
    /// What was given.
    pub text: String,
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Draws a new identifier from the kernel's random source.
            ///
            /// # Errors
            /// When the kernel has no randomness to give, which happens only early in a machine's
            /// boot.
            pub fn random() -> Result<Self, getrandom::Error> {
                let mut bytes = [0u8; LEN / 2];
                getrandom::fill(&mut bytes)?;
                Ok(Self(bytes.iter().map(|b| format!("{b:02x}")).collect()))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Its first `n` characters (at most 24): enough to tell objects of one node apart, as
            /// device names do.
            pub fn short(&self, n: usize) -> &str {
                &self.0[..n.min(LEN)]
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid = text.len() == LEN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if valid { Ok(Self(text.to_owned())) } else { Err(InvalidId { text: text.to_owned() }) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

identifier!(
    /// A host that is or was a member of the cluster.
    NodeId
);
identifier!(
    /// An overlay network.
    NetworkId
);
identifier!(
    /// One container's attachment to one network.
    EndpointId
);
identifier!(
    /// A service.
    ServiceId
);
