//! Pools, blocks, leases and address assignment, without I/O, clock or randomness.
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
