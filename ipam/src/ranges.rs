//! Sets of addresses as disjoint ranges of numbers, so that no list of addresses is ever made.

use std::collections::BTreeMap;

/// The numbers from `first` to `last`, both inclusive; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    first: u128,
    last: u128,
}

impl Range {
    /// The range between two numbers, in either order.
    pub(crate) fn new(a: u128, b: u128) -> Self {
        Self { first: a.min(b), last: a.max(b) }
    }

    pub(crate) fn first(self) -> u128 {
        self.first
    }

    pub(crate) fn last(self) -> u128 {
        self.last
    }

    /// How many numbers; saturates for the whole space.
    pub(crate) fn size(self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    pub(crate) fn contains(self, value: u128) -> bool {
        self.first <= value && value <= self.last
    }

    pub(crate) fn intersection(self, other: Self) -> Option<Self> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (first <= last).then_some(Self { first, last })
    }
}

/// A set of numbers as disjoint ranges that do not touch, by their first number. Every operation on
/// one range or one number takes logarithmic time, and time for each stored range that it removes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    ranges: BTreeMap<u128, u128>,
    /// The number of members; wraps only for the whole IPv6 space, which no subnet is.
    count: u128,
}

impl RangeSet {
    pub(crate) fn count(&self) -> u128 {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn first(&self) -> Option<u128> {
        self.ranges.first_key_value().map(|(&first, _)| first)
    }

    /// The ranges in order, from either end.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = Range> + '_ {
        self.ranges.iter().map(|(&first, &last)| Range { first, last })
    }

    /// The last stored range that overlaps this one.
    pub(crate) fn overlap(&self, range: Range) -> Option<Range> {
        let (&first, &last) = self.ranges.range(..=range.last).next_back()?;
        (last >= range.first).then_some(Range { first, last })
    }

    pub(crate) fn contains(&self, value: u128) -> bool {
        self.overlap(Range::new(value, value)).is_some()
    }

    /// What the set has in common with a range, last first.
    pub(crate) fn within(&self, range: Range) -> impl Iterator<Item = Range> + '_ {
        self.ranges
            .range(..=range.last)
            .rev()
            .map(|(&first, &last)| Range { first, last })
            .map_while(move |stored| stored.intersection(range))
    }

    pub(crate) fn insert(&mut self, range: Range) {
        let (mut first, mut last) = (range.first, range.last);
        // Ranges that touch are joined as well, so the search reaches one number further on both
        // sides.
        let reach = Range { first: first.saturating_sub(1), last: last.saturating_add(1) };
        while let Some(old) = self.overlap(reach) {
            self.take(old);
            first = first.min(old.first);
            last = last.max(old.last);
        }
        self.put(Range { first, last });
    }

    pub(crate) fn remove(&mut self, range: Range) {
        while let Some(old) = self.overlap(range) {
            self.take(old);
            if old.first < range.first {
                self.put(Range { first: old.first, last: range.first - 1 });
            }
            if old.last > range.last {
                self.put(Range { first: range.last + 1, last: old.last });
            }
        }
    }

    /// The ranges of `within` that are not in the set, in order.
    pub(crate) fn gaps(&self, within: Range) -> Vec<Range> {
        let mut rest = Self::default();
        rest.insert(within);
        for range in self.within(within) {
            rest.remove(range);
        }
        rest.iter().collect()
    }

    fn take(&mut self, range: Range) {
        self.ranges.remove(&range.first);
        self.count = self.count.wrapping_sub((range.last - range.first).wrapping_add(1));
    }

    fn put(&mut self, range: Range) {
        self.ranges.insert(range.first, range.last);
        self.count = self.count.wrapping_add((range.last - range.first).wrapping_add(1));
    }
}

/// The largest aligned powers of two that make up a range, in order, none larger than `2^max_bits`:
/// (first, bits).
pub(crate) fn aligned_pieces(range: Range, max_bits: u8) -> Vec<(u128, u8)> {
    let mut pieces = Vec::new();
    let mut next = Some(range.first);
    while let Some(first) = next.filter(|&first| first <= range.last) {
        let mut bits = 0;
        while bits < max_bits {
            let span = span(bits + 1);
            let fits = first & span == 0 && range.last - first >= span;
            if !fits {
                break;
            }
            bits += 1;
        }
        pieces.push((first, bits));
        next = first.checked_add(span(bits)).and_then(|last| last.checked_add(1));
    }
    pieces
}

/// The first aligned range of `2^bits` numbers inside `within` that has nothing in common with
/// `occupied` and that `fits` accepts.
pub(crate) fn first_free_aligned(
    occupied: &RangeSet,
    within: Range,
    bits: u8,
    fits: impl Fn(Range) -> bool,
) -> Option<Range> {
    let span = span(bits);
    let align_up = |value: u128| value.checked_add(span).map(|sum| sum & !span);
    let mut first = align_up(within.first)?;
    while within.last >= first && within.last - first >= span {
        let candidate = Range::new(first, first + span);
        first = match occupied.overlap(candidate) {
            Some(obstacle) => align_up(obstacle.last.max(candidate.first).checked_add(1)?)?,
            None if fits(candidate) => return Some(candidate),
            None => candidate.last.checked_add(1)?,
        };
    }
    None
}

/// `2^bits - 1`, for `bits` up to 128.
pub(crate) fn span(bits: u8) -> u128 {
    if bits == 0 { 0 } else { u128::MAX >> (128 - u32::from(bits.min(128))) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_range_set_agrees_with_a_set_of_numbers(
            steps in prop::collection::vec((any::<bool>(), 0u128..64, 0u128..64), 0..40),
        ) {
            let mut ranges = RangeSet::default();
            let mut numbers = BTreeSet::new();
            for (insert, a, b) in steps {
                let range = Range::new(a, b);
                if insert {
                    ranges.insert(range);
                    numbers.extend(range.first..=range.last);
                } else {
                    ranges.remove(range);
                    numbers.retain(|&n| !range.contains(n));
                }
                prop_assert_eq!(ranges.count(), numbers.len() as u128);
                prop_assert_eq!(ranges.first(), numbers.first().copied());
                prop_assert!((0..64).all(|n| ranges.contains(n) == numbers.contains(&n)));
                let gaps: u128 = ranges.gaps(Range::new(0, 63)).into_iter().map(Range::size).sum();
                prop_assert_eq!(gaps + ranges.count(), 64);
            }
        }

        #[test]
        fn aligned_pieces_cover_the_range_exactly(a in 0u128..4096, b in 0u128..4096, max in 0u8..8) {
            let range = Range::new(a, b);
            let mut expected = range.first();
            for (first, bits) in aligned_pieces(range, max) {
                prop_assert!(bits <= max && first & span(bits) == 0);
                prop_assert_eq!(first, expected);
                expected = first + span(bits) + 1;
            }
            prop_assert_eq!(expected, range.last() + 1);
        }
    }

    #[test]
    fn the_ends_of_the_number_space_do_not_overflow() {
        let mut set = RangeSet::default();
        set.insert(Range::new(u128::MAX - 1, u128::MAX));
        set.insert(Range::new(0, 0));
        assert_eq!(set.count(), 3);
        set.remove(Range::new(u128::MAX, u128::MAX));
        assert!(set.contains(u128::MAX - 1) && !set.contains(u128::MAX));
        assert_eq!(aligned_pieces(Range::new(0, u128::MAX), 128), [(0, 128)]);
        assert_eq!(first_free_aligned(&set, Range::new(u128::MAX - 3, u128::MAX), 2, |_| true), None);
    }
}
