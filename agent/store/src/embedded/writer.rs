//! The thread that executes transactions and makes them durable

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::journal::Journal;
use crate::reader::SharedMvcc;
use crate::{OpenError, Revision, StoreError, Txn, TxnOutcome};

/// Number of transactions that one sync makes durable at most.
const BATCH: usize = 512;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked for.
pub(super) enum Request {
    Txn { txn: Txn, reply: Reply<TxnOutcome> },
    Compact { up_to: Revision, reply: Reply<()> },
}

pub(super) struct Writer {
    path: PathBuf,
    /// `None` after a failed write, until the file was opened and read again: only the file
    /// knows then whether the write took place.
    journal: Option<Journal>,
    mvcc: SharedMvcc,
    committed: watch::Sender<Revision>,
}

impl Writer {
    pub(super) fn new(journal: Journal, mvcc: SharedMvcc, committed: watch::Sender<Revision>) -> Self {
        Self { path: journal.path().to_owned(), journal: Some(journal), mvcc, committed }
    }

    /// Serves requests in their order until the queue is closed.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut txns = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            let mut next = Some(first);
            while let Some(request) = next.take() {
                match request {
                    Request::Txn { txn, reply } => txns.push((txn, reply)),
                    Request::Compact { up_to, reply } => {
                        self.serve(&mut txns);
                        answer(reply, self.compact(up_to));
                    }
                }
                if txns.len() < BATCH {
                    next = queue.try_recv().ok();
                }
            }
            self.serve(&mut txns);
        }
    }

    /// Executes the transactions one after the other, makes them durable together, and answers
    /// them.
    fn serve(&mut self, txns: &mut Vec<(Txn, Reply<TxnOutcome>)>) {
        let (txns, replies): (Vec<Txn>, Vec<Reply<TxnOutcome>>) = txns.drain(..).unzip();
        if txns.is_empty() {
            return;
        }
        match self.execute(&txns) {
            Ok(outcomes) => {
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    answer(reply, outcome);
                }
            }
            Err(error) => {
                for reply in replies {
                    answer(reply, Err(error.clone()));
                }
            }
        }
    }

    /// The outer error is one of the disk: then none of the transactions is acknowledged.
    fn execute(&mut self, txns: &[Txn]) -> Result<Vec<Result<TxnOutcome, StoreError>>, StoreError> {
        let journal = self.journal.take().map_or_else(|| self.reopen(), Ok)?;
        let outcomes = {
            let mut mvcc = self.mvcc.write()?;
            txns.iter().map(|txn| mvcc.apply(txn)).collect()
        };
        // Readers go on during the sync: they see what is committed.
        let written = {
            let mvcc = self.mvcc.read()?;
            if mvcc.head() > mvcc.committed() { journal.append(&mvcc) } else { Ok(()) }
        };
        // After an error, what is pending stays invisible until the state is read from the file
        // anew.
        written.map_err(|error| self.disk_error(error))?;
        self.journal = Some(journal);
        let mut mvcc = self.mvcc.write()?;
        mvcc.commit();
        self.committed.send_replace(mvcc.committed());
        Ok(outcomes)
    }

    fn compact(&mut self, up_to: Revision) -> Result<(), StoreError> {
        let journal = self.journal.take().map_or_else(|| self.reopen(), Ok)?;
        let superseded = {
            let mvcc = self.mvcc.read()?;
            match mvcc.must_compact(up_to) {
                Ok(true) => mvcc.superseded(up_to),
                done_or_refused => {
                    self.journal = Some(journal);
                    return done_or_refused.map(|_| ());
                }
            }
        };
        journal.compact(up_to, &superseded).map_err(|error| self.disk_error(error))?;
        self.journal = Some(journal);
        self.mvcc.write()?.compact(up_to);
        Ok(())
    }

    /// Takes up what the file has, which may be a write that seemed to fail.
    fn reopen(&mut self) -> Result<Journal, StoreError> {
        let (journal, found) = Journal::open(&self.path).map_err(|error| self.disk_error(error))?;
        let mut mvcc = self.mvcc.write()?;
        if found.committed() < mvcc.committed() {
            return Err(self.disk_error(OpenError::Damaged {
                path: self.path.clone(),
                reason: format!("it has lost what followed revision {}", found.committed()),
            }));
        }
        *mvcc = found;
        self.committed.send_replace(mvcc.committed());
        Ok(journal)
    }

    fn disk_error(&self, source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
        StoreError::Disk { path: self.path.clone(), source: Arc::new(source) }
    }
}

/// Who asked may be gone; what was done stays done.
fn answer<T>(reply: Reply<T>, result: Result<T, StoreError>) {
    let _: Result<(), Result<T, StoreError>> = reply.send(result);
}
