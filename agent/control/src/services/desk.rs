//! What one manager remembers besides the records, so that its calls do not conflict: the free
//! values that calls are trying to take, and the reserved numbers of backends.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_model::{BackendId, NetworkId, Protocol};
use mesh_store::{Compare, Txn};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::feed::Feed;
use crate::keys;
use crate::records::{RecordError, Records, Tries, Versioned, put};

/// Numbers that are reserved at once.
const RUN: u32 = 64;

/// Something free that a call has chosen and is about to write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Choice {
    Vip(NetworkId, IpAddr),
    Port(Protocol, u16),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ServiceDesk {
    chosen: Mutex<BTreeSet<Choice>>,
    /// Tells those who found all that is free chosen by others that some of it has been given back
    /// or written.
    freed: Notify,
    /// Numbers that are reserved and not yet given, the next one and how many.
    numbers: tokio::sync::Mutex<Option<(BackendId, u32)>>,
}

impl ServiceDesk {
    /// Takes the exclusive right to choose.
    pub(super) fn choose(&self) -> Choosing<'_> {
        let taken = self.chosen.lock();
        Choosing { taken, choices: Choices { desk: self, mine: Vec::new() } }
    }

    /// Waits until some call is done with what it chose, from the moment on at which this is
    /// called.
    pub(super) fn freed(&self) -> impl Future<Output = ()> {
        self.freed.notified()
    }

    /// A backend's number that no other backend has or lately had.
    pub(super) async fn number(&self, records: &Records, feed: &Feed) -> Result<BackendId, RecordError> {
        let mut numbers = self.numbers.lock().await;
        loop {
            let (next, left) = match *numbers {
                Some((next, left)) if left > 0 => (next, left),
                _ => (reserve(records).await?, RUN),
            };
            *numbers = Some((next.next(), left - 1));
            // After millions of backends the numbers go round.
            if feed.view().services.backend_by_number(next).is_none() {
                return Ok(next);
            }
        }
    }
}

/// Reserves the run of numbers that begins with the one returned.
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

/// A turn at choosing.
pub(super) struct Choosing<'a> {
    taken: MutexGuard<'a, BTreeSet<Choice>>,
    choices: Choices<'a>,
}

impl<'a> Choosing<'a> {
    /// What others on this manager have chosen.
    pub(super) fn taken(&self) -> &BTreeSet<Choice> {
        &self.taken
    }

    pub(super) fn take(&mut self, choice: Choice) {
        self.taken.insert(choice.clone());
        self.choices.mine.push(choice);
    }

    /// Whether there is something that others have chosen, and may give back.
    pub(super) fn is_contended(&self) -> bool {
        self.taken.len() > self.choices.mine.len()
    }

    pub(super) fn done(self) -> Choices<'a> {
        self.choices
    }
}

/// What a call has chosen; others may choose it again when this is dropped.
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
