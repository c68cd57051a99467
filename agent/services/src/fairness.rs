//! Divides the table of established flows among the networks; see [`mesh_planner::fairness`].
//!
//! The allowances are read each second, a few hundred bytes. The flows themselves are counted when
//! a network has used much of its allowance, and seldom otherwise. If this task stops, the programs
//! continue until the allowances are used up; then new flows of that network are not established.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_ebpf_types::{Allowance, Connection, ConnectionKey, Vni};
use mesh_host::SharedKernel;
use mesh_kernel::programs::{Programs, ProgramsError};
use mesh_planner::fairness::{Chooser, Share, Usage, clock, network, shares};
use mesh_state::Agent;
use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

/// Interval between checks of the allowances.
const INTERVAL: Duration = Duration::from_secs(1);
/// The flows are counted again after this multiple of the time that the last count took.
const SHARE: u32 = 20;
/// Longest interval between counts, if any flows were established.
const RECOUNT: Duration = Duration::from_mins(1);
/// How long a network counts as limited after it needed more than its share.
const LIMITED: Duration = Duration::from_mins(1);
/// The table counts as nearly full at this number of 32nds.
const NEARLY_FULL: u64 = 26;
/// The fraction 1/n of the table that is reserved for networks that are not known yet.
const UNKNOWN: u64 = 16;
/// A network that may create fewer entries than 1/n of the table has reached its limit.
const SCARCE: u64 = 64;

/// The usage of one network.
#[derive(Debug, Default)]
struct NetworkUsage {
    entries: u64,
    /// Its allowance at the last count.
    allowed: u64,
    /// When it last had more flows than its share.
    limited: Option<Instant>,
    forgotten: u64,
}

/// The state that the status shows.
#[derive(Debug, Default)]
pub struct Fairness(Mutex<FairnessState>);

#[derive(Debug, Default)]
struct FairnessState {
    capacity: u64,
    networks: BTreeMap<Vni, NetworkUsage>,
    /// When the flows were last counted, and how long that took.
    counted: Option<(Instant, Duration)>,
}

impl Fairness {
    /// Returns, for each network, how many entries were deleted to make room.
    pub fn forgotten(&self) -> BTreeMap<Vni, u64> {
        let state = self.0.lock();
        state.networks.iter().map(|(vni, known)| (*vni, known.forgotten)).collect()
    }

    /// Returns the problems to show; `name` returns a network's name.
    pub fn problems(&self, name: impl Fn(Vni) -> String) -> Vec<String> {
        let state = self.0.lock();
        let capacity = state.capacity;
        let total: u64 = state.networks.values().map(|known| known.entries).sum();
        let limited = |known: &NetworkUsage| known.limited.is_some_and(|at| at.elapsed() < LIMITED);
        let mut problems: Vec<String> = state
            .networks
            .iter()
            .filter(|(_, known)| limited(known))
            .map(|(vni, known)| {
                format!(
                    "network {} has {} of {capacity} entries of the connection table, which is its limit: \
                     its connections that were unused for longest are forgotten",
                    name(*vni),
                    known.entries
                )
            })
            .collect();
        if capacity > 0 && total * 32 >= capacity * NEARLY_FULL {
            problems.push(format!(
                "the connection table is nearly full ({total} of {capacity} entries): \
                 set a larger connection_entries in meshd.toml"
            ));
        }
        problems
    }
}

/// Divides the connection table until it is cancelled.
pub async fn run(agent: Arc<Agent>, kernel: SharedKernel, fairness: Arc<Fairness>) {
    let mut changes = agent.service_changes();
    let mut failing = false;
    loop {
        changes.mark_unchanged();
        let networks = known_networks(&agent);
        let shared = fairness.clone();
        let outcome = kernel
            .call(move |kernel| {
                let mut state = shared.0.lock();
                state.check(kernel.programs(), networks)
            })
            .await;
        if let Err(error) = &outcome
            && !matches!(error, ProgramsError::NotLoaded)
            && !failing
        {
            tracing::warn!(%error, "the connection table could not be divided among networks");
        }
        failing = outcome.is_err();
        tokio::select! {
            // A new network has no allowance yet.
            _ = changes.changed(), if !failing => {}
            () = sleep(INTERVAL) => {}
        }
    }
}

/// Returns the known networks with services.
fn known_networks(agent: &Agent) -> BTreeSet<Vni> {
    agent.read(|state| {
        let vni = |id| state.view.networks.get(id).map(|network| Vni::new(network.vni.get()));
        state.view.services.iter().filter_map(|(_, records)| vni(&records.service.network)).collect()
    })
}

impl FairnessState {
    /// Sets new allowances if that is due. Counts the flows first, unless that was done recently.
    /// In that case, a network's entries are those of the last count plus those created since.
    fn check(&mut self, programs: &mut dyn Programs, networks: BTreeSet<Vni>) -> Result<(), ProgramsError> {
        let left = programs.allowances()?;
        let since = self.counted.map(|(at, _)| at.elapsed());
        if since.is_some_and(|since| !self.is_due(&left, &networks, since >= RECOUNT)) {
            return Ok(());
        }
        let begun = Instant::now();
        let may_count = self.counted.is_none_or(|(at, took)| at.elapsed() >= took * SHARE);
        self.share_out(programs, &left, networks, may_count)?;
        if may_count {
            self.counted = Some((Instant::now(), begun.elapsed()));
        }
        Ok(())
    }

    fn is_due(&self, left: &BTreeMap<Vni, Allowance>, networks: &BTreeSet<Vni>, late: bool) -> bool {
        !networks.iter().all(|vni| left.contains_key(vni))
            || left.iter().any(|(vni, allowance)| {
                self.wants_more(*vni, allowance) || late && self.spent(*vni, allowance) > 0
            })
    }

    fn spent(&self, vni: Vni, left: &Allowance) -> u64 {
        let allowed = self.networks.get(&vni).map_or(0, |known| known.allowed);
        allowed.saturating_sub(u64::try_from(left.left).unwrap_or(0))
    }

    /// Returns whether a network has used half of its allowance, or was refused an entry.
    fn wants_more(&self, vni: Vni, left: &Allowance) -> bool {
        let allowed = self.networks.get(&vni).map_or(0, |known| known.allowed);
        left.refused > 0 || self.spent(vni, left) * 2 > allowed
    }

    fn share_out(
        &mut self,
        programs: &mut dyn Programs,
        left: &BTreeMap<Vni, Allowance>,
        networks: BTreeSet<Vni>,
        count: bool,
    ) -> Result<(), ProgramsError> {
        let mut counts: BTreeMap<Vni, u64> = networks.into_iter().map(|vni| (vni, 0)).collect();
        if count {
            let mut one = |key: &ConnectionKey, value: &Connection| {
                *counts.entry(network(key, value)).or_default() += 1;
            };
            programs.visit_connections(&mut one)?;
        } else {
            for (vni, known) in &self.networks {
                let spent = left.get(vni).map_or(0, |left| self.spent(*vni, left));
                counts.insert(*vni, known.entries + spent);
            }
        }
        let unknown = counts.remove(&Vni::NONE).unwrap_or_default();
        let usages = counts.iter().map(|(vni, entries)| {
            let wants_more = left.get(vni).is_some_and(|left| self.wants_more(*vni, left));
            (*vni, Usage { entries: *entries, wants_more })
        });
        let usages: BTreeMap<Vni, Usage> = usages.collect();
        self.capacity = programs.connections_room()?;
        let of_unknown = self.capacity / UNKNOWN;
        let shares = shares(self.capacity.saturating_sub(of_unknown.max(unknown)), &usages);
        if count {
            forget(programs, &shares)?;
        } else if shares.values().any(|share| share.forget > 0) {
            // Some of them may be over, so count again soon before deleting any.
            return Ok(());
        }
        let mut allowances: BTreeMap<Vni, u64> =
            shares.iter().map(|(vni, share)| (*vni, share.allowance)).collect();
        allowances.insert(Vni::NONE, of_unknown.saturating_sub(unknown));
        programs.set_allowances(&allowances)?;
        self.networks.retain(|vni, _| shares.contains_key(vni));
        for (vni, share) in shares {
            let refused = left.get(&vni).is_some_and(|left| left.refused > 0);
            let known = self.networks.entry(vni).or_default();
            known.entries = usages[&vni].entries - share.forget;
            known.allowed = share.allowance;
            known.forgotten += share.forget;
            if share.forget > 0 || refused && share.allowance < self.capacity / SCARCE {
                known.limited = Some(Instant::now());
            }
        }
        Ok(())
    }
}

fn forget(programs: &mut dyn Programs, shares: &BTreeMap<Vni, Share>) -> Result<(), ProgramsError> {
    let numbers: BTreeMap<Vni, u64> = shares
        .iter()
        .filter(|(_, share)| share.forget > 0)
        .map(|(vni, share)| (*vni, share.forget))
        .collect();
    if numbers.is_empty() {
        return Ok(());
    }
    let mut chooser = Chooser::new(numbers.keys().copied(), clock(uptime()));
    programs.visit_connections(&mut |key, value| chooser.count(key, value))?;
    let mut choice = chooser.choose(&numbers);
    programs.forget_connections(&mut |key, value| choice.takes(key, value))
}

/// Returns the time as the programs see it.
fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use mesh_kernel::programs::{FakePrograms, MapSizes, Pins};

    use super::*;

    const RED: Vni = Vni::new(1);
    const BLUE: Vni = Vni::new(2);

    fn loaded() -> FakePrograms {
        let mut programs = FakePrograms::default();
        programs.state.pins = Pins::Current;
        programs
    }

    /// Creates as many entries as a network may have; returns their number.
    fn fill(programs: &mut FakePrograms, vni: Vni) -> u64 {
        let allowance = programs.allowances.get_mut(&vni).expect("an allowance");
        let number = std::mem::take(&mut allowance.left);
        allowance.refused += 1;
        for _ in 0..number {
            let number = u32::try_from(programs.flows.len()).expect("few");
            let [_, v0, v1, v2] = vni.0;
            let key =
                ConnectionKey { ports: number.to_be_bytes(), vni: [v0, v1, v2], ..ConnectionKey::default() };
            programs.flows.insert(key, Connection { kind: 1, ..Connection::default() });
        }
        u64::try_from(number).expect("positive")
    }

    #[test]
    fn a_greedy_network_is_reported_and_never_takes_the_guaranteed_share_of_others() {
        let (mut programs, fairness) = (loaded(), Fairness::default());
        let mut state = fairness.0.lock();
        let capacity = u64::from(MapSizes::default().connections);
        for round in 0..40 {
            let left = programs.allowances().unwrap();
            state.share_out(&mut programs, &left, BTreeSet::from([RED, BLUE]), true).unwrap();
            let blue = programs.allowances[&BLUE].left;
            assert!(blue * 5 > i64::try_from(capacity).unwrap(), "{blue} in round {round}");
            assert!(fill(&mut programs, RED) > 0, "in round {round}");
            assert!(programs.flows.len() as u64 <= capacity, "in round {round}");
        }
        let left = programs.allowances().unwrap();
        assert!(state.is_due(&left, &BTreeSet::from([RED, BLUE]), false));
        drop(state);
        assert!(fairness.forgotten()[&RED] > 0);
        let problems = fairness.problems(|vni| format!("n{}", vni.number()));
        assert!(problems.len() == 1 && problems[0].starts_with("network n1 has "), "{problems:?}");
    }

    #[test]
    fn flows_are_counted_again_once_half_of_an_allowance_is_spent() {
        let (mut programs, mut state) = (loaded(), FairnessState::default());
        let networks = BTreeSet::from([RED, BLUE]);
        state.share_out(&mut programs, &BTreeMap::new(), networks.clone(), true).unwrap();
        let due = |state: &FairnessState, programs: &FakePrograms, late| {
            state.is_due(&programs.allowances, &networks, late)
        };
        assert!(!due(&state, &programs, false) && !due(&state, &programs, true));
        programs.allowances.get_mut(&RED).unwrap().left -= 1;
        assert!(!due(&state, &programs, false) && due(&state, &programs, true));
        programs.allowances.get_mut(&RED).unwrap().left /= 3;
        assert!(due(&state, &programs, false));
        state.share_out(&mut programs, &BTreeMap::new(), BTreeSet::from([RED]), true).unwrap();
        assert!(due(&state, &programs, false), "a network is new");
    }
}
