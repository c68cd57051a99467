//! One call at a time for each attachment: a DEL waits for the ADD that it is to undo.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_model::Owner;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The attachments with a call under way.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<BTreeMap<Owner, Arc<AsyncMutex<()>>>>);

impl Turns {
    /// Waits until no other call about this attachment is under way.
    pub(crate) async fn take(&self, owner: &Owner) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock();
            // What nobody holds and nobody waits for is only in this map.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(owner.clone()).or_default().clone()
        };
        turn.lock_owned().await
    }
}
