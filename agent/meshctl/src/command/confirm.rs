//! Asks before much is removed.

use std::io::{self, IsTerminal, Write};

use mesh_proto::{Problem, ProblemKind};

use crate::report;

/// Asks at the terminal; the question goes to standard error, since standard output is the
/// result's. Without a terminal it is an error, with `hint` as what to do.
pub(super) fn confirm(command: &str, what: &str, hint: &str) -> Result<(), Problem> {
    if !io::stdin().is_terminal() {
        let message = format!("{command}, requires confirmation, and standard input is not a terminal");
        return Err(Problem::new(ProblemKind::Unconfirmed, message).hint(hint));
    }
    let asked = |error: io::Error| report::failed(format!("{command}, cannot ask: {error}"));
    let question = format!("{what} Are you sure? [y/N] ");
    let mut stderr = io::stderr().lock();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(asked)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(asked)?;
    if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(report::failed(format!("{command}, nothing was removed: not confirmed")))
    }
}
