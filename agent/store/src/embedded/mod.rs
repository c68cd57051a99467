//! The store in one file on a manager's disk

mod journal;
mod writer;

use std::path::Path;
use std::thread::{self, JoinHandle};

use tokio::sync::{mpsc, oneshot, watch};

use crate::mvcc::Mvcc;
use crate::reader::{Reader, SharedMvcc};
use crate::{
    KeyRange, OpenError, RangeOutcome, Revision, Store, StoreError, StoreFuture, Txn, TxnOutcome, WatchStream,
};
use journal::Journal;
use writer::{Request, Writer};

/// Number of requests that may wait for the writer before callers do.
const QUEUE: usize = 1024;

/// A durable [`Store`] in one file (redb), open in one process at a time.
///
/// The state and its history since the last compaction are in memory too, so that reads never touch
/// the disk. One thread writes: it executes the transactions that wait one after the other and
/// makes them durable with one sync.
///
/// Dropping the store waits for that thread and releases the file.
#[derive(Debug)]
pub struct EmbeddedStore {
    reader: Reader,
    /// `None` only while the store is dropped.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the store at `path`, which must exist. Reads and checks the whole file: this blocks.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let (journal, mvcc) = Journal::open(path.as_ref())?;
        Self::start(journal, mvcc)
    }

    /// Makes an empty store at `path`, where nothing may be yet, readable by its owner only. This
    /// blocks.
    ///
    /// A crash leaves either no file at `path` or a whole one.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::start(Journal::create(path.as_ref())?, Mvcc::default())
    }

    /// Opens the store at `path`, or makes it when there is none. This blocks.
    pub fn open_or_create(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        match Self::open(path.as_ref()) {
            Err(OpenError::Missing { .. }) => match Self::create(path.as_ref()) {
                // Another process was faster; it holds the lock or has left a whole store.
                Err(OpenError::Exists { .. }) => Self::open(path),
                created => created,
            },
            opened => opened,
        }
    }

    fn start(journal: Journal, mvcc: Mvcc) -> Result<Self, OpenError> {
        let path = journal.path().to_owned();
        let (committed, changes) = watch::channel(mvcc.committed());
        let mvcc = SharedMvcc::new(mvcc);
        let reader = Reader::new(mvcc.clone(), changes);
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer::new(journal, mvcc, committed);
        let writer = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|source| OpenError::Io { path, source })?;
        Ok(Self { reader, requests: Some(requests), writer: Some(writer) })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.send(request(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Store for EmbeddedStore {
    /// One process has the file open.
    fn is_shared(&self) -> bool {
        false
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
        Box::pin(self.ask(|reply| Request::Txn { txn, reply }))
    }

    fn watch(&self, range: KeyRange, from: Revision) -> WatchStream {
        self.reader.watch(range, from)
    }

    fn compact(&self, up_to: Revision) -> StoreFuture<'_, ()> {
        Box::pin(self.ask(move |reply| Request::Compact { up_to, reply }))
    }

    fn revision(&self) -> StoreFuture<'_, Revision> {
        Box::pin(async move { self.reader.revision() })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // The writer ends when its queue is closed and empty.
        drop(self.requests.take());
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so, and left nothing half written: redb's commits are
            // atomic.
            let _: thread::Result<()> = writer.join();
        }
    }
}
