//! Taking the steps of a plan.

use std::collections::BTreeSet;

use mesh_model::plan::Step;
use mesh_model::{EndpointId, Plan};

use crate::{Kernel, KernelError};

/// A step that failed.
#[derive(Debug)]
pub struct Failure {
    /// The step.
    pub step: Step,
    /// Why.
    pub error: KernelError,
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Report {
    /// How many steps were taken.
    pub done: usize,
    /// The steps that failed, in order.
    pub failures: Vec<Failure>,
    /// Steps that were not tried, because an earlier one of the same endpoint had failed.
    pub skipped: usize,
}

impl Report {
    /// Whether every step was taken.
    pub fn is_success(&self) -> bool {
        self.failures.is_empty()
    }

    /// The failure that an endpoint suffers from: its own, or else the first of what the node
    /// needs. What could not be removed harms none that is wanted.
    pub fn failure_of(&self, endpoint: &EndpointId) -> Option<&Failure> {
        let own = self.failures.iter().find(|failure| failure.step.endpoint.as_ref() == Some(endpoint));
        let of_node =
            |failure: &&Failure| failure.step.endpoint.is_none() && !failure.step.action.is_removal();
        own.or_else(|| self.failures.iter().find(of_node))
    }
}

/// Takes each step of a plan once. A step that fails stops the later ones of its own endpoint, and
/// nothing else.
pub fn execute(kernel: &mut dyn Kernel, plan: &Plan) -> Report {
    let mut report = Report::default();
    let mut failed: BTreeSet<&EndpointId> = BTreeSet::new();
    for step in &plan.steps {
        if step.endpoint.as_ref().is_some_and(|endpoint| failed.contains(endpoint)) {
            report.skipped += 1;
            continue;
        }
        match kernel.apply(&step.action) {
            Ok(()) => report.done += 1,
            Err(error) => {
                failed.extend(&step.endpoint);
                report.failures.push(Failure { step: step.clone(), error });
            }
        }
    }
    report
}
