//! From a set of backends to a table of picks: rendezvous hashing (Thaler and Ravishankar, "Using Name-Based Mappings to
//! Increase Hit Rates", IEEE/ACM Transactions on Networking 1998) with equal shares.
//!
//! The table is used as Maglev's is (Eisenbud et al., NSDI 2016): a flow's hash picks an entry. It is filled otherwise,
//! because Maglev's filling moves some 7 of 100 entries needlessly when one of ten backends goes, and this one 1 or 2, with shares
//! as even. It follows from the backends' numbers and the size alone, so that every node makes the same one, and a flow
//! that arrives through another node gets the same backend.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// Sizes of tables, in entries: primes, so that no pattern in hashes meets one in the table. Each is about four times the
/// one before: a table that changes its size moves every pick, and so that must be rare.
const SIZES: [u32; 5] = [251, 1021, 4093, 16_381, 65_537];

/// Entries that each backend has at least, as far as the largest table allows: shares differ by a hundredth then.
const ENTRIES_PER_BACKEND: u32 = 100;

/// Make other hashes than other users of the same function have.
const ENTRY_SEED: u64 = 0x6d65_7368_656e_7472;
const BACKEND_SEED: u64 = 0x6d65_7368_6261_636b;

/// How many entries the table of a service has that has `backends` backends, usable or not. One backend needs one.
pub(crate) fn size(backends: usize) -> u32 {
    let wanted = u32::try_from(backends).unwrap_or(u32::MAX).saturating_mul(ENTRIES_PER_BACKEND);
    let [.., largest] = SIZES;
    match backends {
        0 | 1 => 1,
        _ => SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(largest),
    }
}

/// The table: for each entry the backend that it picks. Empty without backends; one entry where there is no choice.
///
/// Each pair of an entry and a backend has a score, and no backend has more than its equal share, rounded up. Among the
/// assignments of that kind it is the one in which no entry and backend would both gain by having each other
/// (Gale and Shapley's stable matching; scores are the same for both sides, so that there is only one).
pub(crate) fn table(backends: &BTreeSet<u32>, size: u32) -> Vec<u32> {
    let Some(first) = backends.first() else { return Vec::new() };
    if backends.len() == 1 || size <= 1 {
        return vec![*first];
    }
    let share = (size as usize).div_ceil(backends.len());
    let mut bids: Vec<Backend> = backends.iter().map(|number| Backend::new(*number, share)).collect();
    let mut table = vec![*first; size as usize];
    for entry in 0..size {
        let mut bidder = Bid { score: (u64::MAX, u32::MAX), entry };
        // Each turn gives an entry its best backend; one that is full then loses its worst entry, which goes on to
        // its next best. Shares suffice for all entries, so this ends.
        while let Some((best, bid)) = bidder.next_best(&bids) {
            table[bid.entry as usize] = bids[best].number;
            let entries = &mut bids[best].entries;
            entries.push(Reverse(bid));
            if entries.len() <= share {
                break;
            }
            let Some(Reverse(worst)) = entries.pop() else { break };
            bidder = worst;
        }
    }
    table
}

/// A backend with the entries that it has so far, the worst first.
struct Backend {
    number: u32,
    hash: u64,
    entries: BinaryHeap<Reverse<Bid>>,
}

impl Backend {
    fn new(number: u32, share: usize) -> Self {
        let hash = mix(BACKEND_SEED ^ u64::from(number));
        Self { number, hash, entries: BinaryHeap::with_capacity(share + 1) }
    }
}

/// An entry's score with a backend; the backend's number decides between equal ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Bid {
    score: (u64, u32),
    entry: u32,
}

impl Bid {
    /// The entry's best backend of those that it likes less than the one that this bid was for.
    fn next_best(&self, backends: &[Backend]) -> Option<(usize, Self)> {
        let hash = mix(ENTRY_SEED ^ u64::from(self.entry));
        let scores = backends.iter().map(|backend| (mix(hash ^ backend.hash), backend.number));
        let (best, score) = scores.enumerate().filter(|(_, s)| *s < self.score).max_by_key(|(_, s)| *s)?;
        Some((best, Self { score, entry: self.entry }))
    }
}

/// The finaliser of splitmix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
const fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn shares(table: &[u32]) -> BTreeMap<u32, usize> {
        let mut shares = BTreeMap::new();
        for backend in table {
            *shares.entry(*backend).or_insert(0) += 1;
        }
        shares
    }

    #[test]
    fn a_table_has_a_hundred_entries_for_each_backend_up_to_the_largest() {
        let sizes = [0, 1, 2, 3, 10, 11, 655, 656, 100_000].map(size);
        assert_eq!(sizes, [1, 1, 251, 1021, 1021, 4093, 65_537, 65_537, 65_537]);
        for size in SIZES {
            assert!((2..size).take_while(|n| n * n <= size).all(|n| size % n != 0), "{size} is no prime");
        }
    }

    #[test]
    fn without_a_choice_there_is_one_entry_and_without_backends_none() {
        assert_eq!(table(&BTreeSet::new(), 251), Vec::<u32>::new());
        assert_eq!(table(&BTreeSet::from([7]), 251), [7]);
    }

    /// Nodes of different versions must pick alike: this table is part of the protocol between them.
    #[test]
    fn the_table_of_three_backends_is_the_one_that_every_version_makes() {
        let table = table(&BTreeSet::from([1, 2, 3]), 251);
        let digest = table.iter().fold(0, |digest, backend| mix(digest ^ u64::from(*backend)));
        assert_eq!((&table[..8], digest), (PICKS.as_slice(), DIGEST));
    }

    const PICKS: [u32; 8] = [2, 1, 3, 2, 1, 1, 1, 1];
    const DIGEST: u64 = 4_739_448_739_506_147_790;

    #[test]
    fn when_one_of_ten_goes_eleven_of_a_hundred_entries_move_on_average() {
        let (mut moved, mut all) = (0, 0);
        for service in 0..50 {
            let backends: BTreeSet<u32> = (1..=10).map(|n| service * 1000 + n * 7).collect();
            let before = table(&backends, size(10));
            for gone in &backends {
                let rest = backends.iter().copied().filter(|backend| backend != gone).collect();
                let after = table(&rest, size(10));
                moved += before.iter().zip(&after).filter(|(before, after)| before != after).count();
                all += before.len();
            }
        }
        let share = moved * 1000 / all;
        assert!((100..=115).contains(&share), "{share} of 1000 moved");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nobody_has_more_than_an_equal_share_rounded_up(
            backends in prop::collection::btree_set(1u32..0x3E_FFFF, 2..60)
        ) {
            let table = table(&backends, size(backends.len()));
            let shares = shares(&table);
            prop_assert_eq!(shares.len(), backends.len());
            let most = *shares.values().max().unwrap();
            prop_assert_eq!(most, table.len().div_ceil(backends.len()));
        }

        #[test]
        fn when_one_of_ten_goes_hardly_any_entry_moves_that_need_not(
            backends in prop::collection::btree_set(1u32..0x3E_FFFF, 10),
            gone in 0usize..10,
        ) {
            let before = table(&backends, size(10));
            let gone = *backends.iter().nth(gone).unwrap();
            let rest = backends.iter().copied().filter(|backend| *backend != gone).collect();
            let after = table(&rest, size(10));
            let needless = before.iter().zip(&after).filter(|(b, a)| **b != gone && b != a).count();
            prop_assert!(!after.contains(&gone));
            prop_assert!(needless * 100 <= before.len() * 4, "{} of {} needlessly", needless, before.len());
        }
    }
}
