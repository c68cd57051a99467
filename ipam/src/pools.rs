//! The default pools, from which networks get subnets when none is given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::prefix::{Family, Prefix};
use crate::ranges::{RangeSet, first_free_aligned};

/// A prefix that is cut into subnets of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "PoolFields")]
pub struct Pool {
    prefix: Prefix,
    subnet_len: u8,
}

/// A pool as it is written, before it is known to be possible.
#[derive(Deserialize)]
struct PoolFields {
    prefix: Prefix,
    subnet_len: u8,
}

impl TryFrom<PoolFields> for Pool {
    type Error = PoolError;

    fn try_from(fields: PoolFields) -> Result<Self, PoolError> {
        Self::new(fields.prefix, fields.subnet_len)
    }
}

/// Why a pool cannot be, or gives no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The subnets would be larger than the pool or longer than an address.
    #[error("pool {pool} cannot be cut into /{subnet_len}: the length must be from {} to {}", .pool.len(), .pool.family().width())]
    SubnetLength {
        /// The pool's prefix.
        pool: Prefix,
        /// The length as given.
        subnet_len: u8,
    },
    /// Two pools have addresses in common.
    #[error("pool {pool} overlaps pool {other}")]
    Overlap {
        /// The later pool.
        pool: Prefix,
        /// The pool before it in the list.
        other: Prefix,
    },
    /// No pool of this family is configured.
    #[error("there is no default address pool for {family}")]
    NoPool {
        /// The family that was asked for.
        family: Family,
    },
    /// Every subnet of every pool overlaps something.
    #[error("no free subnet is left in the default address pools: {}", list(.pools))]
    Exhausted {
        /// The pools of the family that was asked for, in the order in which they were tried.
        pools: Vec<Pool>,
    },
}

fn list(pools: &[Pool]) -> String {
    let each: Vec<String> =
        pools.iter().map(|pool| format!("{} in /{}", pool.prefix, pool.subnet_len)).collect();
    each.join(", ")
}

impl Pool {
    /// A pool of `prefix` cut into subnets of `subnet_len` bits.
    pub fn new(prefix: Prefix, subnet_len: u8) -> Result<Self, PoolError> {
        if subnet_len < prefix.len() || subnet_len > prefix.family().width() {
            return Err(PoolError::SubnetLength { pool: prefix, subnet_len });
        }
        Ok(Self { prefix, subnet_len })
    }

    /// The default for IPv4: 10.64.0.0/10 in /20, which is 1024 networks of 4096 addresses.
    pub fn default_ipv4() -> Self {
        let first = IpAddr::V4(Ipv4Addr::new(10, 64, 0, 0));
        Self { prefix: Prefix::around(Family::Ipv4, crate::prefix::bits(first), 10), subnet_len: 20 }
    }

    /// The default for IPv6: the unique local /48 with this global ID, in /64 (RFC 4193, 3.1). The
    /// cluster draws the ID at random once, as the RFC asks for, so that clusters which are joined
    /// later do not collide.
    pub fn unique_local(global_id: [u8; 5]) -> Self {
        let mut octets = [0; 16];
        octets[0] = 0xfd;
        octets[1..6].copy_from_slice(&global_id);
        let first = Ipv6Addr::from(octets).to_bits();
        Self { prefix: Prefix::around(Family::Ipv6, first, 48), subnet_len: 64 }
    }

    /// The whole pool.
    pub fn prefix(&self) -> Prefix {
        self.prefix
    }

    /// The length in bits of the subnets that it is cut into.
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }
}

/// Refuses pools that overlap one another.
pub fn validate_pools(pools: &[Pool]) -> Result<(), PoolError> {
    for (index, pool) in pools.iter().enumerate() {
        if let Some(other) = pools[..index].iter().find(|other| other.prefix.overlaps(&pool.prefix)) {
            return Err(PoolError::Overlap { pool: pool.prefix, other: other.prefix });
        }
    }
    Ok(())
}

/// The next free subnet of this family: the first, in the order of the pools and then of the
/// addresses, that overlaps nothing in `taken` (other networks, the underlay, routes of hosts; each
/// with whose it is, which is ignored here).
pub fn next_subnet<W>(pools: &[Pool], family: Family, taken: &[(Prefix, W)]) -> Result<Prefix, PoolError> {
    let pools: Vec<Pool> = pools.iter().copied().filter(|pool| pool.prefix.family() == family).collect();
    if pools.is_empty() {
        return Err(PoolError::NoPool { family });
    }
    let mut occupied = RangeSet::default();
    for (prefix, _) in taken.iter().filter(|(prefix, _)| prefix.family() == family) {
        occupied.insert(prefix.range());
    }
    pools
        .iter()
        .find_map(|pool| {
            let host_bits = family.width() - pool.subnet_len;
            let range = first_free_aligned(&occupied, pool.prefix.range(), host_bits, |_| true)?;
            Some(Prefix::around(family, range.first(), pool.subnet_len))
        })
        .ok_or(PoolError::Exhausted { pools })
}

/// The first entry of `taken` that overlaps `prefix`, for a message that names the other side.
pub fn find_overlap<'a, W>(prefix: &Prefix, taken: &'a [(Prefix, W)]) -> Option<&'a (Prefix, W)> {
    taken.iter().find(|(other, _)| other.overlaps(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn the_default_pool_gives_subnets_in_order() {
        let mut taken: Vec<(Prefix, &str)> = Vec::new();
        for expected in ["10.64.0.0/20", "10.64.16.0/20", "10.64.32.0/20"] {
            let next = next_subnet(&[Pool::default_ipv4()], Family::Ipv4, &taken).unwrap();
            assert_eq!(next, prefix(expected));
            taken.push((next, "network"));
        }
    }

    #[test]
    fn a_subnet_skips_what_lies_inside_it_and_what_covers_it() {
        let taken = [
            (prefix("10.64.32.0/19"), "route"),
            (prefix("10.64.3.0/24"), "underlay"),
            (prefix("10.64.16.0/20"), "network"),
            (prefix("::/0"), "default route"),
        ];
        let next = next_subnet(&[Pool::default_ipv4()], Family::Ipv4, &taken).unwrap();
        assert_eq!(next, prefix("10.64.64.0/20"));
    }

    #[test]
    fn the_next_pool_follows_when_one_is_full_and_the_error_names_all() {
        let pools =
            [Pool::new(prefix("10.1.0.0/24"), 25).unwrap(), Pool::new(prefix("10.2.0.0/24"), 24).unwrap()];
        let mut taken = vec![(prefix("10.1.0.0/24"), "a")];
        assert_eq!(next_subnet(&pools, Family::Ipv4, &taken).unwrap(), prefix("10.2.0.0/24"));
        taken.push((prefix("0.0.0.0/0"), "default route"));
        let error = next_subnet(&pools, Family::Ipv4, &taken).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no free subnet is left in the default address pools: 10.1.0.0/24 in /25, 10.2.0.0/24 in /24"
        );
    }

    #[test]
    fn a_unique_local_pool_is_cut_into_64s() {
        let pool = Pool::unique_local([0x12, 0x34, 0x56, 0x78, 0x9a]);
        assert_eq!(pool.prefix(), prefix("fd12:3456:789a::/48"));
        let taken = [(prefix("fd12:3456:789a::/64"), "a")];
        assert_eq!(next_subnet(&[pool], Family::Ipv6, &taken).unwrap(), prefix("fd12:3456:789a:1::/64"));
        let error = next_subnet(&[pool], Family::Ipv4, &taken).unwrap_err();
        assert_eq!(error.to_string(), "there is no default address pool for IPv4");
    }

    #[test]
    fn impossible_pools_are_refused() {
        assert!(matches!(Pool::new(prefix("10.0.0.0/16"), 8), Err(PoolError::SubnetLength { .. })));
        assert!(matches!(Pool::new(prefix("10.0.0.0/16"), 33), Err(PoolError::SubnetLength { .. })));
        let pools = [Pool::default_ipv4(), Pool::new(prefix("10.65.0.0/16"), 24).unwrap()];
        assert_eq!(
            validate_pools(&pools).unwrap_err().to_string(),
            "pool 10.65.0.0/16 overlaps pool 10.64.0.0/10"
        );
    }

    #[test]
    fn an_overlap_names_the_other_side() {
        let taken = [(prefix("10.1.0.0/16"), "network web"), (prefix("192.168.0.0/16"), "underlay")];
        assert_eq!(find_overlap(&prefix("192.168.77.0/24"), &taken).map(|(_, who)| *who), Some("underlay"));
        assert_eq!(find_overlap(&prefix("10.2.0.0/16"), &taken), None);
    }
}
