//! Errors of state files as [`Problem`]s.

use mesh_proto::{Problem, ProblemKind};
use mesh_sys::durable::FileError;

/// Describes a state file that could not be written.
pub fn file_problem(error: &FileError) -> Problem {
    Problem::new(ProblemKind::Failed, error.to_string())
        .hint("check that the disk of the state directory is not full, read-only or failing")
}
