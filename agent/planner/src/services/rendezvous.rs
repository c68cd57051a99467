//! Builds backend tables by rendezvous hashing (Thaler and Ravishankar, "Using Name-Based Mappings
//! to Increase Hit Rates", IEEE/ACM Transactions on Networking 1998), with almost equal shares.
//!
//! A table is used like Maglev's (Eisenbud et al., NSDI 2016): a flow's hash picks an entry. It is
//! filled differently: when one of ten backends is removed, Maglev moves about 7 of 100 entries
//! needlessly, this algorithm 3 of 1000. The table depends only on the backends' numbers and the
//! size. So every node builds the same table, and a flow that arrives through another node gets the
//! same backend.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use multiversion::multiversion;

/// Sizes of tables, in entries: powers of two, so that scores can be permutations. Each is four
/// times the previous one, except the last. A change of size moves every pick, so it must be rare.
const SIZES: [u32; 5] = [512, 2048, 8192, 32_768, 65_536];

/// Minimum number of entries for each backend, up to the largest table.
const ENTRIES_PER_BACKEND: u32 = 200;

/// How far a backend may exceed its equal share: by 1/n of the share, or by 1/n of the table,
/// whichever is less. Exactly equal shares would require more moves; unlimited shares would differ
/// too much among three backends.
const EXCESS_OF_SHARE: u32 = 16;
const EXCESS_OF_TABLE: u32 = 256;

/// Separates these hashes from other uses of the same function.
const BACKEND_SEED: u64 = 0x6d65_7368_6261_636b;

/// Returns the number of table entries for a service with `backends` backends, usable or not. One
/// backend needs one entry.
pub(crate) fn size(backends: usize) -> u32 {
    let wanted = u32::try_from(backends).unwrap_or(u32::MAX).saturating_mul(ENTRIES_PER_BACKEND);
    let [.., largest] = SIZES;
    match backends {
        0 | 1 => 1,
        _ => SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(largest),
    }
}

/// Returns the maximum number of entries of each of `backends` backends in a table of this size, a
/// power of two.
fn limit(backends: usize, size: u32) -> usize {
    let share = size.div_ceil(u32::try_from(backends).unwrap_or(u32::MAX));
    (share + (share / EXCESS_OF_SHARE).min(size / EXCESS_OF_TABLE)) as usize
}

/// Returns the table: the backend of each entry. It is empty without backends, and has one entry if
/// there is only one backend.
///
/// Each pair of an entry and a backend has a score, and no backend exceeds its limit. The result is
/// the unique stable matching (Gale and Shapley): no entry and backend would both prefer each other
/// to their current assignment. It is unique because scores are the same for both sides.
pub(crate) fn table(backends: &BTreeSet<u32>, size: u32) -> Vec<u32> {
    let Some(first) = backends.first() else { return Vec::new() };
    if backends.len() == 1 || size <= 1 {
        return vec![*first];
    }
    // A table cannot contain more backends than it has entries.
    let numbers: Vec<u32> = backends.iter().copied().take(size as usize).collect();
    let limit = limit(numbers.len(), size);
    let scores: Vec<Scores> = numbers.iter().map(|number| Scores::new(*number, size)).collect();
    let mut held: Vec<Vec<Bid>> = numbers.iter().map(|_| Vec::with_capacity(limit + limit / 4)).collect();
    for (entry, best) in (0..).zip(best(&scores, size)) {
        let (score, backend) = (best >> HALF, best & ((1 << HALF) - 1));
        held[backend as usize].push(Bid { score, entry });
    }
    // In rounds, each backend with too many entries gives up those with the worst scores, which go
    // to their next best backend. The limits suffice for all entries, so this ends. The order does
    // not affect the result.
    loop {
        let mut refused = Vec::new();
        for (backend, bids) in held.iter_mut().enumerate() {
            let excess = bids.len().saturating_sub(limit);
            if excess > 0 {
                bids.select_nth_unstable(excess - 1);
                refused.extend(bids.drain(..excess).map(|bid| (backend, bid)));
            }
        }
        if refused.is_empty() {
            break;
        }
        for (backend, bid) in refused {
            if let Some((next, score)) = next_best(&scores, backend, bid) {
                held[next].push(Bid { score, ..bid });
            }
        }
    }
    let mut table = vec![*first; size as usize];
    for (number, bids) in numbers.iter().zip(held) {
        for bid in bids {
            table[bid.entry as usize] = *number;
        }
    }
    table
}

/// Returns, for each entry, its best score (upper half) and that backend's index (lower half); of
/// equal scores the last. As one number, the better of two is found without an unpredictable
/// branch, and for four entries at once. Both are below the size, at most 2^16. Vectors of larger
/// numbers need CPU features that not all CPUs have.
#[multiversion(targets("x86_64+avx2"))]
fn best(scores: &[Scores], size: u32) -> Vec<u32> {
    let mut best = vec![0; size as usize];
    for (backend, scores) in (0_u32..).zip(scores) {
        for (entry, best) in (0..).zip(&mut best) {
            *best = (scores.of(entry) << HALF | backend).max(*best);
        }
    }
    best
}

/// Bits of half a number of [`best`].
const HALF: u32 = 16;

/// Returns the entry's best backend among those after its current bid.
fn next_best(scores: &[Scores], refused: usize, bid: Bid) -> Option<(usize, u32)> {
    let all = scores.iter().map(|scores| scores.of(bid.entry)).enumerate();
    let worse = all.filter(|(backend, score)| (*score, *backend) < (bid.score, refused));
    worse.max_by_key(|(backend, score)| (*score, *backend))
}

/// An entry's score with the backend that it bids for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Bid {
    score: u32,
    entry: u32,
}

impl Ord for Bid {
    fn cmp(&self, other: &Self) -> Ordering {
        // A backend has no score twice.
        self.score.cmp(&other.score)
    }
}

impl PartialOrd for Bid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A backend's scores: a permutation of the entries, different for each backend. With independent
/// random scores, shares would differ half as much again, because some backends would have better
/// scores overall.
struct Scores {
    add: [u32; 2],
    /// Odd, so that multiplication by them is invertible.
    multiply: [u32; 2],
    mask: u32,
    shift: u32,
}

impl Scores {
    /// `size` is a power of two.
    fn new(backend: u32, size: u32) -> Self {
        let first = mix(BACKEND_SEED ^ u64::from(backend));
        let [[a, b], [c, d]] = [first, mix(first)].map(halves);
        Self {
            add: [a, c],
            multiply: [b | 1, d | 1],
            mask: size - 1,
            shift: size.trailing_zeros().div_ceil(2),
        }
    }

    /// Each step is a bijection on the numbers below the size, so their composition is too.
    const fn of(&self, entry: u32) -> u32 {
        let Self { add, multiply, mask, shift } = *self;
        let x = entry.wrapping_add(add[0]) & mask;
        let x = (x ^ (x >> shift)).wrapping_mul(multiply[0]) & mask;
        let x = (x ^ (x >> shift)).wrapping_add(add[1]).wrapping_mul(multiply[1]) & mask;
        let x = (x ^ (x >> shift)).wrapping_mul(GOLDEN) & mask;
        x ^ (x >> shift)
    }
}

/// 2^32 divided by the golden ratio: odd, and without a bit pattern.
const GOLDEN: u32 = 0x9e37_79b9;

#[expect(clippy::cast_possible_truncation, reason = "only the lower half is needed")]
const fn halves(hash: u64) -> [u32; 2] {
    [hash as u32, (hash >> 32) as u32]
}

/// The finalizer of splitmix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators",
/// OOPSLA 2014).
pub(super) const fn mix(seed: u64) -> u64 {
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
    fn a_table_has_two_hundred_entries_for_each_backend_up_to_the_largest() {
        let sizes = [0, 1, 2, 3, 10, 11, 40, 41, 163, 164, 100_000].map(size);
        assert_eq!(sizes, [1, 1, 512, 2048, 2048, 8192, 8192, 32_768, 32_768, 65_536, 65_536]);
    }

    #[test]
    fn a_backend_has_each_score_once() {
        for size in SIZES {
            for backend in [1, 2, 3, 64, 4_000_000] {
                let scores = Scores::new(backend, size);
                let all: BTreeSet<u32> = (0..size).map(|entry| scores.of(entry)).collect();
                assert!(all.len() == size as usize && all.last() == Some(&(size - 1)), "{backend} of {size}");
            }
        }
    }

    #[test]
    fn without_a_choice_there_is_one_entry_and_without_backends_none() {
        assert_eq!(table(&BTreeSet::new(), 512), Vec::<u32>::new());
        assert_eq!(table(&BTreeSet::from([7]), 512), [7]);
    }

    /// Nodes of different versions must choose the same backends: this table is part of their
    /// protocol.
    #[test]
    fn the_table_of_three_backends_never_changes_between_versions() {
        let table = table(&BTreeSet::from([1, 2, 3]), 2048);
        let digest = table.iter().fold(0, |digest, backend| mix(digest ^ u64::from(*backend)));
        assert_eq!((&table[..8], digest), (PICKS.as_slice(), DIGEST));
    }

    const PICKS: [u32; 8] = [3, 3, 1, 3, 3, 1, 2, 1];
    const DIGEST: u64 = 11_343_867_393_947_974_759;

    #[test]
    fn removing_one_of_ten_backends_moves_at_most_four_of_a_thousand_needlessly() {
        let (mut needless, mut all) = (0, 0);
        for service in 0..50 {
            let backends: BTreeSet<u32> = (1..=10).map(|n| service * 1000 + n * 7).collect();
            let before = table(&backends, size(10));
            for gone in &backends {
                needless += moved_needlessly(&before, &backends, *gone);
                all += before.len();
            }
        }
        assert!(needless * 1000 <= all * 4, "{needless} of {all}");
    }

    fn moved_needlessly(before: &[u32], backends: &BTreeSet<u32>, gone: u32) -> usize {
        let rest = backends.iter().copied().filter(|backend| *backend != gone).collect();
        let after = table(&rest, size(backends.len()));
        assert!(!after.contains(&gone));
        before.iter().zip(&after).filter(|(before, after)| **before != gone && before != after).count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn shares_differ_by_at_most_a_sixteenth_or_a_256th_of_the_table(
            backends in prop::collection::btree_set(1u32..0x3E_FFFF, 2..60)
        ) {
            let table = table(&backends, size(backends.len()));
            let shares = shares(&table);
            prop_assert_eq!(shares.len(), backends.len());
            let (most, share) = (*shares.values().max().unwrap(), table.len().div_ceil(backends.len()));
            prop_assert!(most <= share + share / 16 && most <= share + table.len() / 256, "{} of {}", most, share);
        }

        #[test]
        fn each_of_three_backends_has_a_third_of_the_entries_within_one_percent(
            backends in prop::collection::btree_set(1u32..0x3E_FFFF, 3)
        ) {
            let table = table(&backends, size(3));
            for share in shares(&table).into_values() {
                prop_assert!(share.abs_diff(table.len() / 3) * 100 <= table.len(), "{} of {}", share, table.len());
            }
        }

        #[test]
        fn removing_one_of_ten_backends_moves_hardly_any_entry_needlessly(
            backends in prop::collection::btree_set(1u32..0x3E_FFFF, 10),
            gone in 0usize..10,
        ) {
            let before = table(&backends, size(10));
            let gone = *backends.iter().nth(gone).unwrap();
            let needless = moved_needlessly(&before, &backends, gone);
            prop_assert!(needless * 1000 <= before.len() * 15, "{} of {} needlessly", needless, before.len());
        }
    }
}
