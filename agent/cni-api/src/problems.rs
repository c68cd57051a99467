//! The agent's errors as the specification's.

use mesh_cni::CniError;
use mesh_cni::error::Code;
use mesh_proto::{Problem, ProblemKind};

/// An error of an attach or a detach.
pub(crate) fn error(problem: Problem) -> CniError {
    let code = match problem.kind {
        ProblemKind::Usage | ProblemKind::NotFound => Code::InvalidConfig,
        ProblemKind::Unreachable => Code::TryAgain,
        ProblemKind::Failed
        | ProblemKind::Conflict
        | ProblemKind::Denied
        | ProblemKind::Exhausted
        | ProblemKind::NotManager
        | ProblemKind::Unconfirmed => Code::Failed,
    };
    with_code(code, problem)
}

/// An error with the code that fits where it arose.
pub(crate) fn with_code(code: Code, problem: Problem) -> CniError {
    CniError::new(code, problem.message).details(problem.hint.unwrap_or_default())
}
