//! A manager's state of leases besides the records.

use std::time::{Duration, Instant};

use mesh_model::{NetworkId, Prefix};
use parking_lot::Mutex;

/// For this long, a released prefix is leased to others only if nothing else is free.
const RESTS: Duration = Duration::from_mins(1);

/// A manager's state besides the records, so that its decisions do not conflict.
#[derive(Debug, Default)]
pub(crate) struct LeaseDesk {
    /// Serializes decisions for each network; networks share a few locks.
    deciding: [tokio::sync::Mutex<()>; 16],
    released: Mutex<Vec<(NetworkId, Prefix, Instant)>>,
}

impl LeaseDesk {
    pub(super) async fn turn(&self, network: &NetworkId) -> tokio::sync::MutexGuard<'_, ()> {
        let digit = network.as_str().bytes().next().map_or(0, |b| usize::from(b % 16));
        self.deciding[digit].lock().await
    }

    pub(super) fn released(&self, network: &NetworkId, prefix: Prefix) {
        let now = Instant::now();
        let mut released = self.released.lock();
        released.retain(|(_, _, at)| now.saturating_duration_since(*at) < RESTS);
        released.push((network.clone(), prefix, now));
    }

    pub(super) fn recently_released(&self, network: &NetworkId) -> Vec<Prefix> {
        let now = Instant::now();
        let released = self.released.lock();
        let resting =
            released.iter().filter(|(id, _, at)| id == network && now.saturating_duration_since(*at) < RESTS);
        resting.map(|(_, prefix, _)| *prefix).collect()
    }
}
