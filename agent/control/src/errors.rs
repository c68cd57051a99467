//! Translates errors of other crates and modules to those that callers get.

use mesh_proto::{InvalidMessage, Problem, ProblemKind};

use crate::identity::IdentityError;

/// Blames the caller for a message that cannot be read.
pub(crate) fn usage(error: &InvalidMessage) -> Problem {
    Problem::new(ProblemKind::Usage, error.to_string())
}

/// Blames the caller for a malformed certificate request, and this manager for anything else.
pub(crate) fn identity_problem(error: &IdentityError) -> Problem {
    let kind = match error {
        IdentityError::Malformed { .. } => ProblemKind::Usage,
        _ => ProblemKind::Failed,
    };
    Problem::new(kind, error.to_string())
}
