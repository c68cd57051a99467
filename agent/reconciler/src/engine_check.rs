//! Checks the engine every second: a process that is suspended or hangs is replaced.

use std::sync::Arc;
use std::time::Duration;

use mesh_host::blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::encryption::Encryption;

/// Interval between checks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Checks the engine, for ever.
pub async fn run(encryption: Arc<Encryption>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let encryption = encryption.clone();
        blocking(move || encryption.check()).await;
    }
}
