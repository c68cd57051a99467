//! The store of tests: nothing outlives it

use tokio::sync::watch;

use crate::reader::{Reader, SharedMvcc};
use crate::{KeyRange, RangeOutcome, Revision, Store, StoreError, StoreFuture, Txn, TxnOutcome, WatchStream};

/// A [`Store`] in memory.
#[derive(Debug)]
pub struct MemoryStore {
    mvcc: SharedMvcc,
    committed: watch::Sender<Revision>,
    reader: Reader,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        let mvcc = SharedMvcc::default();
        let (committed, changes) = watch::channel(Revision::FIRST);
        let reader = Reader::new(mvcc.clone(), changes);
        Self { mvcc, committed, reader }
    }

    fn execute(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        let mut mvcc = self.mvcc.write()?;
        let outcome = mvcc.apply(txn)?;
        mvcc.commit();
        // Under the lock, so that the revision never goes back.
        self.committed.send_replace(mvcc.committed());
        Ok(outcome)
    }

    fn remove_history(&self, up_to: Revision) -> Result<(), StoreError> {
        let mut mvcc = self.mvcc.write()?;
        if mvcc.must_compact(up_to)? {
            mvcc.compact(up_to);
        }
        Ok(())
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    /// Within one process.
    fn is_shared(&self) -> bool {
        true
    }

    fn range(
        &self,
        range: KeyRange,
        at: Option<Revision>,
        limit: Option<usize>,
    ) -> StoreFuture<'_, RangeOutcome> {
        Box::pin(async move { self.reader.range(&range, at, limit) })
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        Box::pin(async move { self.execute(&txn) })
    }

    fn watch(&self, range: KeyRange, from: Revision) -> WatchStream {
        self.reader.watch(range, from)
    }

    fn compact(&self, up_to: Revision) -> StoreFuture<'_, ()> {
        Box::pin(async move { self.remove_history(up_to) })
    }

    fn revision(&self) -> StoreFuture<'_, Revision> {
        Box::pin(async move { self.reader.revision() })
    }
}
