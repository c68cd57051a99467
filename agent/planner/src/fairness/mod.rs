//! Limits the entries of each network in the table of established flows.
//!
//! A full table would evict the least recently used entry of any network. So it is never full: the
//! programs establish a flow only while its network has an *allowance* left. All allowances
//! together are less than the free space. Half of the table is guaranteed, in equal parts; the
//! other half is lent to networks that need it. When that is used up, the networks that borrowed
//! most must delete entries.

mod choice;

use std::collections::BTreeMap;

pub use choice::{Choice, Chooser, clock, network};
use mesh_ebpf_types::Vni;

/// The fraction 1/n of the table that stays free: allowances are used while entries are counted.
const MARGIN: u64 = 16;

/// A network's use of the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of its entries.
    pub entries: u64,
    /// Whether it has used all or much of its last allowance.
    pub wants_more: bool,
}

/// A network's share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// How many more entries it may create.
    pub allowance: u64,
    /// How many it must delete first.
    pub forget: u64,
}

/// Returns the shares of all networks in a table of this size.
pub fn shares(capacity: u64, networks: &BTreeMap<Vni, Usage>) -> BTreeMap<Vni, Share> {
    let count = (networks.len() as u64).max(1);
    let (guarantee, margin) = (capacity / 2 / count, capacity / MARGIN);
    let lent = capacity.saturating_sub(margin + guarantee * count);
    let excess = |usage: &Usage| usage.entries.saturating_sub(guarantee);
    let borrowed: Vec<u64> = networks.values().map(excess).collect();
    let wanting = networks.values().filter(|usage| usage.wants_more).count() as u64;
    let total: u64 = borrowed.iter().sum();
    let bound = lent.saturating_sub(margin);
    let level = if wanting > 0 && total > bound { level(&borrowed, bound) } else { u64::MAX };
    let kept: u64 = borrowed.iter().map(|borrowed| *borrowed.min(&level)).sum();
    let pool = lent.saturating_sub(kept);
    let share = |usage: &Usage| {
        let forget = excess(usage).saturating_sub(level);
        let kept = usage.entries - forget;
        // Half of the free space goes to those that need it.
        let part = match (wanting, usage.wants_more) {
            (0, _) => pool / count,
            (_, false) => pool / 2 / count,
            (_, true) => pool / 2 / count + pool / 2 / wanting,
        };
        Share { allowance: guarantee.saturating_sub(kept) + part, forget }
    };
    networks.iter().map(|(vni, usage)| (*vni, share(usage))).collect()
}

/// Returns the largest common limit for which the limited values sum up to at most `bound`.
pub fn level(values: &[u64], bound: u64) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let mut left = bound;
    for (index, value) in sorted.iter().enumerate() {
        let others = (sorted.len() - index) as u64;
        if value * others > left {
            return left / others;
        }
        left -= value;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: u64 = 16_000;

    fn shares_of(usages: &[(u64, bool)]) -> Vec<Share> {
        let usage = |(number, (entries, wants_more))| (Vni::new(number), Usage { entries, wants_more });
        let networks = (1..).zip(usages.iter().copied()).map(usage).collect();
        shares(CAPACITY, &networks).into_values().collect()
    }

    #[test]
    fn a_single_network_may_fill_the_table_and_then_loses_its_own_entries() {
        assert_eq!(shares_of(&[(0, true)]), [Share { allowance: 15_000, forget: 0 }]);
        let [full] = shares_of(&[(15_000, true)])[..] else { panic!("one network") };
        assert_eq!(full, Share { allowance: 1000, forget: 1000 });
        assert_eq!(shares_of(&[(15_000, false)]), [Share { allowance: 0, forget: 0 }]);
    }

    #[test]
    fn a_network_that_borrows_everything_leaves_others_their_guaranteed_part() {
        let shares = shares_of(&[(11_000, true), (10, false), (0, false), (3990, false)]);
        assert_eq!(shares.iter().map(|share| share.forget).collect::<Vec<_>>(), [4990, 0, 0, 0]);
        assert!(shares[1].allowance >= 1990 && shares[2].allowance >= 2000, "{shares:?}");
        let first = shares[0].allowance;
        assert!((1..=1000).contains(&first), "{first}");
    }

    #[test]
    fn borrowed_entries_are_taken_back_from_the_largest_until_all_are_equal() {
        let shares = shares_of(&[(9000, false), (6000, true)]);
        assert_eq!((shares[0].forget, shares[1].forget), (1000, 0), "{shares:?}");
        let shares = shares_of(&[(8000, true), (7000, true)]);
        assert_eq!((shares[0].forget, shares[1].forget), (1000, 0), "{shares:?}");
    }

    #[test]
    fn values_are_limited_to_a_common_level() {
        assert_eq!(level(&[5, 1, 9], 15), u64::MAX);
        assert_eq!(level(&[5, 1, 9], 11), 5);
        assert_eq!(level(&[5, 1, 9], 7), 3);
        assert_eq!(level(&[], 0), u64::MAX);
        assert_eq!(level(&[3], 0), 0);
    }

    proptest! {
        #[test]
        fn the_table_has_room_for_all_allowances(
            drawn in prop::collection::vec((0..2 * CAPACITY, any::<bool>()), 0..40),
        ) {
            // The table holds no more than it has room for.
            let drawn_total: u64 = drawn.iter().map(|(entries, _)| entries).sum();
            let scaled = |entries: u64| entries * CAPACITY / drawn_total.max(CAPACITY);
            let usages: Vec<(u64, bool)> =
                drawn.iter().map(|(entries, wants_more)| (scaled(*entries), *wants_more)).collect();
            let total: u64 = usages.iter().map(|(entries, _)| entries).sum();
            let shares = shares_of(&usages);
            let wanting = usages.iter().any(|(_, wants_more)| *wants_more);
            let forgotten: u64 = shares.iter().map(|share| share.forget).sum();
            let allowed: u64 = shares.iter().map(|share| share.allowance).sum();
            let guarantee = CAPACITY / 2 / (usages.len() as u64).max(1);
            for ((entries, wants_more), share) in usages.iter().zip(&shares) {
                let kept = entries - share.forget;
                prop_assert!(share.forget == 0 || kept >= guarantee, "{:?}", share);
                prop_assert!(kept + share.allowance >= guarantee || *entries >= guarantee);
                if *wants_more {
                    prop_assert!(share.allowance > 0, "{:?}", share);
                }
            }
            if wanting {
                prop_assert!(total - forgotten + allowed <= CAPACITY, "{} {} {}", total, forgotten, allowed);
            }
        }
    }
}
