//! MACs derived from addresses: a frame's destination MAC names its next hop.
//!
//! The endpoint program answers every neighbour request itself. The MAC that it gives tells it later, without any
//! state, which next hop the sender chose; a container that routes for others works because of it.

use crate::{Address, Mac};

const IPV4: [u8; 2] = [0x02, 0x42];
const IPV6_LOW: [u8; 2] = [0x02, 0x46];
const IPV6_ANY: [u8; 2] = [0x02, 0x47];

/// What a destination MAC says of the next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// This address.
    Address(Address),
    /// Nothing: the next hop is the packet's IP destination.
    Destination,
}

/// The MAC that stands for `address` in a network whose IPv6 subnet starts with the 96 bits `prefix6`.
///
/// IPv4 `a.b.c.d` is `02:42:aa:bb:cc:dd`. IPv6 is `02:46:` and its last 32 bits where the bits before are `prefix6`,
/// else `02:47:00:00:00:00`.
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

/// The next hop that a destination MAC names: the inverse of [`derived_mac`]. A MAC that was not derived names none.
#[inline]
pub fn next_hop(mac: Mac, prefix6: [u8; 12]) -> NextHop {
    let [first, second, a, b, c, d] = mac.0;
    if [first, second] == IPV4 {
        return NextHop::Address(Address::from_v4([a, b, c, d]));
    }
    if [first, second] == IPV6_LOW && prefix6 != [0; 12] {
        let [p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11] = prefix6;
        return NextHop::Address(Address([p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, a, b, c, d]));
    }
    NextHop::Destination
}

#[inline]
fn starts_with(address: Address, prefix6: [u8; 12]) -> bool {
    let [head @ .., _, _, _, _] = address.0;
    prefix6 != [0; 12] && head == prefix6
}
