//! What changed in the state, and which tasks wake for it.

use crate::state::State;

/// The versions of those parts of the state that tasks wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Versions {
    view: u64,
    endpoints: u64,
    phases: u64,
    node_states: u64,
    paths: u64,
    health: u64,
    findings: u64,
    names: u64,
}

/// A signal that a change of the state sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The kernel's desired state is another one.
    KernelLoop,
    /// The managers receive other endpoints.
    EndpointReports,
    /// Services, names and health checks follow from what changed.
    Services,
    /// The managers receive other results of health checks.
    HealthReports,
    /// The disk should have it soon.
    Saving,
}

impl Versions {
    pub(crate) fn of(state: &State) -> Self {
        Self {
            view: state.view.version(),
            endpoints: state.endpoints.version(),
            phases: state.endpoints.phase_version(),
            node_states: state.node_states.version(),
            paths: state.paths.version(),
            health: state.soft.health_version(),
            findings: state.soft.findings_version(),
            names: state.soft.names_version(),
        }
    }

    /// Returns the signals for the changes since `before`. Fields that are not named here, such as
    /// problems for the status, wake no task.
    pub(crate) fn signals_since(&self, before: &Self) -> impl Iterator<Item = Signal> + use<> {
        let differs = |part: fn(&Self) -> u64| part(self) != part(before);
        let desired = differs(|v| v.view) || differs(|v| v.endpoints);
        let findings = differs(|v| v.findings);
        let names = differs(|v| v.names);
        let services = desired
            || names
            || findings
            || differs(|v| v.phases)
            || differs(|v| v.node_states)
            || differs(|v| v.paths)
            || differs(|v| v.health);
        let signals = [
            (Signal::KernelLoop, desired),
            // A network's record decides which of its endpoints are reported.
            (Signal::EndpointReports, desired),
            (Signal::Services, services),
            (Signal::HealthReports, findings),
            (Signal::Saving, names || findings),
        ];
        signals.into_iter().filter_map(|(signal, is_sent)| is_sent.then_some(signal))
    }
}

#[cfg(test)]
mod tests {
    use mesh_model::{Finding, NodeState};
    use mesh_proto::v1;

    use super::*;
    use crate::fake::{agent, endpoint, node};

    /// The signals that a change sends: to the kernel loop, the reports of endpoints, the services'
    /// tasks, and the reports of health.
    fn woken(change: impl FnOnce(&mut State)) -> [bool; 4] {
        let dir = tempfile::tempdir().unwrap();
        let agent = agent(dir.path());
        agent.update(|state| {
            state.endpoints.insert(endpoint(1));
            state.soft.set_checked(&[7.try_into().unwrap()].into());
        });
        let signals =
            [agent.generations(), agent.endpoint_changes(), agent.service_changes(), agent.health_changes()];
        agent.update(change);
        signals.map(|signal| signal.has_changed().unwrap())
    }

    #[test]
    fn a_change_wakes_those_tasks_that_follow_from_the_changed_fields() {
        let finding = || Finding { healthy: Some(true), error: String::new() };
        let all = [true, true, true, false];
        assert_eq!(woken(|state| state.view.revision += 1), all);
        assert_eq!(woken(|state| state.endpoints.insert(endpoint(2))), all);
        assert_eq!(
            woken(|state| {
                state.endpoints.remove(&endpoint(1).id);
            }),
            all
        );
        let services = [false, false, true, false];
        assert_eq!(woken(|state| assert!(state.endpoints.set_attached(&endpoint(1).id))), services);
        assert_eq!(
            woken(|state| {
                state.node_states.insert(node().id, NodeState::Down);
            }),
            services
        );
        assert_eq!(woken(|state| *state.paths = crate::paths::Paths::default()), services);
        let names = |state: &mut State| {
            state.soft.receive_endpoints(&v1::Endpoints::default(), &mut state.unreadable);
        };
        assert_eq!(woken(names), services);
        let health =
            |state: &mut State| state.soft.receive_health(&state.view, &v1::BackendHealth::default());
        assert_eq!(woken(health), services);
        let findings = [false, false, true, true];
        assert_eq!(woken(|state| state.soft.set_found(7.try_into().unwrap(), finding())), findings);
        assert_eq!(woken(|state| state.soft.set_checked(&[].into())), findings);
    }

    #[test]
    fn what_no_task_follows_from_wakes_none() {
        let none = [false; 4];
        assert_eq!(woken(|state| state.manager = "h1".into()), none);
        assert_eq!(woken(|state| state.service_problems.push("one".into())), none);
        assert_eq!(
            woken(|state| {
                state.endpoints.remove(&endpoint(2).id);
            }),
            none
        );
        assert_eq!(woken(|state| assert!(!state.endpoints.set_attached(&endpoint(2).id))), none);
        assert_eq!(woken(|state| state.soft.set_found(8.try_into().unwrap(), Finding::default())), none);
        assert_eq!(woken(|state| state.pools.touch()), none);
    }
}
