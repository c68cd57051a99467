//! Allocation of space in the array `BACKEND_TABLES`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Tables begin at multiples of this number: an element of the array has this many entries, and is
/// written as a whole.
pub const ALIGNMENT: u32 = 16;

/// The array's space, in entries. A part is free, in use, or resting: released, but programs that
/// looked it up just now may still read it.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    /// Free parts by their start; adjacent parts are merged.
    free: BTreeMap<u32, u32>,
    /// The same by length, to find the smallest sufficient part.
    by_length: BTreeSet<(u32, u32)>,
    /// Resting parts, each with the time when it becomes free, in this order.
    resting: VecDeque<(Duration, u32, u32)>,
}

/// [`capacity_for`] returns a multiple of this.
const STEP: u32 = 1 << 16;
const LARGEST: u32 = 1 << 28;

/// Returns the size that the array should have for tables with this many entries, if it has
/// `present` now. Includes a reserve, since a changed table is built before the old one is
/// released, and free space is fragmented. Enlarging requires loading all programs, so the size at
/// least doubles.
pub fn capacity_for(room: u64, present: u32) -> u32 {
    let wanted = u32::try_from(room + room / 4).unwrap_or(LARGEST).min(LARGEST).next_multiple_of(STEP);
    if wanted <= present { present } else { wanted.max(present.saturating_mul(2).min(LARGEST)) }
}

/// Returns the space of a table of `size` entries.
pub(crate) const fn padded(size: u32) -> u32 {
    size.next_multiple_of(ALIGNMENT)
}

impl Space {
    /// Creates a space of this many entries, all free.
    pub(crate) fn new(capacity: u32) -> Self {
        let mut space = Self { free: BTreeMap::new(), by_length: BTreeSet::new(), resting: VecDeque::new() };
        space.widen(0, capacity);
        space
    }

    /// Enlarges the array from `from` to `to` entries.
    pub(crate) fn widen(&mut self, from: u32, to: u32) {
        let [from, to] = [from, to].map(|capacity| capacity - capacity % ALIGNMENT);
        if to > from {
            self.release(from, to - from);
        }
    }

    /// Returns the same array with everything free except resting parts.
    pub(crate) fn only_resting(self, capacity: u32) -> Self {
        let mut space = Self::new(capacity);
        for (until, start, length) in self.resting {
            if space.claim(start, length) {
                space.resting.push_back((until, start, length));
            }
        }
        space
    }

    /// Allocates space for a table at the start of the smallest sufficient part.
    pub(crate) fn allocate(&mut self, size: u32) -> Option<u32> {
        let length = padded(size);
        let (found, start) = self.by_length.range((length, 0)..).next().copied()?;
        self.remove(start, found);
        if found > length {
            self.insert(start + length, found - length);
        }
        Some(start)
    }

    /// Allocates a given part; returns false if it is not free or not a valid place for a table.
    pub(crate) fn claim(&mut self, start: u32, size: u32) -> bool {
        let Some((free_start, free_length)) = self.free.range(..=start).next_back().map(|(s, l)| (*s, *l))
        else {
            return false;
        };
        let Some(end) = size.checked_next_multiple_of(ALIGNMENT).and_then(|length| start.checked_add(length))
        else {
            return false;
        };
        if !start.is_multiple_of(ALIGNMENT) || size == 0 || end > free_start + free_length {
            return false;
        }
        self.remove(free_start, free_length);
        if start > free_start {
            self.insert(free_start, start - free_start);
        }
        if free_start + free_length > end {
            self.insert(end, free_start + free_length - end);
        }
        true
    }

    /// Releases a table's space: it becomes free when [`Space::wake`] is called at `until` or
    /// later.
    pub(crate) fn rest(&mut self, start: u32, size: u32, until: Duration) {
        self.resting.push_back((until, start, padded(size)));
    }

    /// Frees the parts whose rest has ended by now.
    pub(crate) fn wake(&mut self, now: Duration) {
        while let Some((_, start, length)) = self.resting.pop_front_if(|(until, _, _)| *until <= now) {
            self.release(start, length);
        }
    }

    /// Returns the size of the largest free part.
    pub(crate) fn largest(&self) -> u32 {
        self.by_length.last().map_or(0, |(length, _)| *length)
    }

    /// Returns when the next rest ends.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        self.resting.front().map(|(until, _, _)| *until)
    }

    /// Returns the number of free entries.
    #[cfg(test)]
    fn free(&self) -> u32 {
        self.free.values().sum()
    }

    fn release(&mut self, start: u32, length: u32) {
        let (mut start, mut length) = (start, length);
        let before = self.free.range(..start).next_back().map(|(s, l)| (*s, *l));
        if let Some((before, before_length)) = before
            && before + before_length == start
        {
            self.remove(before, before_length);
            (start, length) = (before, before_length + length);
        }
        if let Some(after_length) = self.free.get(&(start + length)).copied() {
            self.remove(start + length, after_length);
            length += after_length;
        }
        self.insert(start, length);
    }

    fn insert(&mut self, start: u32, length: u32) {
        self.free.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn remove(&mut self, start: u32, length: u32) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn released_space_is_reused_only_after_its_rest() {
        let mut space = Space::new(32);
        assert_eq!((space.allocate(10), space.allocate(16), space.allocate(1)), (Some(0), Some(16), None));
        space.rest(0, 10, ms(5));
        assert_eq!(space.next_wake(), Some(ms(5)));
        space.wake(ms(4));
        assert_eq!(space.allocate(1), None);
        space.wake(ms(5));
        assert_eq!(space.allocate(1), Some(0));
    }

    #[test]
    fn a_part_can_be_claimed_once_and_only_where_a_table_may_begin() {
        let mut space = Space::new(64);
        assert!(space.claim(16, 20));
        assert!(!space.claim(32, 1) && !space.claim(16, 1) && !space.claim(0, 17));
        assert!(
            !space.claim(4, 1) && !space.claim(48, 17) && !space.claim(0, 0) && !space.claim(48, u32::MAX)
        );
        assert!(space.claim(0, 16) && space.claim(48, 16));
        assert_eq!(space.allocate(1), None);
    }

    proptest! {
        #[test]
        fn tables_never_overlap_and_all_space_is_released(
            steps in prop::collection::vec((any::<bool>(), 1u32..70), 1..200)
        ) {
            let mut space = Space::new(1024);
            let mut used: Vec<(u32, u32)> = Vec::new();
            for (now, (give_up, size)) in (0u64..).zip(steps) {
                space.wake(ms(now));
                if give_up && !used.is_empty() {
                    let (start, size) = used.swap_remove(size as usize % used.len());
                    space.rest(start, size, ms(now + 3));
                } else if let Some(start) = space.allocate(size) {
                    prop_assert!(start + size <= 1024 && start % ALIGNMENT == 0);
                    prop_assert!(used.iter().all(|(other, length)| start + padded(size) <= *other || other + length <= start));
                    used.push((start, size));
                }
            }
            for (start, size) in used {
                space.rest(start, size, ms(1000));
            }
            space.wake(ms(1000));
            prop_assert_eq!(space.free(), 1024);
            prop_assert_eq!(space.allocate(1024), Some(0));
        }
    }
}
