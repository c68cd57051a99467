//! The leases of one subnet: who holds what, and how a borrow is settled.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::prefix::Prefix;

/// A prefix of a subnet that is one node's to assign addresses from, except where a more specific
/// lease says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease<N> {
    /// The addresses.
    pub prefix: Prefix,
    /// Whose they are, or will be.
    pub node: N,
    /// Whether the node may use them yet.
    #[serde(flatten)]
    pub state: LeaseState<N>,
    /// The store's revision at which this record was last written. It tells this lease from an
    /// earlier or later one of the same prefix, so that late messages about those do no harm. It is
    /// not part of the stored value: whoever reads the record fills it in. 0 in a lease that is yet
    /// to be written.
    #[serde(skip)]
    pub revision: u64,
}

/// Whether a lease's node may use it yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum LeaseState<N> {
    /// A borrow that `from` has not confirmed. Neither node hands the addresses out; if one is in
    /// use, it is `from`'s.
    Pending {
        /// The node whose they are until it agrees.
        from: N,
        /// Whether it held them by a lease of this very prefix, which this one stands in place of;
        /// if not, by a block around them.
        #[serde(default)]
        replaced: bool,
    },
    /// The node may use the addresses.
    Active,
}

impl<N> Lease<N> {
    /// A lease that its node may use at once, yet to be written.
    pub fn active(prefix: Prefix, node: N) -> Self {
        Self { prefix, node, state: LeaseState::Active, revision: 0 }
    }

    /// The borrow of one address out of the lease that decides it, yet to be written and to be
    /// confirmed by that one's node.
    pub fn borrow(address: IpAddr, node: N, held: &Self) -> Self
    where
        N: Clone,
    {
        let prefix = Prefix::single(address);
        let state = LeaseState::Pending { from: held.node.clone(), replaced: held.prefix == prefix };
        Self { prefix, node, state, revision: 0 }
    }

    /// Where packets to these addresses go: the node, or while the borrow is pending the node it is
    /// from.
    pub fn route_to(&self) -> &N {
        match &self.state {
            LeaseState::Pending { from, .. } => from,
            LeaseState::Active => &self.node,
        }
    }

    /// Whether the node may use the addresses.
    pub fn is_active(&self) -> bool {
        matches!(self.state, LeaseState::Active)
    }
}

/// A change of one record of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseChange<N> {
    /// Write this lease, in place of one of the same prefix if there is one.
    Put(Lease<N>),
    /// Delete the lease of this prefix.
    Remove(Prefix),
}

/// What a node says about the borrow of one of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CedeAnswer {
    /// It was free, and the node will not hand it out.
    Ceded,
    /// It is in use.
    Refused,
}

/// The leases of one subnet, at one revision of the store. The most specific one that contains an
/// address decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leases<N> {
    by_prefix: BTreeMap<Prefix, Lease<N>>,
    /// How many leases there are of each prefix length, so that a look-up tries only those.
    lengths: BTreeMap<u8, usize>,
}

impl<N> Default for Leases<N> {
    fn default() -> Self {
        Self { by_prefix: BTreeMap::new(), lengths: BTreeMap::new() }
    }
}

impl<N> FromIterator<Lease<N>> for Leases<N> {
    fn from_iter<I: IntoIterator<Item = Lease<N>>>(leases: I) -> Self {
        let mut set = Self::default();
        for lease in leases {
            set.insert(lease);
        }
        set
    }
}

impl<N> Leases<N> {
    /// Adds a lease; returns the one of the same prefix that it replaces.
    pub fn insert(&mut self, lease: Lease<N>) -> Option<Lease<N>> {
        let len = lease.prefix.len();
        let old = self.by_prefix.insert(lease.prefix, lease);
        if old.is_none() {
            *self.lengths.entry(len).or_default() += 1;
        }
        old
    }

    /// Removes the lease of exactly this prefix.
    pub fn remove(&mut self, prefix: &Prefix) -> Option<Lease<N>> {
        let old = self.by_prefix.remove(prefix)?;
        if let Some(count) = self.lengths.get_mut(&prefix.len()) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
        Some(old)
    }

    /// The lease of exactly this prefix.
    pub fn get(&self, prefix: &Prefix) -> Option<&Lease<N>> {
        self.by_prefix.get(prefix)
    }

    /// All leases, in order of prefix: a covering one comes before those inside it.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Lease<N>> + Clone + '_ {
        self.by_prefix.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_prefix.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    /// The most specific lease that contains the address: the one that decides.
    pub fn deciding(&self, address: IpAddr) -> Option<&Lease<N>> {
        self.covering(Prefix::single(address), u8::MAX)
    }

    /// The most specific lease that covers all of `prefix` and is larger.
    pub fn parent(&self, prefix: &Prefix) -> Option<&Lease<N>> {
        self.covering(*prefix, prefix.len().checked_sub(1)?)
    }

    /// The leases inside `prefix`, one of exactly it included; in order of prefix.
    pub fn within(&self, prefix: &Prefix) -> impl Iterator<Item = &Lease<N>> + '_ {
        self.by_prefix.range(*prefix..=Prefix::single(prefix.last())).map(|(_, lease)| lease)
    }

    /// The borrows that wait for an answer. A manager that restarts asks the owners again.
    pub fn pending(&self) -> impl Iterator<Item = &Lease<N>> + '_ {
        self.iter().filter(|lease| !lease.is_active())
    }

    fn covering(&self, prefix: Prefix, max_len: u8) -> Option<&Lease<N>> {
        self.lengths
            .range(..=max_len.min(prefix.len()))
            .rev()
            .find_map(|(&len, _)| self.by_prefix.get(&prefix.resized(len)?))
    }
}

impl<N: Ord + Clone> Leases<N> {
    /// What an answer to a borrow changes. `revision` is that of the pending lease which the owner
    /// was asked about; an answer about any other changes nothing.
    ///
    /// A refused borrow is deleted, which leaves the address to the owner's block. If the owner
    /// held the address alone, that lease is written back, also inside a block of the owner: the
    /// owner may have given that one back already, in a message which is still under way.
    pub fn settle(&self, prefix: &Prefix, revision: u64, answer: CedeAnswer) -> Option<LeaseChange<N>> {
        let lease = self.get(prefix).filter(|lease| lease.revision == revision)?;
        let LeaseState::Pending { from, replaced } = &lease.state else { return None };
        Some(match answer {
            CedeAnswer::Ceded => LeaseChange::Put(Lease::active(*prefix, lease.node.clone())),
            CedeAnswer::Refused if !replaced && self.is_in_block_of(from, prefix) => {
                LeaseChange::Remove(*prefix)
            }
            CedeAnswer::Refused => LeaseChange::Put(Lease::active(*prefix, from.clone())),
        })
    }

    fn is_in_block_of(&self, node: &N, prefix: &Prefix) -> bool {
        self.parent(prefix).is_some_and(|block| block.is_active() && block.node == *node)
    }

    /// What changes when a node gives a lease back. `revision` is that of the lease it means; if it
    /// has been replaced since, nothing changes.
    pub fn give_back(&self, node: &N, prefix: &Prefix, revision: u64) -> Option<LeaseChange<N>> {
        let lease = self.get(prefix)?;
        (lease.node == *node && lease.is_active() && lease.revision == revision)
            .then_some(LeaseChange::Remove(*prefix))
    }

    /// Makes a change that was written at `revision`.
    pub fn apply(&mut self, change: LeaseChange<N>, revision: u64) {
        match change {
            LeaseChange::Put(lease) => {
                self.insert(Lease { revision, ..lease });
            }
            LeaseChange::Remove(prefix) => {
                self.remove(&prefix);
            }
        }
    }
}
