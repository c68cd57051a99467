//! A manager's state besides the records, so that its calls do not conflict: the free values that
//! calls are about to take, and the reserved backend numbers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_model::{BackendId, NetworkId, Protocol};
use mesh_store::{Compare, Txn};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::feed::Feed;
use crate::keys;
use crate::records::{RecordError, Records, Tries, Versioned, put};

/// Number of backend numbers that are reserved at once.
const RUN: u32 = 64;

/// A free value that a call has chosen and is about to write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Choice {
    Vip(NetworkId, IpAddr),
    Port(Protocol, u16),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ServiceDesk {
    chosen: Mutex<BTreeSet<Choice>>,
    /// Notifies calls that found all free values chosen by others: some were released or written.
    freed: Notify,
    /// Reserved numbers that are not yet used: the next one and how many.
    numbers: tokio::sync::Mutex<Option<(BackendId, u32)>>,
}

impl ServiceDesk {
    /// Acquires the exclusive right to choose.
    pub(super) fn choose(&self) -> Choosing<'_> {
        let taken = self.chosen.lock();
        Choosing { taken, choices: Choices { desk: self, mine: Vec::new() } }
    }

    /// Waits until some call has finished with its choices, counted from the time of this call.
    pub(super) fn freed(&self) -> impl Future<Output = ()> {
        self.freed.notified()
    }

    /// Returns a backend number that no other backend has or had recently.
    pub(super) async fn number(&self, records: &Records, feed: &Feed) -> Result<BackendId, RecordError> {
        let mut numbers = self.numbers.lock().await;
        loop {
            let (next, left) = match *numbers {
                Some((next, left)) if left > 0 => (next, left),
                _ => (reserve(records).await?, RUN),
            };
            *numbers = Some((next.next(), left - 1));
            // After millions of backends the numbers wrap around.
            if feed.view().services.backend_by_number(next).is_none() {
                return Ok(next);
            }
        }
    }
}

/// Reserves a run of numbers, and returns the first.
async fn reserve(records: &Records) -> Result<BackendId, RecordError> {
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let key = keys::backend_numbers();
        let last: Option<Versioned<BackendId>> = records.get(key.clone()).await?;
        let unchanged = match &last {
            Some(last) => Compare::mod_revision(key.clone(), last.revision),
            None => Compare::absent(key.clone()),
        };
        let last = last.map_or(BackendId::LAST, |last| last.value);
        let first = last.next();
        let txn = Txn::when([unchanged]).then([put(key, &last.after(RUN))]);
        if records.commit(txn).await?.is_some() {
            return Ok(first);
        }
    }
}

/// An exclusive right to choose.
pub(super) struct Choosing<'a> {
    taken: MutexGuard<'a, BTreeSet<Choice>>,
    choices: Choices<'a>,
}

impl<'a> Choosing<'a> {
    /// Returns the choices of other calls on this manager.
    pub(super) fn taken(&self) -> &BTreeSet<Choice> {
        &self.taken
    }

    pub(super) fn take(&mut self, choice: Choice) {
        self.taken.insert(choice.clone());
        self.choices.mine.push(choice);
    }

    /// Returns whether other calls have choices that they may release.
    pub(super) fn is_contended(&self) -> bool {
        self.taken.len() > self.choices.mine.len()
    }

    pub(super) fn done(self) -> Choices<'a> {
        self.choices
    }
}

/// The choices of a call; they become available when this is dropped.
#[derive(Debug)]
pub(super) struct Choices<'a> {
    desk: &'a ServiceDesk,
    mine: Vec<Choice>,
}

impl Drop for Choices<'_> {
    fn drop(&mut self) {
        if self.mine.is_empty() {
            return;
        }
        let mut chosen = self.desk.chosen.lock();
        for choice in &self.mine {
            chosen.remove(choice);
        }
        self.desk.freed.notify_waiters();
    }
}
