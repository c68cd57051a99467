//! Applies the services' maps to the kernel whenever their inputs change. This is not part of a
//! reconciliation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_host::{Backoff, SharedKernel, blocking, kernel_problem};
use mesh_kernel::Kernel;
use mesh_kernel::programs::{AttachedProgram, ProgramsError};
use mesh_model::NodeId;
use mesh_planner::services::{Digest, Dump, Facts, TableProblem, Tables, Update, capacity_for, named_tables};
use mesh_state::{Agent, ServiceRecords};
use tokio::time::{Instant, sleep_until};

use crate::inputs::{Inputs, Scope};

/// Shortest interval between reads and comparisons of the maps.
const RESYNC: Duration = Duration::from_secs(30);
/// The maps are read again after this multiple of the time that the last read took.
const SHARE: u32 = 100;
const LAST_RESYNC: Duration = Duration::from_mins(5);
/// Delays before a failed attempt is retried.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Services that are updated at once when all are: their tables are in memory meanwhile.
const AT_ONCE: usize = 256;
/// Number of failed services that are reported individually.
const PROBLEMS: usize = 5;

/// The known state of the maps, and the inputs from which it was derived.
struct Known {
    tables: Tables,
    seen: Inputs,
    refusal: Option<Refusal>,
}

/// Why the array of tables cannot be enlarged.
struct Refusal {
    entries: u32,
    reason: String,
}

/// Makes room for the tables of all known services before the programs are loaded.
pub fn reserve(agent: &Agent, kernel: &SharedKernel) {
    let entries = agent.read(|state| capacity_for(room(&state.view.services), 0));
    if let Err(error) = kernel.call_here(|kernel| kernel.programs().reserve_backend_tables(entries)) {
        tracing::debug!(%error, "the tables of services were not allocated in advance");
    }
}

/// Returns the maximum number of entries of these services' tables.
fn room(services: &ServiceRecords) -> u64 {
    services.iter().map(|(_, records)| records.room()).sum()
}

/// Keeps the services' part of the kernel up to date until it is cancelled.
pub async fn run(agent: Arc<Agent>, kernel: SharedKernel) {
    agent.view_known().await;
    let begun = Instant::now();
    let mut changes = agent.service_changes();
    let mut reconciliations = agent.reconciliations();
    let mut known: Option<Known> = None;
    let mut former: Option<Tables> = None;
    let mut resync_at = begun;
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    loop {
        changes.mark_unchanged();
        reconciliations.mark_unchanged();
        let seen = agent.read(|state| Inputs::of(state, agent.id()));
        if Instant::now() >= resync_at || known.as_ref().is_some_and(|known| known.seen.loads != seen.loads) {
            former = known.take().map(|known| known.tables);
        }
        let (own, now, revision) = (agent.id().clone(), begun.elapsed(), seen.revision);
        let (was_known, given) = (known.is_some(), former.take());
        let tried = Instant::now();
        let lent = kernel.clone();
        let outcome = blocking(move || bring_up_to_date(&lent, known, given, seen, &own, now)).await;
        let mut retry_at = None;
        match outcome {
            Ok((up_to_date, problems)) => {
                if !was_known {
                    // With ten thousand services this takes long, and changes must wait for it.
                    resync_at = Instant::now() + (tried.elapsed() * SHARE).clamp(RESYNC, LAST_RESYNC);
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
                tracing::warn!(%error, "the services' maps could not be updated");
                agent.fail_services(vec![format!("the services' maps could not be updated: {error}")]);
            }
        }
        let is_loaded = known.is_some() || retry_at.is_some();
        tokio::select! {
            _ = changes.changed(), if is_loaded => {}
            // A reconciliation may have loaded the programs.
            _ = reconciliations.changed(), if !is_loaded => {}
            () = sleep_until(retry_at.unwrap_or(resync_at)), if is_loaded => {}
            () = sleep_until(resync_at), if is_loaded => {}
        }
    }
}

/// Makes one attempt. Returns the new state of the maps and the failures. Computes the steps, which
/// takes longer, while others may use the kernel.
fn bring_up_to_date(
    kernel: &SharedKernel,
    known: Option<Known>,
    former: Option<Tables>,
    seen: Inputs,
    node: &NodeId,
    now: Duration,
) -> Result<(Known, Vec<String>), ProgramsError> {
    let facts = seen.facts(node);
    let (mut tables, mut update, mut refusal) =
        if let Some(Known { mut tables, seen: before, refusal, .. }) = known {
            let update = change(&mut tables, &seen, &before, &facts, now);
            (tables, update, refusal)
        } else {
            let (tables, update) = adopt(kernel, former, &seen, &facts, now)?;
            (tables, update, None)
        };
    kernel.call_here(|kernel| apply(kernel, &update))?;
    if update.problems.is_empty() {
        refusal = None;
    } else {
        let entries = capacity_for(room(&seen.services), tables.capacity());
        let was_refused = refusal.as_ref().is_some_and(|refusal| refusal.entries <= entries);
        if entries > tables.capacity() && !was_refused {
            refusal = grow(kernel, &mut tables, entries)?;
            let waiting = tables.may_have_room(now);
            update = tables.update(waiting.iter().map(|id| (id, seen.services.get(id))), &facts, now);
            kernel.call_here(|kernel| apply(kernel, &update))?;
        }
    }
    let mut problems = lines(&update.problems);
    problems.extend(refusal.as_ref().map(|Refusal { entries, reason }| {
        format!("the tables of services need an array of {entries} entries, which could not be allocated: {reason}")
    }));
    let wanted = seen.services.published().next().is_some();
    if let Err(error) = kernel.call_here(|kernel| follow_sockets(kernel, wanted)) {
        problems.push(format!("published ports do not answer programs of this host itself: {error}"));
    }
    Ok((Known { tables, seen, refusal }, problems))
}

/// Returns the steps that the changes require.
fn change(tables: &mut Tables, seen: &Inputs, before: &Inputs, facts: &Facts<'_>, now: Duration) -> Update {
    match seen.changed_since(before) {
        Scope::All => tables.update_all(seen.services.iter(), facts, now),
        Scope::Some(mut changed) => {
            let waiting = tables.may_have_room(now);
            changed.extend(&waiting);
            let services = changed.into_iter().map(|id| (id, seen.services.get(id)));
            tables.update(services, facts, now)
        }
    }
}

/// Reads and updates the maps; returns their mirror and the last steps.
fn adopt(
    kernel: &SharedKernel,
    former: Option<Tables>,
    seen: &Inputs,
    facts: &Facts<'_>,
    now: Duration,
) -> Result<(Tables, Update), ProgramsError> {
    let capacity = kernel.call_here(|kernel| kernel.programs().backend_tables_size())?;
    let mut tables = Tables::adopt(capacity, dump(kernel)?, former, now);
    let all: Vec<_> = seen.services.iter().collect();
    for some in all.chunks(AT_ONCE) {
        let some = some.iter().map(|(id, records)| (*id, Some(*records)));
        let update = tables.update(some, facts, now);
        kernel.call_here(|kernel| apply(kernel, &update))?;
    }
    let update = tables.adopted(now);
    Ok((tables, update))
}

/// Enlarges the array of tables, or returns why it cannot.
fn grow(kernel: &SharedKernel, tables: &mut Tables, entries: u32) -> Result<Option<Refusal>, ProgramsError> {
    let (grown, capacity) = kernel.call_here(|kernel| {
        let programs = kernel.programs();
        (programs.reserve_backend_tables(entries), programs.backend_tables_size())
    });
    let capacity = capacity?;
    tables.widen(capacity);
    // Use a larger array in any case: the next reconciliation replaces the remaining programs.
    let failure = grown.err().filter(|_| capacity < entries);
    Ok(failure.map(|error| Refusal { entries, reason: kernel_problem(&error.into()).message }))
}

/// Formats problems for people. Thousands of services may have the same problem.
fn lines(problems: &BTreeSet<TableProblem>) -> Vec<String> {
    let mut lines: Vec<String> = problems.iter().take(PROBLEMS).map(ToString::to_string).collect();
    if problems.len() > PROBLEMS {
        lines.push(format!("{} more services could not be updated", problems.len() - PROBLEMS));
    }
    lines
}

/// Attaches the programs for the host's own sockets only while ports are published: they run for
/// every socket.
fn follow_sockets(kernel: &mut dyn Kernel, wanted: bool) -> Result<(), ProgramsError> {
    let programs = kernel.programs();
    match (programs.sockets()?, wanted) {
        (Some(AttachedProgram::Current), true) | (None, false) => Ok(()),
        (_, true) => programs.attach_sockets(),
        (_, false) => programs.detach_sockets(),
    }
}

/// Reads what the maps hold.
fn dump(kernel: &SharedKernel) -> Result<Dump, ProgramsError> {
    let entries = kernel.call_here(|kernel| kernel.programs().tables())?;
    let mut tables = BTreeMap::new();
    for (first, length) in named_tables(entries.values()) {
        // What lies past the array's end is no table; the entry that names it is written anew.
        let read = kernel.call_here(|kernel| kernel.programs().read_backend_tables(first, length));
        if let Ok(backends) = read {
            tables.insert(first, Digest::of(&backends));
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
        programs.write_backend_tables(table.first, &table.backends)?;
    }
    if !update.entries.is_empty() {
        programs.put_tables(&update.entries)?;
    }
    if !update.gone.is_empty() {
        programs.delete_tables(&update.gone)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
