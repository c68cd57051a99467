//! Reads and watches of the committed state, which the stores share

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures::stream;
use tokio::sync::watch;

use crate::mvcc::Mvcc;
use crate::{KeyRange, RangeOutcome, Revision, StoreError, WatchBatch, WatchStream};

/// The state of a store, shared by its writer and its readers.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedMvcc(Arc<RwLock<Mvcc>>);

impl SharedMvcc {
    pub(crate) fn new(mvcc: Mvcc) -> Self {
        Self(Arc::new(RwLock::new(mvcc)))
    }

    pub(crate) fn read(&self) -> Result<RwLockReadGuard<'_, Mvcc>, StoreError> {
        self.0.read().map_err(half_applied)
    }

    pub(crate) fn write(&self) -> Result<RwLockWriteGuard<'_, Mvcc>, StoreError> {
        self.0.write().map_err(half_applied)
    }
}

/// A writer that panicked may have left half a transaction, which must not be read.
fn half_applied<T>(_: PoisonError<T>) -> StoreError {
    StoreError::Closed
}

/// Reads committed state, and wakes watches when there is more of it.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    mvcc: SharedMvcc,
    /// The committed revision; closed when the store is.
    committed: watch::Receiver<Revision>,
}

impl Reader {
    pub(crate) fn new(mvcc: SharedMvcc, committed: watch::Receiver<Revision>) -> Self {
        Self { mvcc, committed }
    }

    pub(crate) fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.mvcc.read()?.committed())
    }

    pub(crate) fn range(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        limit: Option<usize>,
    ) -> Result<RangeOutcome, StoreError> {
        self.mvcc.read()?.range(range, at, limit)
    }

    /// A stream that holds no events: it looks each batch up in the history, and waits for the
    /// revision to change when it has caught up. So a slow consumer costs nothing.
    pub(crate) fn watch(&self, range: KeyRange, from: Revision) -> WatchStream {
        let watch = Watch { reader: self.clone(), range, next: from };
        Box::pin(stream::try_unfold(watch, |mut watch| async move {
            let batch = watch.next_batch().await?;
            Ok(Some((batch, watch)))
        }))
    }
}

struct Watch {
    reader: Reader,
    range: KeyRange,
    next: Revision,
}

impl Watch {
    async fn next_batch(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            // Marked as seen before the look, so that a commit during it wakes the wait below.
            let committed = *self.reader.committed.borrow_and_update();
            let step = self.reader.mvcc.read()?.next_change(&self.range, self.next)?;
            self.next = step.next;
            if let Some(batch) = step.batch {
                return Ok(batch);
            }
            if self.next > committed {
                self.reader.committed.changed().await.map_err(|_| StoreError::Closed)?;
            }
        }
    }
}
