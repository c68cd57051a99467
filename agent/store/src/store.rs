//! The trait that every store implements

use std::pin::Pin;

use futures::Stream;
use futures::future::BoxFuture;

use crate::{Key, KeyRange, KeyValue, Revision, StoreError, Txn, TxnOutcome};

/// What the methods of a [`Store`] return: boxed, so that the trait can be used as `Arc<dyn
/// Store>`.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// The batches of a watch. It ends after the first error, and never otherwise.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchBatch, StoreError>> + Send>>;

/// Ordered keys with a history: linearizable reads and transactions, and watches without gaps.
///
/// Each transaction that changes something makes the next revision. The history is kept until
/// [`compact`](Store::compact).
pub trait Store: Send + Sync + 'static {
    /// Whether several managers can work on it at once.
    fn is_shared(&self) -> bool;

    /// Reads the live keys of `range` in order, at most `limit` of them.
    ///
    /// `at: None` reads the latest state, which has every transaction acknowledged before the call.
    /// A revision that is not there any more is [`StoreError::Compacted`], one to come
    /// [`StoreError::FutureRevision`].
    fn range(
        &self,
        range: KeyRange,
        at: Option<Revision>,
        limit: Option<usize>,
    ) -> StoreFuture<'_, RangeOutcome>;

    /// Executes a transaction. When it returns `Ok`, what was written survives a crash (of a
    /// durable store).
    ///
    /// A future that is dropped before it returns may or may not have had its effect.
    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome>;

    /// Streams the changes of `range` from revision `from` on, that one included: history first,
    /// then live.
    ///
    /// Nothing is skipped or repeated, however slow the consumer is, and a slow consumer holds up
    /// no writer; when a compaction overtakes it, the stream ends with [`StoreError::Compacted`].
    /// `from` may be in the future. After a range at revision r, watch from
    /// [`r.next()`](Revision::next).
    fn watch(&self, range: KeyRange, from: Revision) -> WatchStream;

    /// Forgets the history before `up_to`, which stays readable itself. Doing it again does
    /// nothing.
    fn compact(&self, up_to: Revision) -> StoreFuture<'_, ()>;

    /// The latest revision.
    fn revision(&self) -> StoreFuture<'_, Revision>;

    /// Reads one key, as it is now.
    fn get(&self, key: Key) -> StoreFuture<'_, Option<KeyValue>> {
        let outcome = self.range(KeyRange::key(key), None, Some(1));
        Box::pin(async move { Ok(outcome.await?.kvs.pop()) })
    }
}

/// The result of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeOutcome {
    /// The revision that was read.
    pub revision: Revision,
    /// The live keys of the range at that revision, in order.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut the range short. The next page starts at the last key's
    /// [`successor`](Key::successor), and must be read at [`revision`](Self::revision) to fit this
    /// one.
    pub more: bool,
}

/// What one revision changed in a watched range: never empty, and each key at most once, in no
/// promised order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// The revision.
    pub revision: Revision,
    /// Its changes.
    pub events: Vec<Event>,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was written.
    Put(KeyValue),
    /// The key was deleted.
    Delete {
        /// The key.
        key: Key,
        /// The revision that deleted it.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }
}
