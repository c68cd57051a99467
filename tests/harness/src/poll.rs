//! Waiting for a condition with a deadline, never for a fixed time.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// Time between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(10);

/// Asks `condition` until it answers with a value, at most for `timeout`; it is asked at least
/// once.
pub fn poll_until<T>(timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(INTERVAL);
    }
}

/// Like [`poll_until`] for a plain condition; [`Error::Timeout`] names `what` did not come.
pub fn eventually(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    poll_until(timeout, || condition().then_some(()))
        .ok_or_else(|| Error::Timeout { what: what.to_owned(), after: timeout })
}
