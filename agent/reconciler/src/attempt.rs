//! One attempt to bring the kernel to its desired state.

use mesh_kernel::{Depth, Kernel, KernelError, Report, execute};
use mesh_model::{Desired, Observed, Plan};

/// The observation, plan and report of one attempt.
#[derive(Debug)]
pub struct Outcome {
    /// The state before.
    pub observed: Observed,
    /// The plan.
    pub plan: Plan,
    /// The result of the plan.
    pub report: Report,
}

/// Observes, plans, and applies each step once. With `None`, the plan removes all our objects.
pub fn attempt(
    kernel: &mut dyn Kernel,
    desired: Option<&Desired>,
    depth: Depth,
) -> Result<Outcome, KernelError> {
    let observed = kernel.observe(desired, depth)?;
    let plan = mesh_planner::plan(desired, &observed);
    let report = execute(kernel, &plan);
    Ok(Outcome { observed, plan, report })
}
