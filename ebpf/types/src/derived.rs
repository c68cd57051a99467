//! MACs derived from addresses: a frame's destination MAC names its next hop.
//!
//! The endpoint program answers every neighbour request itself, with a MAC derived from the
//! address. Later the destination MAC of a frame identifies the next hop that the sender chose,
//! without any state. This makes routing through a container work.

use crate::{Address, Mac};

const IPV4: [u8; 2] = [0x02, 0x42];
const IPV6_LOW: [u8; 2] = [0x02, 0x46];
const IPV6_ANY: [u8; 2] = [0x02, 0x47];

/// The next hop that a destination MAC names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// This address.
    Address(Address),
    /// None: the next hop is the packet's IP destination.
    Destination,
}

/// Returns the MAC for `address` in a network whose IPv6 subnet starts with the 96 bits `prefix6`.
///
/// IPv4 `a.b.c.d` is `02:42:aa:bb:cc:dd`. IPv6 is `02:46:` and its last 32 bits if the bits before
/// are `prefix6`, else `02:47:00:00:00:00`.
#[inline]
pub fn derived_mac(address: Address, prefix6: [u8; 12]) -> Mac {
    let [.., a, b, c, d] = address.0;
    let kind = if address.to_v4().is_some() {
        IPV4
    } else if starts_with(address, prefix6) {
        IPV6_LOW
    } else {
        return Mac([IPV6_ANY[0], IPV6_ANY[1], 0, 0, 0, 0]);
    };
    Mac([kind[0], kind[1], a, b, c, d])
}

/// Returns the next hop that a destination MAC names: the inverse of [`derived_mac`]. A MAC that
/// was not derived names none.
#[inline]
pub fn next_hop(mac: Mac, prefix6: [u8; 12]) -> NextHop {
    let [first, second, a, b, c, d] = mac.0;
    let kind = u16::from_ne_bytes([first, second]);
    if kind == u16::from_ne_bytes(IPV4) {
        return NextHop::Address(Address::from_v4([a, b, c, d]));
    }
    if kind == u16::from_ne_bytes(IPV6_LOW) && !is_zero(prefix6) {
        return NextHop::Address(with_low(prefix6, [a, b, c, d]));
    }
    NextHop::Destination
}

#[inline]
fn starts_with(address: Address, prefix6: [u8; 12]) -> bool {
    let [.., a, b, c, d] = address.0;
    !is_zero(prefix6) && address == with_low(prefix6, [a, b, c, d])
}

#[inline]
fn is_zero(prefix6: [u8; 12]) -> bool {
    with_low(prefix6, [0; 4]).is_none()
}

/// Returns the address with this prefix and the 32 bits after it.
#[inline]
const fn with_low(prefix6: [u8; 12], low: [u8; 4]) -> Address {
    let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3] = prefix6;
    let [d0, d1, d2, d3] = low;
    Address([a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3])
}
