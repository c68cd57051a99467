//! Limits how often an endpoint makes its host resolve neighbours.
//!
//! A packet to an unused address beside the host occupies an entry of the kernel's neighbour table
//! for three seconds. The kernel has one table for all network namespaces. So the rate of packets
//! whose next hop is not known is limited for each endpoint.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use mesh_ebpf::rate::Rate;

use super::maps::{self, CACHE_SLOTS, map};
use super::service::packet::Packet;

/// 64 a second. With three requests in three seconds, an endpoint occupies at most 450 entries.
const RATE: Rate = Rate { burst: 256, pause: 15_625_000 };
/// How long a next hop counts as known, in jiffies: 25 to 250 ms.
const KNOWN: u64 = 25;

// By interface index of an endpoint's device: until when its packets to unknown next hops count.
map!(UNRESOLVED: LruHashMap<u32, u64> = LruHashMap::with_max_entries(4096, 0));
map!(NEXT_HOPS: PerCpuArray<Known> = PerCpuArray::with_max_entries(CACHE_SLOTS, 0));

/// An address whose next hop was known. All zeroes match no packet: jiffies never are 0.
#[repr(C)]
pub(super) struct Known {
    until: u64,
    address: [u32; 4],
}

/// Whether the endpoint at a device may send one more packet whose next hop is not known.
#[inline(never)]
pub(super) fn is_allowed(ifindex: u32) -> bool {
    // SAFETY: takes nothing, returns the time.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(until) = UNRESOLVED.get_ptr_mut(&ifindex) else {
        let _ = UNRESOLVED.insert(&ifindex, &(now + RATE.pause), 0);
        return true;
    };
    // SAFETY: entries of preallocated maps always are memory of the map. If two CPUs count at once,
    // one packet may not be counted.
    RATE.allows(unsafe { &mut *until }, now)
}

/// Whether the next hop for the packet's destination was known a moment ago.
#[inline(never)]
pub(super) fn is_known(packet: &Packet) -> bool {
    let address = packet.parsed.destination.words();
    let Some(known) = place(address) else { return false };
    // SAFETY: the entry is this CPU's own; the helper takes nothing and returns the time.
    unsafe { (*known).address == address && (*known).until > bpf_jiffies64() }
}

/// Remembers that the next hop for the packet's destination is known.
#[inline(never)]
pub(super) fn note_known(packet: &Packet) {
    let address = packet.parsed.destination.words();
    let Some(known) = place(address) else { return };
    // SAFETY: as in `is_known`.
    unsafe { *known = Known { until: bpf_jiffies64() + KNOWN, address } };
}

#[inline(always)]
fn place([a, b, c, d]: [u32; 4]) -> Option<*mut Known> {
    NEXT_HOPS.get_ptr_mut(maps::cache_slot([a ^ d, b, c]))
}
