//! The step from one revision to the next.

use mesh_store::Event;

use super::View;
use super::batch::{Batch, Before};

impl View {
    /// Advances to the next revision, and returns its changes for each node.
    pub(crate) fn apply(&mut self, revision: u64, events: &[Event]) -> Batch {
        let before = Before::new(self, events);
        let changes = events
            .iter()
            .filter_map(|event| match event {
                Event::Put(kv) => self.put(kv),
                Event::Delete { key, .. } => self.remove(key),
            })
            .collect();
        self.revision = revision;
        before.batch(self, changes)
    }
}
