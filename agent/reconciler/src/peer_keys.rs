//! Follows the other nodes' replacements of their keys, for the kernel's engine.
//!
//! A tunnel address belongs to one key of a node there: packets to the node go by its old key until
//! the engine has looked after the first handshake by the new one. The node takes them meanwhile,
//! until sessions by its old key end.

use std::sync::Arc;
use std::time::Duration;

use mesh_host::blocking;
use tokio::time::sleep;

use crate::encryption::Encryption;

/// How often it is looked which key a node uses, soon after keys have become known: that is when
/// they change.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// How long that is.
const SOON: Duration = Duration::from_mins(1);
/// How often it is looked later: a node that has gone away in the middle has two keys until it
/// comes back.
const LATER: Duration = Duration::from_millis(100);

/// Keeps the engine up to date while any node has two keys, for ever.
pub async fn run(encryption: Arc<Encryption>) {
    let mut replacing = encryption.replacing();
    loop {
        let Ok(Some(since)) = replacing.wait_for(Option::is_some).await.map(|since| *since) else { return };
        let encryption = encryption.clone();
        // What fails here fails in the next reconciliation too, and is reported there.
        let _ = blocking(move || encryption.follow()).await;
        sleep(pause(since.elapsed())).await;
    }
}

fn pause(since: Duration) -> Duration {
    if since < SOON { CHECK_INTERVAL } else { LATER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_keep_two_keys_for_long_are_looked_at_less_often() {
        assert_eq!(pause(Duration::ZERO), CHECK_INTERVAL);
        assert_eq!(pause(Duration::from_hours(1)), LATER);
    }
}
