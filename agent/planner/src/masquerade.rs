//! Source ports for outgoing traffic of containers, excluding ports that the host itself answers.
//!
//! Mesh's published ports and the kernel's NAT share the ports of the host's addresses. If both
//! used a port, replies to the flows of one would be delivered to the other.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use mesh_model::observed::{FirewallState, MasqueradePorts};
use mesh_model::{Desired, Observed};

/// Ports that the kernel chooses for the host's sockets by default (`ip_local_port_range`): no
/// services are expected there.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;
/// All unprivileged ports.
const HIGH: RangeInclusive<u16> = 1024..=65535;
/// The privileged ports that the kernel's own NAT uses.
const LOW: RangeInclusive<u16> = 600..=1023;
/// This many contiguous ports are enough.
const ENOUGH: usize = 4096;
const ENOUGH_LOW: usize = 64;

/// Returns whether a port is among the usual candidates.
pub(crate) fn is_candidate(port: u16) -> bool {
    LOW.contains(&port) || EPHEMERAL.contains(&port)
}

/// Returns the ports to use on this host.
pub(crate) fn ports(desired: &Desired, observed: &Observed) -> MasqueradePorts {
    let mut avoided = desired.avoided_ports.clone();
    avoided.insert(desired.underlay.port);
    match &observed.firewall {
        FirewallState::Intact(firewall) => choose(&avoided, Some(&firewall.ports)),
        FirewallState::Absent | FirewallState::Altered => choose(&avoided, None),
    }
}

/// Keeps the current ranges while none of their ports must be avoided: another choice rewrites the
/// firewall.
fn choose(avoided: &BTreeSet<u16>, current: Option<&MasqueradePorts>) -> MasqueradePorts {
    // Traffic with collisions is better than none: if no port is left, use all.
    let high = || {
        let usual = largest_gap(&EPHEMERAL, avoided).filter(|gap| gap.len() >= ENOUGH);
        usual.or_else(|| largest_gap(&HIGH, avoided)).unwrap_or(HIGH)
    };
    let low = || largest_gap(&LOW, avoided).unwrap_or(LOW);
    MasqueradePorts {
        low: kept(current.map(|ports| &ports.low), &LOW, ENOUGH_LOW, avoided).unwrap_or_else(low),
        high: kept(current.map(|ports| &ports.high), &HIGH, ENOUGH, avoided).unwrap_or_else(high),
    }
}

/// Returns the current range if it is still suitable.
fn kept(
    current: Option<&RangeInclusive<u16>>,
    within: &RangeInclusive<u16>,
    enough: usize,
    avoided: &BTreeSet<u16>,
) -> Option<RangeInclusive<u16>> {
    let range = current?;
    let inside = within.contains(range.start()) && within.contains(range.end());
    let serves = inside && range.len() >= enough && avoided.range(range.clone()).next().is_none();
    serves.then(|| range.clone())
}

/// Returns the largest range without ports to avoid; the first if several are equal.
fn largest_gap(within: &RangeInclusive<u16>, avoided: &BTreeSet<u16>) -> Option<RangeInclusive<u16>> {
    let mut largest: Option<RangeInclusive<u16>> = None;
    let mut start = Some(*within.start());
    let ends = avoided.range(within.clone()).map(|port| (port.checked_sub(1), port.checked_add(1)));
    for (end, next) in ends.chain([(Some(*within.end()), None)]) {
        if let (Some(start), Some(end)) = (start, end)
            && start <= end
            && largest.as_ref().is_none_or(|range| range.len() < usize::from(end - start) + 1)
        {
            largest = Some(start..=end);
        }
        start = next;
    }
    largest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Single ports, and runs of them.
    fn avoided() -> impl Strategy<Value = BTreeSet<u16>> {
        let run = (1..=u16::MAX, 0..20_000_u16).prop_map(|(first, more)| first..=first.saturating_add(more));
        let runs = prop::collection::vec(run, 0..4).prop_map(|runs| runs.into_iter().flatten());
        (runs, prop::collection::btree_set(any::<u16>(), 0..40))
            .prop_map(|(runs, ports)| runs.chain(ports).collect())
    }

    fn is_free(range: &RangeInclusive<u16>, avoided: &BTreeSet<u16>) -> bool {
        avoided.range(range.clone()).next().is_none()
    }

    proptest! {
        #[test]
        fn no_avoided_port_is_used_while_others_are_free(before in avoided(), after in avoided()) {
            let first = choose(&before, None);
            let next = choose(&after, Some(&first));
            for (range, within) in [(&next.low, LOW), (&next.high, HIGH)] {
                prop_assert!(within.contains(range.start()) && within.contains(range.end()));
                let any_free = within.clone().any(|port| !after.contains(&port));
                prop_assert!(is_free(range, &after) || !any_free, "{range:?}");
            }
        }

        #[test]
        fn the_current_range_stays_while_it_is_free_and_large_enough(before in avoided(), after in avoided()) {
            let first = choose(&before, None);
            let next = choose(&after, Some(&first));
            if is_free(&first.high, &after) && first.high.len() >= ENOUGH {
                prop_assert_eq!(&next.high, &first.high);
            }
            if is_free(&first.low, &after) && first.low.len() >= ENOUGH_LOW {
                prop_assert_eq!(&next.low, &first.low);
            }
        }

        #[test]
        fn the_largest_free_range_is_used_if_the_usual_ones_do_not_suffice(avoided in avoided()) {
            let chosen = choose(&avoided, None).high;
            let mut run = 0;
            let mut largest = 0;
            for port in HIGH {
                run = if avoided.contains(&port) { 0 } else { run + 1 };
                largest = largest.max(run);
            }
            let usual = EPHEMERAL.contains(chosen.start()) && chosen.len() >= ENOUGH;
            prop_assert!(usual || chosen.len() == largest || largest == 0, "{chosen:?}, {largest}");
        }
    }

    #[test]
    fn without_published_ports_the_kernels_default_range_is_used_except_tunnel_ports() {
        let chosen = choose(&[4789, 51820].into(), None);
        assert_eq!(chosen, MasqueradePorts { low: 600..=1023, high: 32768..=51819 });
    }
}
