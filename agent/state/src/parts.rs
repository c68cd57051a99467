//! Ordered maps whose copies are cheap to make and to compare.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_model::{BackendId, ServiceId};

/// Number of parts of a map. A change in a copy copies one part: of ten thousand services, about
/// forty.
const PARTS: usize = 256;

/// A key that says which part it is in.
pub trait Parted: Ord + Clone {
    /// Any number: those that are alike in the last eight bits are in one part.
    fn number(&self) -> usize;
}

/// By the first two characters, so that all parts one after the other are in order; ids are random.
impl Parted for ServiceId {
    fn number(&self) -> usize {
        usize::from_str_radix(self.short(2), 16).unwrap_or_default()
    }
}

/// Numbers are given one after the other.
impl Parted for BackendId {
    fn number(&self) -> usize {
        usize::try_from(self.get()).unwrap_or_default()
    }
}

/// One of a map's parts. Two that are the same `Arc` hold the same.
pub type Part<K, V> = Arc<BTreeMap<K, V>>;

/// A map in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts<K: Ord, V>(Arc<Vec<Part<K, V>>>);

impl<K: Ord, V> Default for Parts<K, V> {
    fn default() -> Self {
        let none = Arc::new(BTreeMap::new());
        Self(Arc::new(vec![none; PARTS]))
    }
}

impl<K: Parted, V: Clone> Parts<K, V> {
    /// Returns the value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.0[index(key)].get(key)
    }

    /// All entries, part by part.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().flat_map(|part| part.iter())
    }

    /// Returns the number of entries.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|part| part.len()).sum()
    }

    /// The parts; there are always as many.
    pub fn parts(&self) -> &[Part<K, V>] {
        &self.0
    }

    /// The value of a key that is there, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        // A part that is not changed stays the same.
        self.get(key)?;
        self.part_mut(key).get_mut(key)
    }

    /// Inserts or replaces an entry.
    pub fn insert(&mut self, key: K, value: V) {
        self.part_mut(&key).insert(key, value);
    }

    /// Removes an entry and returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.get(key)?;
        self.part_mut(key).remove(key)
    }

    fn part_mut(&mut self, key: &K) -> &mut BTreeMap<K, V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.0)[index(key)])
    }
}

impl<K: Parted, V: Clone + Eq> Parts<K, V> {
    /// The keys whose values differ between two versions, those that only one has included.
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a K> {
        let pairs = self.0.iter().zip(before.0.iter());
        pairs.filter(|(now, then)| !Arc::ptr_eq(now, then)).flat_map(|(now, then)| {
            let changed = now.iter().filter(|(key, value)| then.get(*key) != Some(*value));
            let gone = then.keys().filter(|key| !now.contains_key(*key));
            changed.map(|(key, _)| key).chain(gone)
        })
    }
}

impl<K: Parted, V: Clone> FromIterator<(K, V)> for Parts<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut parts: Vec<BTreeMap<K, V>> = std::iter::repeat_with(BTreeMap::new).take(PARTS).collect();
        for (key, value) in entries {
            parts[index(&key)].insert(key, value);
        }
        Self(Arc::new(parts.into_iter().map(Arc::new).collect()))
    }
}

/// Which part a key is in.
pub fn index(key: &impl Parted) -> usize {
    key.number() % PARTS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn backend(n: u32) -> BackendId {
        BackendId::try_from(n).unwrap()
    }

    #[test]
    fn services_come_in_the_order_of_their_ids() {
        let ids: Vec<ServiceId> =
            (0..1000u32).map(|n| format!("{:024x}", u128::from(n) << 84).parse().unwrap()).collect();
        let parts: Parts<ServiceId, ()> = ids.iter().rev().map(|id| (id.clone(), ())).collect();
        assert!(parts.iter().map(|(id, ())| id).eq(&ids));
        assert_eq!(parts.len(), 1000);
    }

    #[test]
    fn a_change_of_a_copy_leaves_all_other_parts_the_same() {
        let before: Parts<BackendId, u32> = (1..5000).map(|n| (backend(n), n)).collect();
        let mut now = before.clone();
        now.insert(backend(300), 7);
        now.remove(&backend(4_000_000));
        assert!(now.get_mut(&backend(4_000_000)).is_none());
        let same = now.parts().iter().zip(before.parts()).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(same, PARTS - 1);
        assert_eq!((before.get(&backend(300)), now.get(&backend(300))), (Some(&300), Some(&7)));
    }

    proptest! {
        /// Against a map and a set that are simpler.
        #[test]
        fn what_has_changed_is_what_differs(
            first in prop::collection::btree_map(1u32..2000, 0u8..3, 0..200),
            changes in prop::collection::vec((1u32..2000, prop::option::of(0u8..3)), 0..50),
        ) {
            let before: Parts<BackendId, u8> = first.iter().map(|(key, value)| (backend(*key), *value)).collect();
            let (mut now, mut expected) = (before.clone(), first.clone());
            for (key, value) in changes {
                if let Some(value) = value {
                    now.insert(backend(key), value);
                    expected.insert(key, value);
                } else {
                    prop_assert_eq!(now.remove(&backend(key)), expected.remove(&key));
                }
            }
            let all: BTreeMap<u32, u8> = now.iter().map(|(key, value)| (key.get(), *value)).collect();
            prop_assert_eq!(&all, &expected);
            let changed: BTreeSet<u32> = now.changed_since(&before).map(|key| key.get()).collect();
            let differs = |key: &u32| first.get(key) != expected.get(key);
            let wanted: BTreeSet<u32> = first.keys().chain(expected.keys()).copied().filter(differs).collect();
            prop_assert_eq!(changed, wanted);
            prop_assert_eq!(now == before, first == expected);
        }
    }
}
