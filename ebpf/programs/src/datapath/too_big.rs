//! A packet that does not fit the tunnel and must not be fragmented: its sender is told how big it may be.

use mesh_ebpf::checksum;
use mesh_ebpf::ethernet::{self, Ethernet};
use mesh_ebpf::too_big::{self, QUOTE, V4_HEADERS, V6_HEADERS};
use mesh_ebpf_types::{Reason, Vni};

use super::count::{count, dropped};
use super::skb::{Refused, Skb};
use super::{PASS, Verdict};

/// Turns the packet into the answer and sends it back. [`PASS`], and nothing changed, where the kernel refuses to cut it.
///
/// A call, not inlined: its buffers are not on the stack of every other packet. `vni` has the bytes of a [`Vni`].
#[inline(never)]
pub(super) fn answer(skb: Skb, vni: u32, mtu: u32) -> Verdict {
    let vni = Vni(vni.to_ne_bytes());
    let (Ok(header), Ok(sum)) = (skb.load(0), quote_sum(skb)) else { return PASS };
    if skb.resize(const { 14 + QUOTE as u32 }).is_err() {
        return PASS;
    }
    let ethernet = Ethernet::parse(&header);
    let mtu = if mtu > 0xffff { 0xffff } else { mtu as u16 };
    let written = if ethernet.ethertype == ethernet::IPV4 { v4(skb, mtu, sum) } else { v6(skb, mtu, sum) };
    let back = Ethernet { destination: ethernet.source, source: ethernet.destination, ..ethernet };
    if written.and_then(|()| skb.store(0, &back.to_bytes())).is_err() {
        return dropped(skb, vni, Reason::TooBig);
    }
    count(skb, vni, Reason::TooBigAnswered);
    skb.send(skb.ifindex())
}

#[inline(always)]
fn quote_sum(skb: Skb) -> Result<u32, Refused> {
    let mut quote = skb.load::<QUOTE>(14)?;
    Ok(checksum::from_native(Skb::sum(&mut quote)))
}

#[inline(always)]
fn v4(skb: Skb, mtu: u16, quote_sum: u32) -> Result<(), Refused> {
    let headers = too_big::v4(skb.load(14 + 12)?, mtu, quote_sum);
    skb.make_room(const { V4_HEADERS as i32 })?;
    skb.store(14, &headers)
}

#[inline(always)]
fn v6(skb: Skb, mtu: u16, quote_sum: u32) -> Result<(), Refused> {
    let headers = too_big::v6(&skb.load(14 + 8)?, mtu, quote_sum);
    skb.make_room(const { V6_HEADERS as i32 })?;
    skb.store(14, &headers)
}
