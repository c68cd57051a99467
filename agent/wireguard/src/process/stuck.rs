//! Ends an engine process that no longer responds.

use std::{fs, io, os::unix::net::UnixStream, path::Path, time::Duration};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::protocol::SOCKET;
use crate::{Error, Result};

/// How long a killed process may take to disappear.
const GONE: Duration = Duration::from_secs(5);

/// Whether an error of a connection attempt means that no process serves the socket.
pub(super) fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Whether a process is suspended by a signal (`proc_pid_stat(5)`).
pub(super) fn is_suspended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which may contain anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// Kills the process that serves the socket of `run_dir`, if there is one, and waits until it is
/// gone: its device and its lock go with it.
pub(super) fn end(run_dir: &Path) -> Result<()> {
    let action = "end the WireGuard engine process";
    // A connection is possible only while the process that listens is alive, so its pid is valid.
    let stream = match UnixStream::connect(run_dir.join(SOCKET)) {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => return Ok(()),
        Err(error) => return Err(Error::system(action)(error)),
    };
    let pid = getsockopt(&stream, PeerCredentials).map_err(Error::system(action))?.pid();
    // 1 and below: a process of another PID namespace, or no single process.
    let Some(pid) = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 1) else {
        return Err(Error::Process("does not respond, and its process is not known".to_owned()));
    };
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(Error::system(action))?;
    pidfd_send_signal(&process, Signal::KILL).map_err(Error::system(action))?;
    let timeout = Timespec { tv_sec: GONE.as_secs().cast_signed(), tv_nsec: 0 };
    // Readable once all threads have ended.
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).map_err(Error::system(action))? {
        0 => Err(Error::Process("does not respond and cannot be ended".to_owned())),
        _ => Ok(()),
    }
}
