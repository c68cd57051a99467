//! How many flows a network may have in `CONNECTIONS`, and when each of them was last used.
//!
//! The map would forget whosever entry was unused for longest. User space shares it out instead: a
//! network that has spent its allowance keeps its new flows in `PENDING`, until user space has
//! allowed it more.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use mesh_ebpf_types::{Allowance, Connection, ConnectionKey, USED_SHIFT, Vni};

use crate::datapath::maps::{ALLOWANCES, CONNECTIONS, PENDING};

/// Moves an entry of `PENDING` to `CONNECTIONS`, if its network may have one more.
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

/// Notes that an entry is used.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "it goes round")]
pub(super) fn note_use(value: &mut Connection) {
    // SAFETY: takes nothing, returns the time.
    value.used = (unsafe { bpf_ktime_get_coarse_ns() } >> USED_SHIFT) as u16;
}

/// Whether a network may have one more entry, which it has then. `vni` has the bytes of a [`Vni`].
#[inline(never)]
fn spend(vni: u32) -> bool {
    let own = ALLOWANCES.get_ptr_mut(Vni(vni.to_ne_bytes()));
    let Some(allowance) = own.or_else(|| ALLOWANCES.get_ptr_mut(Vni::NONE)) else { return true };
    // SAFETY: without preallocation an entry lives until the program ends (RCU); a lost count of
    // refusals is none that matters.
    let Allowance { left, refused } = unsafe { &mut *allowance };
    if *left <= 0 {
        *refused += 1;
        return false;
    }
    // Of two processors that do this at the same instant one may not count. The table has a margin
    // for that.
    *left -= 1;
    true
}
