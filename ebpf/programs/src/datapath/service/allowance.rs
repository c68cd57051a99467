//! Limits the number of flows of each network in `CONNECTIONS`, and records when each was last
//! used.
//!
//! The map alone would evict the least recently used entry of any network. Instead, user space
//! divides its capacity: a network that has used up its allowance keeps new flows in `PENDING`
//! until user space grants more.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use mesh_ebpf_types::{Allowance, Connection, ConnectionKey, USED_SHIFT, Vni};

use crate::datapath::maps::{ALLOWANCES, CONNECTIONS, PENDING};

/// Moves an entry from `PENDING` to `CONNECTIONS` if its network may have one more.
#[inline(always)]
pub(super) fn promote(network: [u8; 3], key: &ConnectionKey, value: &mut Connection) {
    let [v0, v1, v2] = network;
    if !spend(u32::from_ne_bytes([0, v0, v1, v2])) {
        return;
    }
    note_use(value);
    if CONNECTIONS.insert(key, &*value, 0).is_ok() {
        let _ = PENDING.remove(key);
    }
}

/// Records that an entry is used.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the counter wraps around")]
pub(super) fn note_use(value: &mut Connection) {
    // SAFETY: takes no arguments, returns the time.
    value.used = (unsafe { bpf_ktime_get_coarse_ns() } >> USED_SHIFT) as u16;
}

/// Returns whether a network may have one more entry, and counts that entry. `vni` has the bytes of
/// a [`Vni`].
#[inline(never)]
fn spend(vni: u32) -> bool {
    let own = ALLOWANCES.get_ptr_mut(Vni(vni.to_ne_bytes()));
    let Some(allowance) = own.or_else(|| ALLOWANCES.get_ptr_mut(Vni::NONE)) else { return true };
    // SAFETY: without preallocation an entry lives until the program ends (RCU). A lost count of
    // refusals does no harm.
    let Allowance { left, refused } = unsafe { &mut *allowance };
    if *left <= 0 {
        *refused += 1;
        return false;
    }
    // If two CPUs do this at once, one decrement may be lost. The map has a margin for that.
    *left -= 1;
    true
}
