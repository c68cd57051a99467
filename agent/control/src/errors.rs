//! Converts errors of other crates and modules to those for callers.

use mesh_model::{Name, Network};
use mesh_proto::{InvalidMessage, Problem, ProblemKind};

use crate::identity::IdentityError;

/// Reports a message that cannot be parsed as the caller's error.
pub(crate) fn usage(error: &InvalidMessage) -> Problem {
    Problem::new(ProblemKind::Usage, error.to_string())
}

/// Reports a malformed certificate request as the caller's error, and anything else as this
/// manager's.
pub(crate) fn identity_problem(error: &IdentityError) -> Problem {
    let kind = match error {
        IdentityError::Malformed { .. } => ProblemKind::Usage,
        _ => ProblemKind::Failed,
    };
    Problem::new(kind, error.to_string())
}

/// Refuses a change of a network that is being removed.
pub(crate) fn check_stays(network: &Network) -> Result<(), Problem> {
    if network.removing { Err(being_removed(&network.name)) } else { Ok(()) }
}

/// Returns the conflict with a removal of the network.
pub(crate) fn being_removed(network: &Name) -> Problem {
    Problem::new(ProblemKind::Conflict, format!("network {network} is being removed"))
}
