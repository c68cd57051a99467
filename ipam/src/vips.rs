//! Virtual addresses of services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::layout::SubnetLayout;
use crate::prefix::Prefix;

/// Why a service gets no virtual address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VipError {
    /// The subnet has no VIP block.
    #[error("subnet {subnet} is too small to have virtual addresses")]
    NoBlock {
        /// The subnet.
        subnet: Prefix,
    },
    /// The address asked for is not one of the VIP block, or is the subnet's broadcast address.
    #[error("{address} is no virtual address of subnet {subnet}: those are from {first} to {last}")]
    Outside {
        /// The address as given.
        address: IpAddr,
        /// The subnet.
        subnet: Prefix,
        /// The first virtual address.
        first: IpAddr,
        /// The last virtual address.
        last: IpAddr,
    },
    /// The address asked for is a service's.
    #[error("virtual address {address} is in use")]
    InUse {
        /// The address as given.
        address: IpAddr,
    },
    /// All are in use.
    #[error("all virtual addresses of subnet {subnet}, from {first} to {last}, are in use")]
    Exhausted {
        /// The subnet.
        subnet: Prefix,
        /// The first virtual address.
        first: IpAddr,
        /// The last virtual address.
        last: IpAddr,
    },
}

/// The virtual address to give a service: the one it wants, or else the first that is neither
/// `used` nor `chosen`, which is about to be used.
pub fn vip(
    layout: &SubnetLayout,
    used: &BTreeSet<IpAddr>,
    chosen: &BTreeSet<IpAddr>,
    wanted: Option<IpAddr>,
) -> Result<IpAddr, VipError> {
    let subnet = layout.subnet();
    let block = layout.vip_block().ok_or(VipError::NoBlock { subnet })?;
    let ends_with_broadcast = block.family() == crate::Family::Ipv4 && block.last() == subnet.last();
    let count = block.size() - u128::from(ends_with_broadcast);
    let first = block.first();
    let last = block.nth(count - 1).unwrap_or(first);
    if let Some(address) = wanted {
        return if !block.contains(address) || address > last {
            Err(VipError::Outside { address, subnet, first, last })
        } else if used.contains(&address) {
            Err(VipError::InUse { address })
        } else {
            Ok(address)
        };
    }
    // Both go up together.
    let mut used = used.range(first..=last).peekable();
    (0..count)
        .filter_map(|index| block.nth(index))
        .find(|address| used.next_if_eq(&address).is_none() && !chosen.contains(address))
        .ok_or(VipError::Exhausted { subnet, first, last })
}
