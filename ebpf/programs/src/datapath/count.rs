//! Counters and events.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes};
use mesh_ebpf_types::{Counter, CounterKey, EVENTS_WANTED, Event, Reason, Vni};

use super::maps::{COUNTERS, EARLY, EVENTS, config};
use super::skb::Skb;
use super::verdict::Verdict;

/// Number of drops that are reported before sampling starts, and of later drops for each event.
const EVENTS_AT_FIRST: u64 = 16;
const EVENTS_SAMPLE: u64 = 64;

/// Counts a packet.
#[inline(always)]
pub(super) fn count(skb: Skb, vni: Vni, reason: Reason) {
    count_as(vni, reason, skb.segments(), skb.length());
}

/// Counts a super-packet as this many packets, with the frame's length.
#[inline(always)]
pub(super) fn count_as(vni: Vni, reason: Reason, packets: u32, length: u32) {
    count_number(vni, reason as u32, packets, length);
}

/// As [`count_as`], with the reason's number.
#[inline(always)]
pub(super) fn count_number(vni: Vni, reason: u32, packets: u32, length: u32) {
    add(u32::from_ne_bytes(vni.0), reason, packets, length);
}

/// Counts a packet that the XDP program forwards.
#[inline(always)]
pub(super) fn count_early(length: u32) {
    if let Some(counter) = EARLY.get_ptr_mut(0) {
        // SAFETY: as in `add`.
        let counter = unsafe { &mut *counter };
        counter.packets += 1;
        counter.bytes += u64::from(length);
    }
}

/// Counts and drops a packet, and reports it if there is a reader of events.
#[inline(always)]
pub(super) fn dropped(skb: Skb, vni: Vni, reason: Reason) -> Verdict {
    drop_packet(skb.context(), u32::from_ne_bytes(vni.0), reason as u32);
    Verdict::Drop
}

/// Returns the number of packets counted on this CPU. `vni` has the bytes of a [`Vni`].
#[inline(never)]
fn add(vni: u32, reason: u32, packets: u32, length: u32) -> u64 {
    let key = CounterKey { vni: Vni(vni.to_ne_bytes()), reason };
    let (packets, bytes) = (u64::from(packets), u64::from(length));
    if let Some(counter) = COUNTERS.get_ptr_mut(key) {
        // SAFETY: the entry belongs to this CPU, programs do not interrupt each other on one CPU,
        // and entries live until the program ends.
        let counter = unsafe { &mut *counter };
        counter.packets += packets;
        counter.bytes += bytes;
        return counter.packets;
    }
    // This packet is not counted if the map is full, or another CPU creates the entry meanwhile.
    let _ = COUNTERS.insert(key, Counter { packets, bytes }, 0);
    packets
}

#[inline(never)]
fn drop_packet(context: *mut __sk_buff, vni: u32, reason: u32) {
    let skb = Skb::new(context);
    let packets = add(vni, reason, skb.segments(), skb.length());
    let wanted = config().is_some_and(|config| config.flags & EVENTS_WANTED != 0);
    if !wanted || (packets > EVENTS_AT_FIRST && packets % EVENTS_SAMPLE != 0) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: the entry has the size of an event; every field is written before it is submitted. If
    // the frame is shorter than the excerpt, the rest stays zero.
    unsafe {
        (*event).time = bpf_ktime_get_ns();
        (*event).vni = Vni(vni.to_ne_bytes());
        (*event).reason = reason;
        (*event).ifindex = skb.ifindex();
        (*event).length = skb.length();
        (*event).header = [0; 64];
        let header = (&raw mut (*event).header).cast();
        if bpf_skb_load_bytes(context.cast(), 0, header, 64) != 0 {
            let _ = bpf_skb_load_bytes(context.cast(), 0, header, 34);
        }
    }
    entry.submit(0);
}
