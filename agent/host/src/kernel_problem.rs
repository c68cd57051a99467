//! The kernel's errors as [`Problem`]s.

use std::error::Error;

use mesh_kernel::KernelError;
use mesh_proto::{Problem, ProblemKind};

/// An error of the kernel as people see it, with all its reasons.
pub fn kernel_problem(error: &KernelError) -> Problem {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        let text = reason.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = reason.source();
    }
    let kind = match error {
        KernelError::NameTaken { .. } | KernelError::PortTaken { .. } | KernelError::IfnameTaken { .. } => {
            ProblemKind::Conflict
        }
        KernelError::NamespaceGone { .. } => ProblemKind::NotFound,
        KernelError::NoNamespace { .. } | KernelError::OwnNamespace { .. } => ProblemKind::Usage,
        _ => ProblemKind::Failed,
    };
    let problem = Problem::new(kind, message.replace('\n', " "));
    match error.hint() {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}
