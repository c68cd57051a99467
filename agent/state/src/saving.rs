//! What is written to the disk, and when.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_sys::durable::{self, FileError, Survives};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::time::{sleep, timeout};

use crate::agent::Agent;
use crate::state::State;

/// How often changes that may wait are written. Those of the view and of names do not: an agent
/// that is killed and begins with old ones takes from the kernel, and from containers, what those
/// do not know.
const SAVE: Duration = Duration::from_secs(1);
/// Time between two writes at least.
const PAUSE: Duration = Duration::from_millis(50);
/// And so many times what the last one took of a processor, in a large cluster.
const SHARE: u32 = 20;

/// Saves changes until it is cancelled.
pub async fn run(agent: Arc<Agent>) {
    let mut failing = false;
    loop {
        // By its end the time has come for all, and so it has by news that do not wait.
        let _ = timeout(SAVE, agent.unsaved.notified()).await;
        let saving = agent.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let begun = processor_time();
            let saved = saving.save_changes();
            (saved, processor_time().saturating_sub(begun))
        });
        // A panic has been reported, and the next turn tries again.
        let (saved, took) = saved.await.unwrap_or((Ok(()), Duration::ZERO));
        if let Err(error) = saved.as_ref()
            && !failing
        {
            tracing::error!(%error, "the state cannot be saved");
        }
        failing = saved.is_err();
        sleep(PAUSE.max(took * SHARE)).await;
    }
}

/// What this thread has used of a processor: on a busy machine, the time that passes says nothing
/// about the work.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

impl Agent {
    /// Whether the disk has of the view what an attach relies on: this node's networks and leases.
    pub fn own_view_is_saved(&self) -> bool {
        let wanted = self.read(|state| state.own_view_number);
        self.view_on_disk.load(Ordering::Acquire) >= wanted
    }

    /// Makes sure that it has. It has to survive as much as the endpoint does whose attach relies
    /// on it.
    pub fn save_own_view(&self) -> Result<(), FileError> {
        let wanted = self.read(|state| state.own_view_number);
        self.save_view(wanted, Survives::Kill)
    }

    /// Writes what has changed of the view and of the pools, for the next start. Nothing of it has
    /// to be durable: what has is written where it is relied upon.
    pub fn save_changes(&self) -> Result<(), FileError> {
        let wanted = self.read(|state| state.view_number);
        self.save_view(wanted, Survives::Kill)?;
        self.save_names()?;
        self.save_health()?;
        self.save_pools(Survives::Kill)
    }

    fn save_names(&self) -> Result<(), FileError> {
        let take = |state: &mut State| state.soft.take_changed_names();
        self.save_changed(&self.paths.names(), take, |state| state.soft.touch_names(), Survives::Kill)
    }

    fn save_health(&self) -> Result<(), FileError> {
        let take = |state: &mut State| state.soft.take_changed_health();
        self.save_changed(&self.paths.health(), take, |state| state.soft.touch_health(), Survives::Kill)
    }

    /// Writes what `take` returns, if that has changed; after a failure `touch` marks it as
    /// changed.
    fn save_changed<T: Serialize>(
        &self,
        path: &Path,
        take: impl FnOnce(&mut State) -> Option<T>,
        touch: impl FnOnce(&mut State),
        survives: Survives,
    ) -> Result<(), FileError> {
        let _one_at_a_time = self.saving.lock();
        let Some(changed) = self.update(take) else { return Ok(()) };
        let written = durable::write_json(path, &changed, survives);
        if written.is_err() {
            self.update(touch);
        }
        written
    }

    /// Writes down which addresses rest, so that an agent that is killed the next moment does not
    /// allocate them at once.
    pub fn save_released(&self) -> Result<(), FileError> {
        self.save_pools(Survives::Kill)
    }

    /// Writes all of the view and of the pools durably. Another node relies on it only afterwards.
    pub fn save_everything(&self) -> Result<(), FileError> {
        let wanted = self.read(|state| state.view_number);
        self.save_view(wanted, Survives::PowerLoss)?;
        self.update(|state| state.pools.touch());
        self.save_pools(Survives::PowerLoss)
    }

    fn save_view(&self, wanted: u64, survives: Survives) -> Result<(), FileError> {
        let _one_at_a_time = self.saving.lock();
        if self.view_on_disk.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        let (number, view, is_lost) =
            self.read(|state| (state.view_number, state.view.clone(), state.lost_view.is_some()));
        if is_lost {
            return Ok(());
        }
        durable::write_json(&self.paths.view(), &view, survives)?;
        self.view_on_disk.store(number, Ordering::Release);
        Ok(())
    }

    fn save_pools(&self, survives: Survives) -> Result<(), FileError> {
        let take = |state: &mut State| {
            // Those that wait for a view are on the disk, and not among the pools.
            if state.lost_view.is_some() { None } else { state.pools.take_changed() }
        };
        self.save_changed(&self.paths.released(), take, |state| state.pools.touch(), survives)
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::v1;
    use tokio::time::Instant;

    use super::*;
    use crate::fake::{self, view};
    use crate::view::ClusterView;

    /// An agent in a directory of its own, with what that has on the disk.
    fn load(dir: &std::path::Path) -> Arc<Agent> {
        Arc::new(fake::agent(dir))
    }

    fn names(agent: &Agent) -> Vec<String> {
        let text = |state: &State| {
            let all = state.soft.names.values().flat_map(std::collections::BTreeMap::values);
            all.map(|endpoint| endpoint.name.to_string()).collect()
        };
        agent.read(text)
    }

    fn endpoint(n: u32) -> v1::Endpoints {
        let endpoint = v1::Endpoint {
            id: format!("{n:024x}"),
            name: format!("c{n}"),
            network_id: format!("{:024x}", 9),
            node_id: format!("{:024x}", 2),
            ipv4: format!("10.64.0.{n}"),
            ..v1::Endpoint::default()
        };
        v1::Endpoints { put: vec![endpoint], ..v1::Endpoints::default() }
    }

    #[test]
    fn a_view_that_the_disk_has_already_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        load(dir.path()).save_changes().unwrap();
        let agent = load(dir.path());
        let path = agent.paths.view();
        std::fs::write(&path, "what nobody wrote over").unwrap();
        agent.set_view(view(), None);
        agent.save_changes().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "what nobody wrote over");
        agent.set_view(ClusterView { revision: view().revision + 1, ..view() }, None);
        agent.save_changes().unwrap();
        assert_eq!(durable::read_json::<ClusterView>(&path).unwrap().unwrap().revision, view().revision + 1);
    }

    /// Time stands still but for what is waited for.
    #[tokio::test(start_paused = true)]
    async fn names_are_on_the_disk_long_before_what_may_wait_would_be() {
        let dir = tempfile::tempdir().unwrap();
        let agent = load(dir.path());
        let task = tokio::spawn(run(agent.clone()));
        // The view comes first and is written; the names come while the pause after it lasts.
        agent.set_view(view(), None);
        sleep(Duration::from_millis(1)).await;
        let begun = Instant::now();
        for n in 10..13 {
            agent.receive_endpoints(&endpoint(n));
            while !names(&load(dir.path())).contains(&format!("c{n}")) {
                sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(begun.elapsed() < SAVE, "{:?}", begun.elapsed());
        task.abort();
    }
}
