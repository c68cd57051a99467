//! How many entries of the connection table each network has.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_ebpf_types::Vni;
use mesh_kernel::ProgramsError;
use tokio::time::Instant;

use crate::platform::Platform;

/// Counting reads the whole table, so what was counted serves all who ask within this time.
const AGE: Duration = Duration::from_secs(30);

/// What was counted, and when.
#[derive(Debug, Default)]
pub(crate) struct Occupancy(tokio::sync::Mutex<Option<(Instant, BTreeMap<Vni, u64>)>>);

impl Occupancy {
    /// Counts them, unless that was done a moment ago.
    pub(crate) async fn count(&self, platform: &Platform) -> Result<BTreeMap<Vni, u64>, ProgramsError> {
        let mut counted = self.0.lock().await;
        if let Some((at, counts)) = counted.as_ref()
            && at.elapsed() < AGE
        {
            return Ok(counts.clone());
        }
        let counts = platform.kernel.call(|kernel| kernel.programs().connections()).await?;
        *counted = Some((Instant::now(), counts.clone()));
        Ok(counts)
    }
}
