//! Ends an engine process that no longer responds.

use std::{fs, io, os::unix::net::UnixStream, path::Path};

use mesh_sys::helper::{self, KillError};

use super::protocol::SOCKET;
use crate::{Error, Result};

/// Returns whether an error of a connection attempt means that no process serves the socket.
pub(super) fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Returns whether a process is suspended by a signal (`proc_pid_stat(5)`).
pub(super) fn is_suspended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which may contain any characters.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// Kills the process that serves the socket of `run_dir`, if there is one, and waits until it has
/// ended. This removes its device and its lock.
pub(super) fn end(run_dir: &Path) -> Result<()> {
    let action = "end the WireGuard engine process";
    let stream = match UnixStream::connect(run_dir.join(SOCKET)) {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => return Ok(()),
        Err(error) => return Err(Error::system(action)(error)),
    };
    helper::kill_peer(&stream).map_err(|error| match error {
        KillError::Io(error) => Error::system(action)(error),
        KillError::Unknown => Error::Process("does not respond, and its process is not known".to_owned()),
        KillError::Remains => Error::Process("does not respond and cannot be ended".to_owned()),
    })
}
