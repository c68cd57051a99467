//! Which backends of a service get new connections, and why others do not: one answer for the
//! planner and the managers.

use std::collections::BTreeSet;

use crate::{Availability, Backend, BackendId, BackendState, Service, WhenAllUnhealthy};

/// Why a backend gets no new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exclusion {
    /// It is draining.
    Draining,
    /// Its node is no member any more.
    NodeRemoved,
    /// Its node is drained.
    NodeDrained,
    /// Its node is down.
    NodeDown,
    /// It fails its service's check.
    Unhealthy,
    /// It has not passed its service's check yet.
    NotPassedYet,
}

impl Exclusion {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::NodeRemoved => "node removed",
            Self::NodeDrained => "node drained",
            Self::NodeDown => "node down",
            Self::Unhealthy => "unhealthy",
            Self::NotPassedYet => "not checked yet",
        }
    }
}

/// Why a backend is no candidate, whatever its check finds. `node`: its node's availability, if it
/// is a member.
pub fn excluded(backend: &Backend, node: Option<Availability>, is_down: bool) -> Option<Exclusion> {
    match (backend.state, node) {
        (BackendState::Draining, _) => Some(Exclusion::Draining),
        (BackendState::Active, None) => Some(Exclusion::NodeRemoved),
        (BackendState::Active, Some(Availability::Drain)) => Some(Exclusion::NodeDrained),
        (BackendState::Active, Some(Availability::Active)) if is_down => Some(Exclusion::NodeDown),
        (BackendState::Active, Some(Availability::Active)) => None,
    }
}

/// Those of the candidates that get new connections, where `healthy` are the backends that pass the
/// service's check.
///
/// Without a check all candidates do. With a check, those that pass it do; a new backend passes by
/// its first success. If none passes, the service says whether all candidates do or none.
pub fn usable(
    service: &Service,
    candidates: BTreeSet<BackendId>,
    healthy: &BTreeSet<BackendId>,
) -> BTreeSet<BackendId> {
    if service.health.is_none() {
        return candidates;
    }
    let passing: BTreeSet<BackendId> = candidates.intersection(healthy).copied().collect();
    if passing.is_empty() && service.when_all_unhealthy == WhenAllUnhealthy::All {
        candidates
    } else {
        passing
    }
}
