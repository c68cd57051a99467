//! Answers a packet that does not fit the tunnel and must not be fragmented with the MTU.

use mesh_ebpf::checksum;
use mesh_ebpf::headers::{Buffer, ETHERNET, ETHERTYPE_IPV4};
use mesh_ebpf::too_big::{self, QUOTE, V4_HEADERS, V6_HEADERS};
use mesh_ebpf_types::{Reason, Vni};

use super::count::{count, dropped};
use super::skb::{Refused, Skb};
use super::verdict::Verdict;

const NO_SUM: u64 = u64::MAX;

/// Turns the packet into the answer and sends it back. Returns [`Verdict::Pass`], with the packet
/// unchanged, if the kernel refuses to truncate it.
///
/// The parts are calls, not inlined: their buffers must not be on the stack of every other packet,
/// nor on the stack at the same time. `vni` has the bytes of a [`Vni`].
#[inline(never)]
pub(super) fn answer(skb: Skb, vni: u32, mtu: u32) -> Verdict {
    let vni = Vni(vni.to_ne_bytes());
    let sum = quote_sum(skb);
    let mut ethernet = Buffer::<ETHERNET>::new();
    if sum == NO_SUM
        || skb.read(0, &mut ethernet.bytes).is_err()
        || skb.resize(const { 14 + QUOTE as u32 }).is_err()
    {
        return Verdict::Pass;
    }
    let mtu = if mtu > 0xffff { 0xffff } else { mtu as u16 };
    let sum = checksum::from_native(sum as u32);
    let written = if u16::from_be_bytes(ethernet.half(12)) == ETHERTYPE_IPV4 {
        v4(skb, mtu, sum)
    } else {
        v6(skb, mtu, sum)
    };
    let (back_to, from) = (ethernet.mac(6), ethernet.mac(0));
    ethernet.set_mac(0, back_to);
    ethernet.set_mac(6, from);
    if !written || skb.store(0, &ethernet.bytes).is_err() {
        return dropped(skb, vni, Reason::TooBig);
    }
    count(skb, vni, Reason::TooBigAnswered);
    skb.send(skb.ifindex())
}

/// Returns the sum of the quote in native byte order; [`NO_SUM`] if the packet is too short.
#[inline(never)]
fn quote_sum(skb: Skb) -> u64 {
    let mut quote = Buffer::<QUOTE>::new();
    match skb.read(14, &mut quote.bytes) {
        Ok(()) => Skb::sum(&mut quote.bytes).into(),
        Err(Refused) => NO_SUM,
    }
}

#[inline(never)]
fn v4(skb: Skb, mtu: u16, quote_sum: u32) -> bool {
    let Ok(addresses) = skb.load(14 + 12) else { return false };
    let headers = too_big::v4(addresses, mtu, quote_sum);
    skb.make_room(const { V4_HEADERS as i32 }).and_then(|()| skb.store(14, &headers)).is_ok()
}

#[inline(never)]
fn v6(skb: Skb, mtu: u16, quote_sum: u32) -> bool {
    let mut addresses = Buffer::new();
    let mut headers = Buffer::new();
    if skb.read(14 + 8, &mut addresses.bytes).is_err() {
        return false;
    }
    too_big::v6(&addresses.bytes, mtu, quote_sum, &mut headers.bytes);
    skb.make_room(const { V6_HEADERS as i32 }).and_then(|()| skb.store(14, &headers.bytes)).is_ok()
}
