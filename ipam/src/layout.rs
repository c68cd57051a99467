//! How one subnet of a network is divided: gateway, auxiliary addresses, VIP block, and what is
//! left for containers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::prefix::{Family, Prefix, bits};
use crate::ranges::{Range, RangeSet};

/// One subnet as a person asks for it; what [`SubnetLayout::new`] is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetSpec {
    /// The subnet.
    pub subnet: Prefix,
    /// The gateway's address; the first usable one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The part of the subnet from which addresses are chosen automatically; all of it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<Prefix>,
    /// Addresses that are something else's, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aux: BTreeMap<String, IpAddr>,
}

impl SubnetSpec {
    /// A subnet with the default gateway, no range and no auxiliary addresses.
    pub fn new(subnet: Prefix) -> Self {
        Self { subnet, gateway: None, ip_range: None, aux: BTreeMap::new() }
    }
}

/// Why an address is never a container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// It is not in the subnet.
    Outside {
        /// The subnet.
        subnet: Prefix,
    },
    /// It is the IPv4 network address.
    Network {
        /// The subnet.
        subnet: Prefix,
    },
    /// It is the IPv4 broadcast address.
    Broadcast {
        /// The subnet.
        subnet: Prefix,
    },
    /// It is the IPv6 subnet-router anycast address (RFC 4291, 2.6.1).
    RouterAnycast {
        /// The subnet.
        subnet: Prefix,
    },
    /// It is the gateway.
    Gateway {
        /// The subnet.
        subnet: Prefix,
    },
    /// It is an auxiliary address.
    Aux {
        /// The auxiliary address's name.
        name: String,
    },
    /// It lies in the block from which services get their virtual addresses.
    VipBlock {
        /// That block.
        block: Prefix,
    },
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside { subnet } => write!(f, "outside subnet {subnet}"),
            Self::Network { subnet } => write!(f, "the network address of {subnet}"),
            Self::Broadcast { subnet } => write!(f, "the broadcast address of {subnet}"),
            Self::RouterAnycast { subnet } => write!(f, "the subnet-router anycast address of {subnet}"),
            Self::Gateway { subnet } => write!(f, "the gateway of {subnet}"),
            Self::Aux { name } => write!(f, "auxiliary address {name}"),
            Self::VipBlock { block } => {
                write!(f, "in {block}, which is kept for the virtual addresses of services")
            }
        }
    }
}

/// Why a subnet cannot be laid out as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No address is left for a container.
    #[error(
        "subnet {subnet} is too small: beside the gateway {gateway} and the reserved addresses none is left for a container"
    )]
    SubnetTooSmall {
        /// The subnet.
        subnet: Prefix,
        /// The gateway, given or chosen.
        gateway: IpAddr,
    },
    /// The subnet has addresses that no container can use.
    #[error("subnet {subnet} overlaps {block}, which is {purpose}")]
    NotUsable {
        /// The subnet.
        subnet: Prefix,
        /// The block that it overlaps (RFC 6890).
        block: Prefix,
        /// What that block is for.
        purpose: &'static str,
    },
    /// The gateway is outside the subnet, or is its network, broadcast or anycast address.
    #[error("gateway {gateway} cannot be used: it is {why}")]
    Gateway {
        /// The gateway as given.
        gateway: IpAddr,
        /// What it is already.
        why: Reserved,
    },
    /// An auxiliary address is outside the subnet, the gateway, or the network, broadcast or
    /// anycast address.
    #[error("auxiliary address {name}={address} cannot be used: it is {why}")]
    Aux {
        /// Its name.
        name: String,
        /// The address as given.
        address: IpAddr,
        /// What it is already.
        why: Reserved,
    },
    /// Two auxiliary addresses are the same.
    #[error("auxiliary address {name}={address} is the same as {other}={address}")]
    DuplicateAux {
        /// The second name.
        name: String,
        /// The first name.
        other: String,
        /// The address of both.
        address: IpAddr,
    },
    /// The range is not inside the subnet.
    #[error("IP range {ip_range} is outside subnet {subnet}")]
    RangeOutside {
        /// The range as given.
        ip_range: Prefix,
        /// The subnet.
        subnet: Prefix,
    },
    /// Every address of the range is reserved.
    #[error("IP range {ip_range} of subnet {subnet} has no address for a container: all of it is reserved")]
    RangeEmpty {
        /// The range as given.
        ip_range: Prefix,
        /// The subnet.
        subnet: Prefix,
    },
}

/// One subnet, divided. It depends on the [`SubnetSpec`] alone, so every node and every manager has
/// the same.
///
/// *Dynamic range*: `ip_range`, or else the subnet. Only these addresses are chosen automatically.
///
/// *VIP block*: an aligned sixteenth of the dynamic range, at least four addresses (two of eight)
/// and at most 65536; the last such part without the gateway or an auxiliary address. Large IPv6
/// ranges count as their first 2^32 addresses, which keeps the host part of VIPs short. A range of
/// fewer than eight addresses has room for none: the block is then cut from the rest of the subnet,
/// if there is one of that size.
///
/// *Block*: what one lease is, unless the subnet is nearly full. It has half the host bits of the
/// dynamic range, rounded down, so there are about as many blocks as there are addresses in each;
/// and at most 8 bits. That is a /26 of a /20, a /28 of a /24, a /30 of a /28, a /120 of a /64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetLayout {
    spec: SubnetSpec,
    gateway: IpAddr,
    aux_names: BTreeMap<IpAddr, String>,
    vip_block: Option<Prefix>,
    assignable: RangeSet,
}

impl SubnetLayout {
    /// Checks the parameters and divides the subnet.
    pub fn new(spec: SubnetSpec) -> Result<Self, LayoutError> {
        let subnet = spec.subnet;
        if let Some((block, purpose)) = unusable().into_iter().find(|(block, _)| block.overlaps(&subnet)) {
            return Err(LayoutError::NotUsable { subnet, block, purpose });
        }
        let default_gateway =
            subnet.nth(u128::from(subnet.host_bits() >= 2)).unwrap_or_else(|| subnet.first());
        let gateway = spec.gateway.unwrap_or(default_gateway);
        if let Some(why) = structural(&subnet, gateway) {
            return Err(LayoutError::Gateway { gateway, why });
        }
        let aux_names = aux_names(&spec, gateway)?;
        if let Some(ip_range) = spec.ip_range.filter(|range| !subnet.covers(range)) {
            return Err(LayoutError::RangeOutside { ip_range, subnet });
        }
        let mut layout = Self { spec, gateway, aux_names, vip_block: None, assignable: RangeSet::default() };
        layout.vip_block = layout.choose_vip_block();
        layout.assignable = layout.assignable_ranges();
        if layout.assignable.is_empty() && layout.vip_block.take().is_some() {
            // The few addresses that there are go to containers.
            layout.assignable = layout.assignable_ranges();
        }
        if layout.assignable.is_empty() {
            return Err(match layout.spec.ip_range {
                Some(ip_range) => LayoutError::RangeEmpty { ip_range, subnet },
                None => LayoutError::SubnetTooSmall { subnet, gateway },
            });
        }
        Ok(layout)
    }

    /// What it was made of.
    pub fn spec(&self) -> &SubnetSpec {
        &self.spec
    }

    /// The subnet.
    pub fn subnet(&self) -> Prefix {
        self.spec.subnet
    }

    /// The gateway's address.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The prefix from which addresses are chosen automatically: the IP range, or else the subnet.
    pub fn dynamic_range(&self) -> Prefix {
        self.spec.ip_range.unwrap_or(self.spec.subnet)
    }

    /// The block of virtual addresses; small subnets have none.
    pub fn vip_block(&self) -> Option<Prefix> {
        self.vip_block
    }

    /// The prefix length of a whole block.
    pub fn block_len(&self) -> u8 {
        self.subnet().family().width() - self.block_bits()
    }

    /// The number of addresses in a whole block, 1 to 256.
    pub fn block_size(&self) -> u128 {
        1 << self.block_bits()
    }

    /// Why this address is never a container's; `None` if it can be one's, at least when asked for
    /// by `--ip`.
    pub fn reserved(&self, address: IpAddr) -> Option<Reserved> {
        let subnet = self.subnet();
        if let Some(why) = structural(&subnet, address) {
            return Some(why);
        }
        if address == self.gateway {
            return Some(Reserved::Gateway { subnet });
        }
        if let Some(name) = self.aux_names.get(&address) {
            return Some(Reserved::Aux { name: name.clone() });
        }
        self.vip_block.filter(|block| block.contains(address)).map(|block| Reserved::VipBlock { block })
    }

    /// Whether the address may be chosen automatically: in the dynamic range and not reserved.
    pub fn is_assignable(&self, address: IpAddr) -> bool {
        Family::of(address) == self.subnet().family() && self.assignable.contains(bits(address))
    }

    /// How many addresses may be chosen automatically.
    pub fn assignable_count(&self) -> u128 {
        self.assignable.count()
    }

    /// How many addresses of this prefix may be chosen automatically.
    pub fn assignable_in(&self, prefix: &Prefix) -> u128 {
        if prefix.family() == self.subnet().family() { self.assignable_within(prefix.range()) } else { 0 }
    }

    pub(crate) fn assignable_within(&self, range: Range) -> u128 {
        self.assignable.within(range).map(Range::size).sum()
    }

    /// What may be chosen automatically, as numbers.
    pub(crate) fn assignable(&self) -> &RangeSet {
        &self.assignable
    }

    pub(crate) fn block_bits(&self) -> u8 {
        (self.dynamic_range().host_bits() / 2).min(8)
    }

    fn assignable_ranges(&self) -> RangeSet {
        let subnet = self.subnet();
        let mut ranges = RangeSet::default();
        ranges.insert(self.dynamic_range().range());
        let ends =
            [subnet.first(), subnet.last()].into_iter().filter(|&end| structural(&subnet, end).is_some());
        for address in ends.chain([self.gateway]).chain(self.aux_names.keys().copied()) {
            ranges.remove(Prefix::single(address).range());
        }
        if let Some(block) = self.vip_block {
            ranges.remove(block.range());
        }
        ranges
    }

    fn choose_vip_block(&self) -> Option<Prefix> {
        let (subnet, dynamic) = (self.subnet(), self.dynamic_range());
        let is_free = |block: &Prefix| {
            !block.contains(self.gateway)
                && !block.contains(subnet.first())
                && !self.aux_names.keys().any(|&address| block.contains(address))
        };
        let inside = vip_candidates(dynamic).find(is_free);
        inside.or_else(|| vip_candidates(subnet).find(|block| !block.overlaps(&dynamic) && is_free(block)))
    }
}

/// The parts of a range that could be its VIP block, last first.
fn vip_candidates(range: Prefix) -> impl Iterator<Item = Prefix> {
    let base = if range.host_bits() > 32 { range.resized(range.family().width() - 32) } else { Some(range) };
    let base = base.unwrap_or(range);
    let host_bits = base.host_bits();
    let block_bits = (host_bits >= 3).then(|| host_bits.saturating_sub(4).max(2.min(host_bits - 2)).min(16));
    block_bits.into_iter().flat_map(move |block_bits| {
        let count = 1u128 << (host_bits - block_bits);
        let len = base.family().width() - block_bits;
        (0..count).rev().map(move |index| {
            Prefix::around(base.family(), base.range().first() + (index << block_bits), len)
        })
    })
}

/// Why an address cannot be a host's of this subnet, whatever else is configured. Subnets of two
/// addresses have neither network nor broadcast (RFC 3021) nor anycast address (RFC 6164).
fn structural(subnet: &Prefix, address: IpAddr) -> Option<Reserved> {
    let subnet = *subnet;
    if !subnet.contains(address) {
        return Some(Reserved::Outside { subnet });
    }
    if subnet.host_bits() < 2 {
        return None;
    }
    match subnet.family() {
        Family::Ipv4 if address == subnet.first() => Some(Reserved::Network { subnet }),
        Family::Ipv4 if address == subnet.last() => Some(Reserved::Broadcast { subnet }),
        Family::Ipv6 if address == subnet.first() => Some(Reserved::RouterAnycast { subnet }),
        _ => None,
    }
}

fn aux_names(spec: &SubnetSpec, gateway: IpAddr) -> Result<BTreeMap<IpAddr, String>, LayoutError> {
    let mut names: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (name, &address) in &spec.aux {
        let gateway = (address == gateway).then_some(Reserved::Gateway { subnet: spec.subnet });
        if let Some(why) = structural(&spec.subnet, address).or(gateway) {
            return Err(LayoutError::Aux { name: name.clone(), address, why });
        }
        if let Some(other) = names.insert(address, name.clone()) {
            return Err(LayoutError::DuplicateAux { name: name.clone(), other, address });
        }
    }
    Ok(names)
}

/// Blocks whose addresses no container can have, with what they are for (RFC 6890).
fn unusable() -> [(Prefix, &'static str); 8] {
    let v4 = |a, b, len| Prefix::around(Family::Ipv4, u128::from(Ipv4Addr::new(a, b, 0, 0).to_bits()), len);
    let v6 = |a, len| Prefix::around(Family::Ipv6, Ipv6Addr::new(a, 0, 0, 0, 0, 0, 0, 0).to_bits(), len);
    [
        (v4(0, 0, 8), "\"this network\""),
        (v4(127, 0, 8), "loopback"),
        (v4(169, 254, 16), "link-local"),
        (v4(224, 0, 4), "multicast"),
        (v4(240, 0, 4), "reserved"),
        (v6(0, 8), "reserved for special addresses such as loopback"),
        (v6(0xfe80, 10), "link-local"),
        (v6(0xff00, 8), "multicast"),
    ]
}
