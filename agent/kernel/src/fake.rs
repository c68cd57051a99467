//! The kernel in memory, for tests of its users.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use mesh_model::endpoint::NetnsRef;
use mesh_model::{Action, Desired, Observed};

use crate::{Depth, FakePrograms, Kernel, KernelError, Programs};

/// [`Kernel`] without a kernel: does to its state what the steps would do to a kernel's. Tests set
/// the fields to play the part of everybody else on the host.
#[derive(Debug, Default)]
pub struct FakeKernel {
    /// What there is, but for `namespaces`: all those of the desired state live, unless they are in
    /// `gone`.
    pub state: Observed,
    /// Namespaces that are gone.
    pub gone: BTreeSet<NetnsRef>,
    /// What counters and probe replies are answered from. Its own state of attachments and entries
    /// is not used.
    pub programs: FakePrograms,
    /// How many of the next [`Kernel::apply`] calls succeed before one fails; `None` when none is
    /// to fail.
    pub fail_after: Option<usize>,
    /// Steps taken, in order.
    pub applied: Vec<Action>,
    /// Errors that actions of a kind end with, by the name of the variant as `Debug` writes it.
    pub refused: BTreeMap<&'static str, i32>,
}

impl FakeKernel {
    /// The name of an action's variant.
    fn variant(action: &Action) -> String {
        let text = format!("{action:?}");
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    }

    fn refuse(&mut self, action: &Action) -> Option<i32> {
        if let Some(left) = &mut self.fail_after {
            if *left == 0 {
                self.fail_after = None;
                return Some(EIO);
            }
            *left -= 1;
        }
        self.refused.get(Self::variant(action).as_str()).copied()
    }
}

/// The error of a refused action.
const EIO: i32 = nix::errno::Errno::EIO as i32;

impl Kernel for FakeKernel {
    fn observe(&mut self, desired: Option<&Desired>, _depth: Depth) -> Result<Observed, KernelError> {
        let endpoints = desired.into_iter().flat_map(|desired| desired.endpoints.values());
        let alive = endpoints.filter(|endpoint| !self.gone.contains(&endpoint.netns));
        let namespaces = alive.map(|endpoint| endpoint.id.clone()).collect();
        Ok(Observed { namespaces, ..self.state.clone() })
    }

    fn apply(&mut self, action: &Action) -> Result<(), KernelError> {
        let refused = |detail, source| KernelError::Refused { action: Self::variant(action), detail, source };
        if let Some(errno) = self.refuse(action) {
            return Err(refused(None, io::Error::from_raw_os_error(errno)));
        }
        self.state.apply(action).map_err(|error| {
            refused(Some(error.to_string()), io::Error::from(io::ErrorKind::InvalidInput))
        })?;
        self.applied.push(action.clone());
        Ok(())
    }

    fn programs(&mut self) -> &mut dyn Programs {
        &mut self.programs
    }
}

#[cfg(test)]
mod tests {
    use mesh_model::plan::{Plan, Step};
    use mesh_model::{EndpointId, naming};

    use super::*;
    use crate::execute;

    #[test]
    fn a_failed_step_stops_only_its_own_endpoint() {
        let [first, second] = ["aaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbb"]
            .map(|id| id.parse::<EndpointId>().unwrap());
        let step = |action, endpoint: Option<&EndpointId>| Step { action, endpoint: endpoint.cloned() };
        let up = Action::SetUp { index: naming::HOST_LEG_INDEX };
        let plan = Plan {
            steps: vec![
                step(up.clone(), Some(&first)),
                step(Action::LoadPrograms, Some(&first)),
                step(Action::LoadPrograms, Some(&second)),
                step(Action::RemoveFirewall, None),
            ],
            ..Plan::default()
        };
        let mut kernel = FakeKernel::default();
        let report = execute(&mut kernel, &plan);
        assert_eq!((report.done, report.skipped, report.failures.len()), (2, 1, 1));
        assert_eq!(report.failure_of(&first).unwrap().step.action, up);
        assert!(report.failure_of(&second).is_none());
        assert_eq!(kernel.applied, [Action::LoadPrograms, Action::RemoveFirewall]);
    }
}
