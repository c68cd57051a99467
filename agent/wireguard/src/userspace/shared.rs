//! State shared by the threads of an engine.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::Thread,
};

use parking_lot::Mutex;

use super::{counters::Counters, peer::Peer, table::Table};
use crate::wake::Wake;

/// Shared by all threads of one engine.
pub(super) struct Shared {
    table: Mutex<Arc<Table>>,
    version: AtomicU64,
    stop: AtomicBool,
    wakes: Vec<Wake>,
    timer: OnceLock<Thread>,
    pub(super) counters: Arc<Counters>,
}

/// A thread's own copy of the table's address.
pub(super) struct TableView {
    version: u64,
    table: Arc<Table>,
}

impl Shared {
    pub(super) fn new(table: Table, wakes: Vec<Wake>, counters: Arc<Counters>) -> Self {
        Self {
            table: Mutex::new(Arc::new(table)),
            version: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            wakes,
            timer: OnceLock::new(),
            counters,
        }
    }

    /// Returns the current table.
    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.lock())
    }

    /// Returns a view for [`Shared::refresh`].
    pub(super) fn view(&self) -> TableView {
        let version = self.version.load(Ordering::Acquire);
        TableView { version, table: self.table() }
    }

    /// Updates a thread's view; costs one atomic read if nothing has changed.
    pub(super) fn refresh<'v>(&self, view: &'v mut TableView) -> &'v Arc<Table> {
        if self.version.load(Ordering::Acquire) != view.version {
            *view = self.view();
        }
        &view.table
    }

    /// Makes `table` the current one.
    pub(super) fn replace(&self, table: Table) {
        *self.table.lock() = Arc::new(table);
        self.version.fetch_add(1, Ordering::Release);
        self.wake_workers();
    }

    /// Wakes the workers because a session was established or ended, the table changed, or the
    /// engine stops.
    pub(super) fn wake_workers(&self) {
        for wake in &self.wakes {
            wake.wake();
        }
    }

    /// Returns the flag that wakes worker number `index`.
    pub(super) fn wake(&self, index: usize) -> &Wake {
        &self.wakes[index]
    }

    /// Sets the thread that runs the timers.
    pub(super) fn set_timer(&self, thread: Thread) {
        // Set once, when the engine starts.
        let _ = self.timer.set(thread);
    }

    /// Starts a peer's timers.
    pub(super) fn start_timers(&self, peer: &Peer) {
        if peer.start_timers()
            && let Some(timer) = self.timer.get()
        {
            timer.unpark();
        }
    }

    /// Requests the end of all threads.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake_workers();
        if let Some(timer) = self.timer.get() {
            timer.unpark();
        }
    }

    /// Returns whether threads must end.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
