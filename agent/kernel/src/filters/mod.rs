//! Filters of other programs for what containers send: through the host, and to its name server.
//!
//! A packet passes only if every chain at a hook accepts it, so an accept rule in the table `inet
//! mesh` has no effect on them. Docker, for one, sets the policy of iptables' `FORWARD` to `DROP`.
//! As Docker and libvirt do for theirs, rules of ours accept the packets of our containers there; a
//! comment marks them. Chains of nftables are only reported: their owners replace them as a whole.

mod chains;
mod iptables;

use mesh_ipam::Family;
use mesh_model::observed::{FilterHook, ForeignFilters, Iptables};

use crate::KernelError;
pub(crate) use iptables::{close, legacy_tables, open};

/// Reads them all.
pub(crate) fn observe() -> Result<ForeignFilters, KernelError> {
    let mut filters = ForeignFilters::default();
    for chain in chains::list()? {
        // What the command does not understand is treated as any other chain.
        match chain.iptables().and_then(|iptables| Some((iptables, iptables::state(iptables)?))) {
            Some((iptables, state)) => drop(filters.iptables.insert(iptables, state)),
            None => filters.closed.extend(chain.closed()?),
        }
    }
    for family in [Family::Ipv4, Family::Ipv6] {
        // To list a table that does not exist would create it.
        if !iptables::has_legacy_filter(family) {
            continue;
        }
        for hook in [FilterHook::Input, FilterHook::Forward] {
            let iptables = Iptables { family, hook, legacy: true };
            if let Some(state) = iptables::state(iptables) {
                filters.iptables.insert(iptables, state);
            }
        }
    }
    Ok(filters)
}
