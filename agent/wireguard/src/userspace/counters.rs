//! Counts of dropped packets.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::DropReason;

/// One counter for each reason.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; DropReason::ALL.len()]);

impl Counters {
    /// Counts one packet.
    pub(super) fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts `packets` packets.
    pub(super) fn add(&self, reason: DropReason, packets: u64) {
        if packets > 0 {
            // The values of the enum are the indices.
            self.0[reason as usize].fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// Returns the counts of all reasons with dropped packets.
    pub(super) fn snapshot(&self) -> BTreeMap<DropReason, u64> {
        DropReason::ALL
            .into_iter()
            .zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let counters = Counters::default();
        for (times, reason) in DropReason::ALL.into_iter().enumerate() {
            counters.add(reason, times as u64 + 1);
        }
        let counted: Vec<u64> = DropReason::ALL.iter().map(|reason| counters.snapshot()[reason]).collect();
        assert_eq!(counted, (1..=DropReason::ALL.len() as u64).collect::<Vec<_>>());
    }
}
