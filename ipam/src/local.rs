//! A node's side of one subnet: which address the next container gets, without asking anyone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::layout::{Reserved, SubnetLayout};
use crate::leases::{Lease, LeaseChange, Leases};
use crate::prefix::{Prefix, bits};
use crate::ranges::{Range, RangeSet};

/// After how long things are done, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delays {
    /// A released address counts as free for [`LocalPool::low_water`] only after this long. When no
    /// other is left, it is handed out all the same.
    pub reuse: u64,
    /// A block is idle when none of its addresses was used, and it was not new, for this long.
    pub idle: u64,
}

impl Default for Delays {
    /// One minute and five minutes.
    fn default() -> Self {
        Self { reuse: 60_000, idle: 300_000 }
    }
}

/// The node has no free address in this subnet, and needs another lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node has no free address left in subnet {subnet}")]
pub struct NeedBlock {
    /// The subnet.
    pub subnet: Prefix,
}

/// Why a certain address cannot be assigned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StaticError<E> {
    /// An endpoint of this node has it.
    #[error("address {address} is in use by {by}")]
    InUse {
        /// The address as asked for.
        address: IpAddr,
        /// The endpoint that has it.
        by: E,
    },
    /// No lease of this node allows it; the manager has to be asked for one.
    #[error("address {address} is not leased to this node")]
    NotLeased {
        /// The address as asked for.
        address: IpAddr,
    },
    /// It is never a container's.
    #[error("address {address} cannot be assigned: it is {why}")]
    Reserved {
        /// The address as asked for.
        address: IpAddr,
        /// What it is.
        why: Reserved,
    },
}

/// A borrow is refused, because an endpoint of this node has the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address {address} is in use by {by}")]
pub struct InUse<E> {
    /// The address that another node would borrow.
    pub address: IpAddr,
    /// The endpoint that has it.
    pub by: E,
}

/// What a node has to remember of a [`LocalPool`] over a restart, beside its endpoints and the
/// leases it last knew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalState {
    /// The revision of the leases that the rest relies on. Leases which are older are not used
    /// after a restart.
    pub revision: u64,
    /// Released addresses with the time of the release in milliseconds, longest ago first.
    pub released: Vec<(IpAddr, u64)>,
    /// Addresses given to a borrower, with the revision of the borrow. Needed until the node knows
    /// that revision.
    pub ceded: BTreeMap<IpAddr, u64>,
    /// Leases given back, with their revisions. Needed until the node knows that they are gone.
    pub giving_back: BTreeMap<Prefix, u64>,
}

#[derive(Debug, Clone, Copy)]
struct Release {
    /// Place in the queue of released addresses.
    order: u64,
    at: u64,
}

/// The addresses of one subnet that a node may hand out, those it has handed out, and those that
/// came back.
///
/// `N` names nodes and `E` endpoints. Times are milliseconds of any clock that goes on over
/// restarts; if it steps, reuse and giving back are early or late, and nothing else happens. A
/// store that was restored from a backup counts its revisions anew: then make a new pool.
///
/// One operation takes logarithmic time in the number of leases and addresses in use. A change of a
/// lease also takes time for each address in it that is in use or was released.
#[derive(Debug, Clone)]
pub struct LocalPool<N, E> {
    layout: SubnetLayout,
    node: N,
    delays: Delays,
    revision: u64,
    leases: Leases<N>,
    /// Whether `leases` is what there was at `revision`; not so after a restart with older ones.
    is_current: bool,
    /// Since when each lease of this node is known, and at which revision.
    known_since: BTreeMap<Prefix, (u64, u64)>,
    /// What this node's leases allow, in use or not, reserved or not.
    owned: RangeSet,
    /// What may be chosen automatically and was not used since it was leased.
    fresh: RangeSet,
    in_use: BTreeMap<IpAddr, E>,
    released: BTreeMap<IpAddr, Release>,
    /// The released addresses that may be chosen automatically, by their place in the queue.
    reusable: BTreeMap<u64, IpAddr>,
    next_order: u64,
    ceded: BTreeMap<IpAddr, u64>,
    giving_back: BTreeMap<Prefix, u64>,
}

impl<N: Ord + Clone, E: Clone> LocalPool<N, E> {
    /// The pool of a node that has never assigned an address of this subnet, and knows no lease
    /// yet.
    pub fn new(layout: SubnetLayout, node: N, delays: Delays) -> Self {
        Self::restore(layout, node, delays, LocalState::default(), BTreeMap::new(), (0, Leases::default()), 0)
    }

    /// The pool as it was: from what the node remembered, its endpoints' addresses in this subnet,
    /// and the leases that it last knew with the revision at which they were true. If they are
    /// older than what the node remembered, it assigns nothing until [`Self::replace`] brings newer
    /// ones.
    pub fn restore(
        layout: SubnetLayout,
        node: N,
        delays: Delays,
        state: LocalState,
        in_use: BTreeMap<IpAddr, E>,
        (revision, leases): (u64, Leases<N>),
        now: u64,
    ) -> Self {
        let mut pool = Self {
            layout,
            node,
            delays,
            revision: state.revision,
            leases: Leases::default(),
            is_current: false,
            known_since: BTreeMap::new(),
            owned: RangeSet::default(),
            fresh: RangeSet::default(),
            in_use,
            released: BTreeMap::new(),
            reusable: BTreeMap::new(),
            next_order: 0,
            ceded: state.ceded,
            giving_back: state.giving_back,
        };
        for (address, at) in state.released {
            // A time in the future is one of a clock that was set back.
            pool.enqueue(address, at.min(now));
        }
        pool.replace(revision, leases, now);
        pool
    }

    /// What to remember over a restart. It has to be durable before an answer to [`Self::cede`] or
    /// the message for [`Self::give_back`] leaves the node.
    pub fn state(&self) -> LocalState {
        let mut released: Vec<_> =
            self.released.iter().map(|(&address, release)| (address, *release)).collect();
        released.sort_by_key(|(_, release)| release.order);
        LocalState {
            revision: self.revision,
            released: released.into_iter().map(|(address, release)| (address, release.at)).collect(),
            ceded: self.ceded.clone(),
            giving_back: self.giving_back.clone(),
        }
    }

    /// The subnet's layout.
    pub fn layout(&self) -> &SubnetLayout {
        &self.layout
    }

    /// The revision of the store at which the known leases were true.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The leases of the subnet as this node knows them, those of other nodes included.
    pub fn leases(&self) -> &Leases<N> {
        &self.leases
    }

    /// The addresses in use and by whom, in order. Those without a lease, which a restored backup
    /// can cause, are included.
    pub fn in_use(&self) -> &BTreeMap<IpAddr, E> {
        &self.in_use
    }

    /// How many addresses [`Self::assign`] can still give.
    pub fn free(&self) -> u128 {
        self.fresh.count() + self.reusable.len() as u128
    }

    /// Takes all leases of the subnet as they are at `revision`. Returns false, and does nothing,
    /// if the pool knows a later revision.
    pub fn replace(&mut self, revision: u64, leases: Leases<N>, now: u64) -> bool {
        if revision < self.revision {
            return false;
        }
        self.leases = leases;
        self.is_current = true;
        self.revision = revision;
        let known = std::mem::take(&mut self.known_since);
        let mine = self.leases.iter().filter(|lease| lease.is_active() && lease.node == self.node);
        self.known_since = mine
            .map(|lease| {
                let before =
                    known.get(&lease.prefix).filter(|(at_revision, _)| *at_revision == lease.revision);
                (lease.prefix, before.copied().unwrap_or((lease.revision, now)))
            })
            .collect();
        let leases = &self.leases;
        self.giving_back.retain(|prefix, at| leases.get(prefix).is_some_and(|lease| lease.revision == *at));
        self.ceded.retain(|_, at| *at > revision);
        self.refresh(self.layout.subnet());
        true
    }

    /// Takes the changes that one transaction made at `revision`. They have to be given in order
    /// and without a gap. Returns false, and does nothing, if the pool knows them already, or was
    /// restored with leases too old to build on.
    pub fn apply(&mut self, revision: u64, changes: &[LeaseChange<N>], now: u64) -> bool {
        if !self.is_current || revision <= self.revision {
            return false;
        }
        self.revision = revision;
        let seen: Vec<IpAddr> =
            self.ceded.iter().filter(|(_, at)| **at <= revision).map(|(ip, _)| *ip).collect();
        for address in &seen {
            self.ceded.remove(address);
        }
        for change in changes {
            let prefix = match change {
                LeaseChange::Put(lease) => lease.prefix,
                LeaseChange::Remove(prefix) => *prefix,
            };
            self.leases.apply(change.clone(), revision);
            self.giving_back.remove(&prefix);
            self.known_since.remove(&prefix);
            if self.leases.get(&prefix).is_some_and(|lease| lease.is_active() && lease.node == self.node) {
                self.known_since.insert(prefix, (revision, now));
            }
            self.refresh(prefix);
        }
        for address in seen {
            self.refresh(Prefix::single(address));
        }
        true
    }

    /// Chooses an address for the endpoint `by`: one that was not used yet, or else the one that
    /// was released longest ago.
    pub fn assign(&mut self, by: E) -> Result<IpAddr, NeedBlock> {
        let subnet = self.layout.subnet();
        let fresh = self.fresh.first().map(|value| subnet.family().address(value));
        let reusable = || self.reusable.first_key_value().map(|(_, &address)| address);
        let address = fresh.or_else(reusable).ok_or(NeedBlock { subnet })?;
        self.take(address, by);
        Ok(address)
    }

    /// Whether [`Self::assign`] would give an address that was released less than the reuse delay
    /// ago. A node that can reach the manager then asks for another block first.
    pub fn would_reuse_early(&self, now: u64) -> bool {
        self.fresh.is_empty() && self.free() > 0 && self.rested(now, 1) == 0
    }

    /// Gives the endpoint `by` exactly this address.
    pub fn assign_static(&mut self, address: IpAddr, by: E) -> Result<(), StaticError<E>> {
        if let Some(why) = self.layout.reserved(address) {
            return Err(StaticError::Reserved { address, why });
        }
        if let Some(by) = self.in_use.get(&address) {
            return Err(StaticError::InUse { address, by: by.clone() });
        }
        if !self.owned.contains(bits(address)) {
            return Err(StaticError::NotLeased { address });
        }
        self.take(address, by);
        Ok(())
    }

    /// Takes an address back from its endpoint, which it returns. It goes to the end of the queue
    /// for reuse.
    pub fn release(&mut self, address: IpAddr, now: u64) -> Option<E> {
        let by = self.in_use.remove(&address)?;
        self.enqueue(address, now);
        self.refresh(Prefix::single(address));
        Some(by)
    }

    /// Whether so few addresses are left, less than a quarter of a block, that the next block
    /// should be leased before it is needed. Never for a node that uses none. A block or a piece is
    /// worth having for this; a borrow is not.
    pub fn low_water(&self, now: u64) -> bool {
        let reserve = self.reserve();
        !self.in_use.is_empty() && self.fresh.count() + self.rested(now, reserve) < reserve
    }

    /// The leases that this node has no use for, to be given back: nothing in them is in use or was
    /// within the idle delay. Enough others are kept that [`Self::low_water`] does not call for
    /// them again at once, unless nothing is in use.
    pub fn idle_blocks(&self, now: u64) -> Vec<Prefix> {
        let mut idle: Vec<Prefix> = Vec::new();
        let mut left = self.free();
        // The smallest first: a borrowed address goes back to its owner before a block does.
        let mut mine: Vec<_> = self.known_since.iter().collect();
        mine.sort_by_key(|(prefix, _)| std::cmp::Reverse((prefix.len(), **prefix)));
        for (prefix, (_, since)) in mine {
            if self.giving_back.contains_key(prefix) || !self.is_idle(prefix, *since, now) {
                continue;
            }
            let gives = self.free_at(prefix);
            if self.in_use.is_empty() || left - gives >= 2 * self.reserve() || gives == 0 {
                left -= gives;
                idle.push(*prefix);
            }
        }
        idle
    }

    /// Stops using a lease and returns its revision, which the request to delete it needs.
    /// `None`, and nothing changed, if the lease is not this node's or an address in it is in use.
    pub fn give_back(&mut self, prefix: &Prefix) -> Option<u64> {
        let revision = self.leases.get(prefix).filter(|lease| self.is_mine(lease))?.revision;
        if self.in_use.range(prefix.first()..=prefix.last()).next().is_some() {
            return None;
        }
        self.giving_back.insert(*prefix, revision);
        self.known_since.remove(prefix);
        self.refresh(*prefix);
        Some(revision)
    }

    /// Returns the leases, with their revisions, whose deletion was requested and that this node
    /// still sees. The request is repeated after a lost connection or a restart.
    pub fn giving_back(&self) -> &BTreeMap<Prefix, u64> {
        &self.giving_back
    }

    /// Answers a borrow: agrees, and never hands the address out until it is this node's again; or
    /// refuses because it is in use. `revision` is that of the pending lease.
    pub fn cede(&mut self, address: IpAddr, revision: u64) -> Result<(), InUse<E>> {
        if let Some(by) = self.in_use.get(&address) {
            return Err(InUse { address, by: by.clone() });
        }
        // A pool that knows the borrow, or what came of it, needs no reminder.
        if revision > self.revision {
            let latest = self.ceded.entry(address).or_default();
            *latest = revision.max(*latest);
            self.refresh(Prefix::single(address));
        }
        Ok(())
    }

    fn take(&mut self, address: IpAddr, by: E) {
        if let Some(release) = self.released.remove(&address) {
            self.reusable.remove(&release.order);
        }
        self.fresh.remove(Prefix::single(address).range());
        self.in_use.insert(address, by);
    }

    fn enqueue(&mut self, address: IpAddr, at: u64) {
        self.released.insert(address, Release { order: self.next_order, at });
        self.next_order += 1;
    }

    /// How many free addresses low water is: a quarter of a block, at least one.
    fn reserve(&self) -> u128 {
        (self.layout.block_size() / 4).max(1)
    }

    /// How many reusable addresses have waited for the reuse delay, counted up to `enough`.
    fn rested(&self, now: u64, enough: u128) -> u128 {
        let rested = |address: &IpAddr| {
            self.released.get(address).is_some_and(|r| now.saturating_sub(r.at) >= self.delays.reuse)
        };
        let enough = usize::try_from(enough).unwrap_or(usize::MAX);
        self.reusable.values().take(enough).take_while(|address| rested(address)).count() as u128
    }

    fn is_idle(&self, prefix: &Prefix, since: u64, now: u64) -> bool {
        let is_recent = |at: u64| now.saturating_sub(at) < self.delays.idle;
        !is_recent(since)
            && self.in_use.range(prefix.first()..=prefix.last()).next().is_none()
            && !self.released.range(prefix.first()..=prefix.last()).any(|(_, release)| is_recent(release.at))
    }

    /// How many addresses of the prefix could be assigned by this lease and none inside it.
    fn free_at(&self, prefix: &Prefix) -> u128 {
        let decided_here =
            |address: IpAddr| self.leases.deciding(address).is_some_and(|l| l.prefix == *prefix);
        let inner: Vec<Range> =
            self.leases.within(prefix).filter(|l| l.prefix != *prefix).map(|l| l.prefix.range()).collect();
        let mut fresh = RangeSet::default();
        for range in self.fresh.within(prefix.range()) {
            fresh.insert(range);
        }
        for range in inner {
            fresh.remove(range);
        }
        let released = self.released.range(prefix.first()..=prefix.last());
        let reusable =
            released.filter(|(ip, r)| self.reusable.contains_key(&r.order) && decided_here(**ip)).count();
        fresh.count() + reusable as u128
    }

    fn is_mine(&self, lease: &Lease<N>) -> bool {
        lease.is_active()
            && lease.node == self.node
            && self.giving_back.get(&lease.prefix) != Some(&lease.revision)
    }

    /// Recomputes which addresses of `prefix` this node may assign.
    fn refresh(&mut self, prefix: Prefix) {
        let range = prefix.range();
        self.owned.remove(range);
        self.fresh.remove(range);
        // Painted from the largest lease to the most specific, which so has the last word.
        if self.leases.parent(&prefix).is_some_and(|lease| self.is_mine(lease)) {
            self.owned.insert(range);
        }
        for lease in self.leases.within(&prefix) {
            if self.is_mine(lease) {
                self.owned.insert(lease.prefix.range());
            } else {
                self.owned.remove(lease.prefix.range());
            }
        }
        for (&address, _) in self.ceded.range(prefix.first()..=prefix.last()) {
            self.owned.remove(Prefix::single(address).range());
        }
        for owned in self.owned.within(range) {
            for assignable in self.layout.assignable().within(owned) {
                self.fresh.insert(assignable);
            }
        }
        for (&address, _) in self.in_use.range(prefix.first()..=prefix.last()) {
            self.fresh.remove(Prefix::single(address).range());
        }
        let released: Vec<IpAddr> =
            self.released.range(prefix.first()..=prefix.last()).map(|(&address, _)| address).collect();
        for address in released {
            self.refresh_released(address);
        }
    }

    /// Puts a released address into the queue for reuse if it may be chosen automatically, and
    /// takes it out if not. It is forgotten when it is no longer this node's.
    fn refresh_released(&mut self, address: IpAddr) {
        let Some(release) = self.released.get(&address) else { return };
        let single = Prefix::single(address).range();
        if self.fresh.contains(bits(address)) {
            self.fresh.remove(single);
            self.reusable.insert(release.order, address);
            return;
        }
        self.reusable.remove(&release.order);
        let decides = self.leases.deciding(address);
        let may_return = decides.is_some_and(|lease| !lease.is_active() && *lease.route_to() == self.node);
        if !may_return && !self.owned.contains(bits(address)) {
            self.released.remove(&address);
        }
    }
}
