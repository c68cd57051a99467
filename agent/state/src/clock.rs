//! The time that address pools count in.

use std::time::SystemTime;

/// Milliseconds since 1970: what address pools count in.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
