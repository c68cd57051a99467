//! Digests of tables: there may be ten thousand, which are compared periodically.

use super::rendezvous::mix;

/// A digest of a table's picks. Different tables have equal digests with probability 2^-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    size: u32,
    hash: u64,
}

impl Digest {
    /// Returns the digest of a table with these entries.
    pub fn of(backends: &[u32]) -> Self {
        let hash = backends.iter().fold(0, |hash: u64, backend| mix(hash ^ u64::from(*backend)));
        Self { size: u32::try_from(backends.len()).unwrap_or(u32::MAX), hash }
    }

    /// Returns the number of entries of the table.
    pub const fn size(self) -> u32 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_differ_in_one_entry_their_order_or_their_size_have_different_digests() {
        let tables: [&[u32]; 7] = [&[], &[0], &[0, 0], &[1, 2, 3], &[1, 3, 2], &[1, 2, 4], &[1, 2]];
        for (place, table) in tables.iter().enumerate() {
            for other in &tables[place + 1..] {
                assert_ne!(Digest::of(table), Digest::of(other), "{table:?} {other:?}");
            }
            let copy = table.to_vec();
            assert_eq!(Digest::of(table), Digest::of(&copy));
        }
    }
}
