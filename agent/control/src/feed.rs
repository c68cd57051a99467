//! Follows the store, maintains the current view, and passes each revision's changes to the
//! sessions.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use mesh_store::{KeyRange, Revision, Store, StoreError};
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::{broadcast, watch};
use tracing::warn;

use crate::limits;
use crate::records::RecordError;
use crate::view::{Batch, View};

/// An event for a session.
#[derive(Debug, Clone)]
pub(crate) enum News {
    /// The next revision.
    Batch(Arc<Batch>),
    /// Revisions were missed: start again with a snapshot.
    Gap,
}

/// The current view and its subscribers.
#[derive(Debug)]
pub(crate) struct Feed {
    view: RwLock<View>,
    news: broadcast::Sender<News>,
    revision: watch::Sender<u64>,
}

impl Feed {
    /// Reads the whole store.
    pub(crate) async fn start(store: &dyn Store) -> Result<Self, RecordError> {
        let view = read(store).await?;
        Ok(Self {
            revision: watch::Sender::new(view.revision),
            view: RwLock::new(view),
            news: broadcast::Sender::new(limits::FEED_BACKLOG),
        })
    }

    /// Returns the current view. Hold it only briefly.
    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read()
    }

    /// Returns data from the current view, and a receiver of every change after it, without a gap
    /// or overlap.
    pub(crate) fn subscribe<T>(&self, pick: impl FnOnce(&View) -> T) -> (T, broadcast::Receiver<News>) {
        let view = self.view();
        (pick(&view), self.news.subscribe())
    }

    /// Returns a receiver of the view's revision.
    pub(crate) fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Waits until the view contains everything that is in the store now.
    pub(crate) async fn catch_up(&self, store: &dyn Store) -> Result<(), RecordError> {
        self.reached(store.revision().await?.0).await;
        Ok(())
    }

    /// Waits until the view has this revision.
    pub(crate) async fn reached(&self, revision: u64) {
        let mut revisions = self.revisions();
        // The sender lives as long as `self`.
        let _ = revisions.wait_for(|now| *now >= revision).await;
    }

    /// Follows the store until it is closed.
    pub(crate) async fn run(&self, store: Arc<dyn Store>) {
        loop {
            let from = Revision(self.view().revision).next();
            let error = self.follow(store.watch(KeyRange::all(), from)).await;
            match error {
                None | Some(StoreError::Closed) => return,
                Some(error) => warn!(%error, "lost track of the store; reading it again"),
            }
            match read(&*store).await {
                Ok(view) => self.replace(view),
                Err(RecordError::Store(StoreError::Closed)) => return,
                Err(error) => {
                    warn!(%error, "cannot read the store");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn follow(&self, mut watch: mesh_store::WatchStream) -> Option<StoreError> {
        while let Some(batch) = watch.next().await {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return Some(error),
            };
            let mut view = self.view.write();
            let changes = Arc::new(view.apply(batch.revision.0, &batch.events));
            // Under the lock, so that a subscriber's snapshot and its first news are consistent. It
            // is no error if there are no subscribers.
            let _ = self.news.send(News::Batch(changes));
            self.revision.send_replace(batch.revision.0);
        }
        None
    }

    fn replace(&self, new: View) {
        let mut view = self.view.write();
        self.revision.send_replace(new.revision);
        *view = new;
        // As above.
        let _ = self.news.send(News::Gap);
    }
}

async fn read(store: &dyn Store) -> Result<View, RecordError> {
    let outcome = store.range(KeyRange::all(), None, None).await?;
    Ok(View::new(outcome.revision.0, &outcome.kvs))
}
