//! Completion scripts of shells, and the answers to them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::env::{CompleteEnv, Shells};
use mesh_proto::Problem;

use crate::cli::Cli;
use crate::report;

/// The variable by which a completion script requests candidates.
const VARIABLE: &str = "MESHCTL_COMPLETE";
const PROGRAM: &str = "meshctl";

/// Answers a completion script, if it is one that calls. Returns whether it was.
pub(crate) fn answer(args: &[OsString]) -> bool {
    let current_dir = std::env::current_dir().ok();
    let answered = CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .bin(PROGRAM)
        .try_complete(args.iter().cloned(), current_dir.as_deref());
    // A shell in the middle of a line has no use for an error.
    answered.unwrap_or(true)
}

/// The script that a shell reads to complete `meshctl`.
pub(crate) fn script(shell: clap_complete::Shell) -> Result<String, Problem> {
    let failed =
        |why: &dyn ToString| report::failed(format!("completion script for {shell}: {}", why.to_string()));
    let shells = Shells::builtins();
    let completer =
        shells.completer(&shell.to_string()).ok_or_else(|| failed(&"this shell is not supported"))?;
    let mut script = Vec::new();
    completer
        .write_registration(VARIABLE, PROGRAM, PROGRAM, &program(), &mut script)
        .map_err(|error| failed(&error))?;
    String::from_utf8(script).map_err(|error| failed(&error))
}

/// How the script calls this program: as it was called, if by its name alone, so that it may move.
fn program() -> String {
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let by_path = called.components().count() > 1;
    let path = std::env::current_exe().ok().filter(|_| by_path);
    path.and_then(|path| path.into_os_string().into_string().ok()).unwrap_or_else(|| PROGRAM.to_owned())
}
