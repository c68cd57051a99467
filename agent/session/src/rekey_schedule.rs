//! On a manager: requests a rekey of all nodes at the configured interval.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use mesh_control::Manager;
use mesh_proto::v1::RotateKeysRequest;
use mesh_proto::v1::control_client::ControlClient;
use tokio::time::sleep;

/// Interval between checks of the clock: the machine may be suspended, or its clock set.
const CHECK_INTERVAL: Duration = Duration::from_mins(10);

/// Calls for new keys whenever this node's own, in that file, are `interval` old.
pub async fn run(manager: Manager, interval: Duration, key_file: PathBuf) {
    loop {
        sleep(CHECK_INTERVAL).await;
        let written = std::fs::metadata(&key_file).and_then(|metadata| metadata.modified());
        if !written.is_ok_and(|written| is_due(written, interval, SystemTime::now())) {
            continue;
        }
        let rotated = ControlClient::new(manager.local_channel()).rotate_keys(RotateKeysRequest {}).await;
        if let Err(status) = rotated {
            tracing::warn!(%status, "cannot request new keys of encrypted networks");
        }
    }
}

/// A clock that was set back makes nothing due.
fn is_due(written: SystemTime, interval: Duration, now: SystemTime) -> bool {
    now.duration_since(written).is_ok_and(|age| age >= interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_replaced_when_the_interval_is_over_and_not_before() {
        let at = |hour: u64| SystemTime::UNIX_EPOCH + Duration::from_hours(hour);
        let day = Duration::from_hours(24);
        assert!(!is_due(at(0), day, at(23)));
        assert!(is_due(at(0), day, at(24)));
        assert!(!is_due(at(100), day, at(0)));
    }
}
