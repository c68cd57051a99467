//! The manager's decisions: which lease a node gets. Pure functions of the leases of one subnet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::layout::{Reserved, SubnetLayout};
use crate::leases::{LeaseState, Leases};
use crate::prefix::{Prefix, bits};
use crate::ranges::{Range, RangeSet, aligned_pieces, first_free_aligned, span};

/// How many addresses a borrow names, so that a few stale reports cost no further decision.
const MAX_CANDIDATES: usize = 8;

/// What a manager knows beside the store. None of it need be true for the decisions to be safe: it
/// only makes them good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reports<N> {
    /// The addresses that each node last said it uses. A node without a report is taken to use
    /// none.
    pub in_use: BTreeMap<N, BTreeSet<IpAddr>>,
    /// Nodes that cannot be asked now.
    pub unreachable: BTreeSet<N>,
    /// What was given back a short time ago. It is leased again only when nothing else is free.
    pub recently_released: Vec<Prefix>,
}

/// What a node that needs addresses gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<N> {
    /// A lease on this prefix: a whole block, or a smaller piece when no block is free.
    Lease(Prefix),
    /// One of these addresses, which are `from`'s and seem to be free. Best first, never empty.
    Borrow {
        /// The node that has to agree.
        from: N,
        /// At most eight addresses.
        candidates: Vec<IpAddr>,
    },
    /// Every address is in use by the reports, or cannot be had now.
    Exhausted {
        /// How many addresses seem to be free on nodes that cannot be asked.
        free_on_unreachable: BTreeMap<N, u128>,
        /// How many addresses are being borrowed, by any node. When these are settled, it may be
        /// worth asking again.
        pending: u128,
    },
}

/// What a node that wants one certain address gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StaticDecision<N> {
    /// The address is leased to the node already.
    Held,
    /// A lease on the single address.
    Lease(Prefix),
    /// The address is `from`'s, which has to agree.
    Borrow {
        /// The node that has to agree.
        from: N,
    },
    /// A borrow of the address waits for an answer. The node may ask again when it is settled.
    Undecided {
        /// The node that borrows it; possibly the one that asks.
        node: N,
        /// The node whose it is until then.
        from: N,
    },
    /// The address is never a container's.
    Reserved(Reserved),
}

/// Chooses what to lease to `node`, which has no free address left, or soon will not have.
///
/// In this order: the first free block; the largest free piece of one; the same among what was
/// released recently; an address of the reachable node that has the most free ones. A block counts
/// as free when no lease overlaps it.
pub fn next_block<N: Ord + Clone>(
    layout: &SubnetLayout,
    leases: &Leases<N>,
    node: &N,
    reports: &Reports<N>,
) -> Decision<N> {
    let mut occupied = RangeSet::default();
    if let Some(block) = layout.vip_block() {
        occupied.insert(block.range());
    }
    for lease in leases.iter() {
        occupied.insert(lease.prefix.range());
    }
    let mut avoided = occupied.clone();
    for prefix in reports.recently_released.iter().filter(|p| p.family() == layout.subnet().family()) {
        avoided.insert(prefix.range());
    }
    if let Some(prefix) = free_piece(layout, &avoided).or_else(|| free_piece(layout, &occupied)) {
        return Decision::Lease(prefix);
    }
    borrow(layout, leases, node, reports)
}

/// Finds the lease that `node` needs to use exactly `address`.
pub fn lease_static<N: Ord + Clone>(
    layout: &SubnetLayout,
    leases: &Leases<N>,
    node: &N,
    address: IpAddr,
) -> StaticDecision<N> {
    if let Some(why) = layout.reserved(address) {
        return StaticDecision::Reserved(why);
    }
    let Some(lease) = leases.deciding(address) else {
        return StaticDecision::Lease(Prefix::single(address));
    };
    match &lease.state {
        LeaseState::Pending { from, .. } => {
            StaticDecision::Undecided { node: lease.node.clone(), from: from.clone() }
        }
        LeaseState::Active if lease.node == *node => StaticDecision::Held,
        LeaseState::Active => StaticDecision::Borrow { from: lease.node.clone() },
    }
}

/// The first whole block that is free, or else the first of the largest free pieces.
fn free_piece(layout: &SubnetLayout, occupied: &RangeSet) -> Option<Prefix> {
    let dynamic = layout.dynamic_range();
    let (family, bits) = (dynamic.family(), layout.block_bits());
    let gives = |range: Range| layout.assignable_within(range) > 0;
    if let Some(block) = first_free_aligned(occupied, dynamic.range(), bits, gives) {
        return Some(Prefix::around(family, block.first(), family.width() - bits));
    }
    let mut best: Option<(u128, u8)> = None;
    for gap in occupied.gaps(dynamic.range()) {
        for (first, bits) in aligned_pieces(gap, bits) {
            let is_larger = best.is_none_or(|(_, best_bits)| bits > best_bits);
            if is_larger && gives(Range::new(first, first + span(bits))) {
                best = Some((first, bits));
            }
        }
    }
    best.map(|(first, bits)| Prefix::around(family, first, family.width() - bits))
}

fn borrow<N: Ord + Clone>(
    layout: &SubnetLayout,
    leases: &Leases<N>,
    node: &N,
    reports: &Reports<N>,
) -> Decision<N> {
    let (mut free, pending) = holdings(layout, leases);
    free.remove(node);
    for (owner, addresses) in &mut free {
        for &address in reports.in_use.get(owner).into_iter().flatten() {
            addresses.remove(Range::new(bits(address), bits(address)));
        }
    }
    free.retain(|_, addresses| !addresses.is_empty());
    let (unreachable, reachable): (BTreeMap<_, _>, BTreeMap<_, _>) =
        free.into_iter().partition(|(owner, _)| reports.unreachable.contains(owner));
    // The node with the most to spare is disturbed least; of equals the first, so that the decision
    // is one.
    match reachable.into_iter().rev().max_by_key(|(_, addresses)| addresses.count()) {
        Some((from, addresses)) => {
            // Nodes assign from the start of their blocks, so the end is the likeliest to be free
            // still.
            let values = addresses.iter().rev().flat_map(|range| (range.first()..=range.last()).rev());
            let family = layout.subnet().family();
            let candidates = values.take(MAX_CANDIDATES).map(|value| family.address(value)).collect();
            Decision::Borrow { from, candidates }
        }
        None => Decision::Exhausted {
            free_on_unreachable: unreachable.into_iter().map(|(owner, set)| (owner, set.count())).collect(),
            pending,
        },
    }
}

/// The addresses of the dynamic range that each node may hand out, and how many are in borrows that
/// are not settled.
fn holdings<N: Ord + Clone>(layout: &SubnetLayout, leases: &Leases<N>) -> (BTreeMap<N, RangeSet>, u128) {
    let mut held: BTreeMap<N, RangeSet> = BTreeMap::new();
    let mut pending = RangeSet::default();
    let mut around: Vec<&crate::Lease<N>> = Vec::new();
    // A covering lease comes first, so each takes from the one around it what is its own.
    for lease in leases.iter() {
        while around.last().is_some_and(|outer| !outer.prefix.covers(&lease.prefix)) {
            around.pop();
        }
        if let Some(outer) = around.last() {
            let outer_set = if outer.is_active() { held.get_mut(&outer.node) } else { Some(&mut pending) };
            if let Some(set) = outer_set {
                set.remove(lease.prefix.range());
            }
        }
        let set = if lease.is_active() { held.entry(lease.node.clone()).or_default() } else { &mut pending };
        for range in layout.assignable().within(lease.prefix.range()) {
            set.insert(range);
        }
        around.push(lease);
    }
    (held, pending.count())
}
