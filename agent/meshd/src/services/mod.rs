//! The services' part of the kernel: applied as soon as anything changes that they follow from, and never by a pass.

mod backends;
pub mod ports;
mod records;
mod soft;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_kernel::Kernel;
use mesh_kernel::programs::{AttachedProgram, ProgramsError};
use mesh_model::{BackendId, Network, NetworkId, Node, NodeId, NodeState};
use mesh_planner::services::{Dump, Facts, Tables, Update, named_table};
use tokio::time::{Instant, sleep_until};

pub use self::records::{ServiceRecords, UnknownService};
pub(crate) use self::soft::SavedNames;
pub use self::soft::Soft;
use crate::agent::{Agent, State};
use crate::encryption::Wish;
use crate::managers::Backoff;
use crate::reconcile::SharedKernel;

/// The maps are read and compared this often.
const RESYNC: Duration = Duration::from_secs(30);
/// Pauses before something is tried again that has failed.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// Looks at what services follow from beside their own records.
pub(crate) fn with_facts<R>(state: &State, node: &NodeId, look: impl FnOnce(&Facts<'_>) -> R) -> R {
    let (down, unhealthy, peers) = (down(state), state.soft.unhealthy(), peers(state, node));
    look(&Facts {
        node,
        nodes: &state.view.nodes,
        down: &down,
        networks: &state.view.networks,
        unhealthy: &unhealthy,
        peers: &peers,
    })
}

fn down(state: &State) -> BTreeSet<NodeId> {
    let down = state.node_states.iter().filter(|(_, state)| **state == NodeState::Down);
    down.map(|(node, _)| node.clone()).collect()
}

fn peers(state: &State, own: &NodeId) -> BTreeMap<NodeId, u16> {
    Wish::of(&state.view, own).map(|wish| wish.indexes()).unwrap_or_default()
}

/// All that the services' entries follow from, at one moment.
#[derive(Debug, Clone)]
struct Seen {
    revision: u64,
    /// How often the programs had been loaded, each time with what maps were there.
    loads: u64,
    services: ServiceRecords,
    nodes: BTreeMap<NodeId, Node>,
    networks: BTreeMap<NetworkId, Network>,
    down: BTreeSet<NodeId>,
    unhealthy: BTreeSet<BackendId>,
    peers: BTreeMap<NodeId, u16>,
}

/// What has to be looked at.
enum Scope<'a> {
    All,
    Some(BTreeSet<&'a mesh_model::ServiceId>),
}

impl Seen {
    fn of(state: &State, own: &NodeId) -> Self {
        Self {
            revision: state.view.revision,
            loads: state.loads,
            services: state.view.services.clone(),
            nodes: state.view.nodes.clone(),
            networks: state.view.networks.clone(),
            down: down(state),
            unhealthy: state.soft.unhealthy(),
            peers: peers(state, own),
        }
    }

    fn facts<'a>(&'a self, node: &'a NodeId) -> Facts<'a> {
        Facts {
            node,
            nodes: &self.nodes,
            down: &self.down,
            networks: &self.networks,
            unhealthy: &self.unhealthy,
            peers: &self.peers,
        }
    }

    /// What may want other entries than before.
    fn changed_since<'a>(&'a self, before: &'a Self) -> Scope<'a> {
        if self.nodes != before.nodes || self.peers != before.peers {
            return Scope::All;
        }
        let mut changed = self.services.changed_since(&before.services);
        let nodes: BTreeSet<&NodeId> = self.down.symmetric_difference(&before.down).collect();
        let backends: BTreeSet<&BackendId> = self.unhealthy.symmetric_difference(&before.unhealthy).collect();
        // Every network of the cluster is told, and most have no services here.
        let networks: BTreeSet<&NetworkId> = self
            .networks
            .keys()
            .chain(before.networks.keys())
            .filter(|id| self.networks.get(*id) != before.networks.get(*id))
            .collect();
        if !networks.is_empty() {
            let affected =
                self.services.iter().filter(|(_, records)| networks.contains(&records.service.network));
            changed.extend(affected.map(|(id, _)| id));
        }
        if !nodes.is_empty() || !backends.is_empty() {
            let affected = self.services.iter().filter(|(_, records)| {
                records.backends.values().any(|b| nodes.contains(&b.node) || backends.contains(&b.id))
            });
            changed.extend(affected.map(|(id, _)| id));
        }
        Scope::Some(changed)
    }
}

/// What the loop knows of the maps, and what that is the result of.
struct Known {
    tables: Tables,
    seen: Seen,
    /// Whether the programs of the host's own sockets are attached.
    sockets: bool,
}

/// Keeps the services' part of the kernel as it should be, for ever.
pub async fn run(agent: Arc<Agent>, kernel: SharedKernel) {
    let begun = Instant::now();
    let mut changes = agent.service_changes();
    let mut passes = agent.passes();
    let mut known: Option<Known> = None;
    let mut former: Option<Tables> = None;
    let mut resync_at = begun;
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    loop {
        changes.mark_unchanged();
        passes.mark_unchanged();
        let seen = agent.read(|state| Seen::of(state, agent.id()));
        if Instant::now() >= resync_at || known.as_ref().is_some_and(|known| known.seen.loads != seen.loads) {
            former = known.take().map(|known| known.tables);
        }
        let (own, now, revision) = (agent.id().clone(), begun.elapsed(), seen.revision);
        let (was_known, given) = (known.is_some(), former.take());
        let work = move |kernel: &mut dyn Kernel| bring_up_to_date(kernel, known, given, seen, &own, now);
        let outcome = kernel.call(work).await;
        let mut retry_at = None;
        match outcome {
            Ok((up_to_date, problems)) => {
                if !was_known {
                    resync_at = Instant::now() + RESYNC;
                }
                backoff.reset();
                retry_at = up_to_date.tables.due().map(|due| begun + due);
                agent.finish_services(revision, problems);
                known = Some(up_to_date);
            }
            Err(ProgramsError::NotLoaded) => known = None,
            Err(error) => {
                known = None;
                retry_at = Some(Instant::now() + backoff.pause());
                tracing::warn!(%error, "services are not brought up to date");
                agent.fail_services(vec![format!("services are not brought up to date: {error}")]);
            }
        }
        let is_loaded = known.is_some() || retry_at.is_some();
        tokio::select! {
            _ = changes.changed(), if is_loaded => {}
            // A pass may have loaded the programs.
            _ = passes.changed(), if !is_loaded => {}
            () = sleep_until(retry_at.unwrap_or(resync_at)), if is_loaded => {}
            () = sleep_until(resync_at), if is_loaded => {}
        }
    }
}

/// One attempt: what is known of the maps afterwards, and what could not be done.
fn bring_up_to_date(
    kernel: &mut dyn Kernel,
    known: Option<Known>,
    former: Option<Tables>,
    seen: Seen,
    node: &NodeId,
    now: Duration,
) -> Result<(Known, Vec<String>), ProgramsError> {
    let facts = seen.facts(node);
    let had_sockets = known.as_ref().map(|known| known.sockets);
    let (tables, update) = if let Some(Known { mut tables, seen: before, .. }) = known {
        let update = match seen.changed_since(&before) {
            Scope::All => tables.update_all(seen.services.iter(), &facts, now),
            Scope::Some(mut changed) => {
                let waiting: Vec<_> = tables.without_room().cloned().collect();
                changed.extend(&waiting);
                let services = changed.into_iter().map(|id| (id, seen.services.get(id)));
                tables.update(services, &facts, now)
            }
        };
        (tables, update)
    } else {
        let capacity = kernel.programs().maglev_size()?;
        let mut tables = Tables::adopt(capacity, dump(kernel)?, former, now);
        let update = tables.update_all(seen.services.iter(), &facts, now);
        (tables, update)
    };
    let mut problems: Vec<String> = update.problems.iter().map(ToString::to_string).collect();
    apply(kernel, &update)?;
    let wanted = seen.services.iter().any(|(_, records)| !records.service.ports.is_empty());
    let sockets = match follow_sockets(kernel, had_sockets, wanted) {
        Ok(()) => wanted,
        Err(error) => {
            problems.push(format!("published ports do not answer programs of this host itself: {error}"));
            !wanted
        }
    };
    Ok((Known { tables, seen, sockets }, problems))
}

/// The programs of the host's own sockets stand only where ports are published: they are called for every socket.
fn follow_sockets(kernel: &mut dyn Kernel, had: Option<bool>, wanted: bool) -> Result<(), ProgramsError> {
    if had == Some(wanted) {
        return Ok(());
    }
    let programs = kernel.programs();
    match (programs.sockets()?, wanted) {
        (Some(AttachedProgram::Current), true) | (None, false) => Ok(()),
        (_, true) => programs.attach_sockets(),
        (_, false) => programs.detach_sockets(),
    }
}

/// Reads what the maps hold.
fn dump(kernel: &mut dyn Kernel) -> Result<Dump, ProgramsError> {
    let entries = kernel.programs().tables()?;
    let mut lengths: BTreeMap<u32, u32> = BTreeMap::new();
    for (first, size) in entries.values().filter_map(named_table) {
        let length = lengths.entry(first).or_default();
        *length = size.max(*length);
    }
    let mut tables = BTreeMap::new();
    for (first, length) in lengths.into_iter().filter(|(_, length)| *length > 0) {
        // What lies past the array's end is no table; the entry that names it is written anew.
        if let Ok(backends) = kernel.programs().read_maglev(first, length) {
            tables.insert(first, backends);
        }
    }
    Ok(Dump { entries, tables })
}

fn apply(kernel: &mut dyn Kernel, update: &Update) -> Result<(), ProgramsError> {
    if update.is_empty() {
        return Ok(());
    }
    let programs = kernel.programs();
    if !update.backends.is_empty() {
        programs.put_tables(&update.backends)?;
    }
    for table in &update.tables {
        programs.write_maglev(table.first, &table.backends)?;
    }
    if !update.entries.is_empty() {
        programs.put_tables(&update.entries)?;
    }
    if !update.gone.is_empty() {
        programs.delete_tables(&update.gone)?;
    }
    Ok(())
}
