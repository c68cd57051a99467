//! Counters of a network's server.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a network's server did since it was first served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Questions received.
    pub queries: u64,
    /// Of those, the ones passed on to the host's resolvers.
    pub forwarded: u64,
    /// Questions answered with SERVFAIL: no resolver answered, or too many were waiting.
    pub failed: u64,
    /// Messages that were no question: malformed, or not a query.
    pub malformed: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) queries: Counter,
    pub(crate) forwarded: Counter,
    pub(crate) failed: Counter,
    pub(crate) malformed: Counter,
}

impl Counters {
    pub(crate) fn status(&self) -> Status {
        Status {
            queries: self.queries.get(),
            forwarded: self.forwarded.get(),
            failed: self.failed.get(),
            malformed: self.malformed.get(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
