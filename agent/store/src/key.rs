//! Keys, values, revisions and ranges of keys

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A key: any bytes, ordered bytewise. Cheap to clone.
///
/// An empty key can be built (it is the start of [`KeyRange::all`]) but cannot be written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

/// A value: any bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Arc<[u8]>);

impl Key {
    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key as text, when it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The least key greater than this one: where the next page of a limited range starts.
    #[must_use]
    pub fn successor(&self) -> Self {
        let mut bytes = self.0.to_vec();
        bytes.push(0);
        Self(bytes.into())
    }

    /// Whether the key has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Value {
    /// The bytes of the value.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

macro_rules! bytes_newtype {
    ($name:ident) => {
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.as_bytes().into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into_bytes().into())
            }
        }

        impl From<&[u8]> for $name {
            fn from(bytes: &[u8]) -> Self {
                Self(bytes.into())
            }
        }

        impl From<Vec<u8>> for $name {
            fn from(bytes: Vec<u8>) -> Self {
                Self(bytes.into())
            }
        }

        impl Deref for $name {
            type Target = [u8];

            fn deref(&self) -> &[u8] {
                &self.0
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl Borrow<[u8]> for $name {
            fn borrow(&self) -> &[u8] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"{}\"", self.0.escape_ascii())
            }
        }
    };
}

bytes_newtype!(Key);
bytes_newtype!(Value);

/// Bytes outside printable ASCII are escaped, so that a key fits in a one-line message.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// A point in the store's history. Each transaction that changes something makes the next one.
///
/// An empty store is at [`Revision::FIRST`]; [`Revision::NEVER`] stands for the creation of a key
/// that is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// No revision: the create and mod revision of an absent key in a comparison.
    pub const NEVER: Self = Self(0);
    /// The revision of a store in which nothing was ever written (etcd's choice too).
    pub const FIRST: Self = Self(1);

    /// The revision after this one: where to watch from after a range at this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A live key with its value and where both come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Value,
    /// The revision at which the key came to be, the last time that it was absent before.
    pub create_revision: Revision,
    /// The revision of the last write of the key.
    pub mod_revision: Revision,
    /// Number of writes since the key came to be; 1 for a new key.
    pub version: u64,
}

/// The keys from `start` up to but without `end`; `end: None` is no upper bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: Key,
    /// The first key past the range.
    pub end: Option<Key>,
}

impl KeyRange {
    /// The keys from `start` up to but without `end`.
    pub fn new(start: impl Into<Key>, end: impl Into<Key>) -> Self {
        Self { start: start.into(), end: Some(end.into()) }
    }

    /// One key.
    pub fn key(key: impl Into<Key>) -> Self {
        let start = key.into();
        let end = Some(start.successor());
        Self { start, end }
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: impl Into<Key>) -> Self {
        let start = prefix.into();
        // The end is the prefix with its last byte that can grow grown by one, and what follows
        // that byte cut off.
        let end = start.iter().rposition(|&byte| byte < u8::MAX).map(|last| {
            let mut end = start[..=last].to_vec();
            end[last] += 1;
            Key::from(end)
        });
        Self { start, end }
    }

    /// Every key.
    pub fn all() -> Self {
        Self { start: Key::from(""), end: None }
    }

    /// Every key from `start` on.
    pub fn from_key(start: impl Into<Key>) -> Self {
        Self { start: start.into(), end: None }
    }

    /// The same range without the keys before `start`: the next page of a limited range.
    #[must_use]
    pub fn starting_at(self, start: Key) -> Self {
        Self { start: start.max(self.start), end: self.end }
    }

    /// Whether the range has `key`.
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.end.as_ref().is_none_or(|end| *key < **end)
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_range_has_exactly_the_keys_with_the_prefix() {
        let range = KeyRange::prefix("net/");
        assert!(range.contains(b"net/"));
        assert!(range.contains(b"net/\xff\xff"));
        assert!(!range.contains(b"net"));
        assert!(!range.contains(b"net0"));

        let high = KeyRange::prefix(vec![b'a', 0xff, 0xff]);
        assert_eq!(high.end, Some(Key::from("b")));
        assert!(high.contains(b"a\xff\xff\xff"));
        assert!(!high.contains(b"a\xff\xfe"));

        assert_eq!(KeyRange::prefix(vec![0xff]).end, None);
        assert_eq!(KeyRange::prefix(""), KeyRange::all());
    }

    #[test]
    fn a_key_range_has_one_key() {
        let range = KeyRange::key("a");
        assert!(range.contains(b"a"));
        assert!(!range.contains(b"a\0"));
        assert!(!range.contains(b""));
        assert!(!range.contains(b"b"));
    }

    #[test]
    fn a_key_is_displayed_on_one_line() {
        assert_eq!(Key::from(&b"a\n\xff"[..]).to_string(), "a\\n\\xff");
    }
}
