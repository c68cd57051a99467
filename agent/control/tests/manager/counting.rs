//! A store that counts operations: the cost of a call, independent of the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_store::{KeyRange, RangeOutcome, Revision, Store, StoreFuture, Txn, TxnOutcome, WatchStream};

/// Wraps another store and counts.
pub(crate) struct Counting {
    inner: Arc<dyn Store>,
    read: AtomicUsize,
    transactions: AtomicUsize,
}

/// The operations of a store so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Keys that reads returned, and reads that returned none.
    pub(crate) read: usize,
    /// Transactions.
    pub(crate) transactions: usize,
}

impl Work {
    /// Returns the operations since then.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { read: self.read - before.read, transactions: self.transactions - before.transactions }
    }
}

impl Counting {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, read: AtomicUsize::new(0), transactions: AtomicUsize::new(0) }
    }

    pub(crate) fn work(&self) -> Work {
        Work {
            read: self.read.load(Ordering::Relaxed),
            transactions: self.transactions.load(Ordering::Relaxed),
        }
    }
}

impl Store for Counting {
    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn range(
        &self,
        range: KeyRange,
        at: Option<Revision>,
        limit: Option<usize>,
    ) -> StoreFuture<'_, RangeOutcome> {
        Box::pin(async move {
            let outcome = self.inner.range(range, at, limit).await?;
            self.read.fetch_add(outcome.kvs.len().max(1), Ordering::Relaxed);
            Ok(outcome)
        })
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.inner.txn(txn)
    }

    fn watch(&self, range: KeyRange, from: Revision) -> WatchStream {
        self.inner.watch(range, from)
    }

    fn compact(&self, up_to: Revision) -> StoreFuture<'_, ()> {
        self.inner.compact(up_to)
    }

    fn revision(&self) -> StoreFuture<'_, Revision> {
        self.inner.revision()
    }
}
