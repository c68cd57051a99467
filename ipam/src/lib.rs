//! Pools, blocks, leases and address assignment, without I/O, clock or randomness.
#![forbid(unsafe_code)]

pub mod pools;
pub mod prefix;
mod ranges;

pub use pools::{Pool, PoolError, find_overlap, next_subnet, validate_pools};
pub use prefix::{Family, Prefix, PrefixError, Subnets};
