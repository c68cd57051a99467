//! STATUS: whether containers can be attached.

use mesh_cni::CniError;
use mesh_cni::error::Code;
use mesh_handle::{AgentHandle, Readiness};

use crate::problems;

/// Succeeds if an ADD has a chance.
pub(crate) fn status(agent: &dyn AgentHandle) -> Result<(), CniError> {
    match agent.readiness() {
        Readiness::Ready => Ok(()),
        Readiness::Limited(problem) => Err(problems::with_code(Code::LimitedConnectivity, problem)),
        Readiness::NotMember(problem) => Err(problems::with_code(Code::NotAvailable, problem)),
    }
}
