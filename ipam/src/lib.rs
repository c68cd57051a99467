//! Pools, blocks, leases and address assignment, without I/O, clock or randomness.
//!
//! # The model
//!
//! A **network** has subnets, given or chosen from the default [pools]. A **subnet** is divided by
//! its [`SubnetLayout`] into reserved addresses (network, broadcast or anycast, gateway,
//! auxiliary), one VIP block, and what containers can have. That is leased to nodes in **blocks**,
//! and a node assigns **addresses** from its blocks with its [`LocalPool`], without asking anyone.
//! IPv4 and IPv6 are alike.
//!
//! A [`Lease`] says whose the addresses of a prefix are. Leases are records of the store, written
//! by a manager. *The most specific lease wins*: a /32 leased to B inside A's /26 is B's. So a
//! subnet can be used up to the last address however it was first divided. [`next_block`] decides
//! what a node gets: a whole block; else a free piece of one; else an address to borrow from a node
//! that seems to have a free one. [`lease_static`] does the same for one certain address.
//!
//! # What makes it safe
//!
//! An address is used by one node at most, whatever is late, repeated, lost or restarted. That
//! rests on these rules:
//!
//! 1. *Decisions on one subnet are serial.* A decision is written in a transaction that fails if
//!    any lease of the subnet has changed since it was read. It is not enough to compare the
//!    lease's own key: a /32 and a /26 around it have different keys.
//! 2. *The manager never takes, it asks.* A lease ends when its node gives it back, or cedes an
//!    address of it; or when an administrator removes the node.
//! 3. *A node stops first, then speaks.* It makes durable that it does not use the addresses
//!    ([`LocalPool::state`]), and only then sends the message. So a crash in between loses nothing
//!    but time.
//! 4. *A node's view only goes forward.* It takes snapshots and changes with the store's revision,
//!    and ignores older ones.
//! 5. *Messages name the version of the lease they mean*, its [`Lease::revision`]. One that is late
//!    and means an earlier lease of the same prefix changes nothing.
//!
//! # Getting a block
//!
//! [`LocalPool::assign`] fails, or [`LocalPool::low_water`] says that it soon will. The node asks a
//! manager, which calls [`next_block`] and writes a [`Lease::active`]. The node learns of it as
//! every change ([`LocalPool::apply`]), and assigns. A block that it has no use for any more
//! ([`LocalPool::idle_blocks`]) it gives back: [`LocalPool::give_back`], then the message, then the
//! manager's [`Leases::give_back`]. Until it sees the lease gone it repeats the message after every
//! reconnect, for all of [`LocalPool::giving_back`].
//!
//! # Borrowing an address
//!
//! 1. The manager writes a [`Lease::borrow`] to the borrower B, pending from the owner A. B does
//!    not use it yet.
//! 2. The manager asks A, with the lease's revision; again after a reconnect of A or its own
//!    restart, for all of [`Leases::pending`].
//! 3. A decides ([`LocalPool::cede`]): it refuses if the address is in use. Otherwise it makes
//!    durable that it will not hand it out, and agrees.
//! 4. The manager settles it ([`Leases::settle`]): agreed, the lease becomes active; refused, it is
//!    removed (or is A's again).
//! 5. B sees it active and assigns the address, or asks again.
//!
//! While the borrow is pending, neither hands the address out, and packets go to A
//! ([`Lease::route_to`]). Whether the manager borrows well depends on what nodes report
//! ([`Reports`]); whether it is safe does not. Before an attach fails for [`Decision::Exhausted`],
//! the manager gets fresh reports from the nodes that it can reach and decides again, waits for
//! pending borrows, and the node tries its own pool once more: then it fails only if the subnet has
//! no address left.
//!
//! # Reuse
//!
//! A node hands out a released address only when it has no other, and then the one released longest
//! ago. It can avoid that by a further block ([`LocalPool::would_reuse_early`]). Blocks given back
//! a short time ago are leased last.
#![forbid(unsafe_code)]

pub mod decisions;
pub mod layout;
pub mod leases;
pub mod local;
pub mod pools;
pub mod prefix;
mod ranges;
pub mod vips;

pub use decisions::{Decision, Reports, StaticDecision, lease_static, next_block};
pub use layout::{LayoutError, Reserved, SubnetLayout, SubnetSpec};
pub use leases::{CedeAnswer, Lease, LeaseChange, LeaseState, Leases};
pub use local::{Delays, InUse, LocalPool, LocalState, NeedBlock, StaticError};
pub use pools::{Pool, PoolError, find_overlap, next_subnet, validate_pools};
pub use prefix::{Family, Prefix, PrefixError, Subnets};
pub use vips::{VipError, vip};
