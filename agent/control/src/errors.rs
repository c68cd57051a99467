//! Translates errors of other crates and modules to those that callers get.

use mesh_model::{Name, Network};
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

/// Refuses a change of a network whose removal has begun.
pub(crate) fn check_stays(network: &Network) -> Result<(), Problem> {
    if network.removing { Err(being_removed(&network.name)) } else { Ok(()) }
}

/// The conflict with a removal of the network.
pub(crate) fn being_removed(network: &Name) -> Problem {
    Problem::new(ProblemKind::Conflict, format!("network {network} is being removed"))
}
