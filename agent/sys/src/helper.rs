//! Helper processes that outlive the agent: each serves a unix socket, over which a later agent
//! finds it again.

use std::io;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Interval between attempts to connect to a process that has just been started.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How long a killed process may take to disappear.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a helper process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The process ended before it served its socket.
    #[error("it ended at once ({0})")]
    Ended(ExitStatus),
    /// The process did not serve its socket in time.
    #[error("it did not start in time")]
    Timeout,
}

impl From<StartError> for io::Error {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Io(error) => error,
            StartError::Ended(_) => Self::other(error.to_string()),
            StartError::Timeout => Self::new(io::ErrorKind::TimedOut, error.to_string()),
        }
    }
}

/// Starts a helper process and returns what `connect` returns once it serves its socket.
///
/// Its standard error is the caller's. A thread called `reaper` waits for its end, so that it
/// leaves no zombie.
pub fn start<T>(
    command: &mut Command,
    timeout: Duration,
    reaper: &str,
    mut connect: impl FnMut(&Child) -> Option<T>,
) -> Result<T, StartError> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let deadline = Instant::now() + timeout;
    let connected = loop {
        if let Some(connected) = connect(&child) {
            break Ok(connected);
        }
        if let Some(status) = child.try_wait()? {
            return Err(StartError::Ended(status));
        }
        if Instant::now() >= deadline {
            // It goes on: a later attempt finds it once it serves its socket.
            break Err(StartError::Timeout);
        }
        thread::sleep(POLL_INTERVAL);
    };
    let reap = move || drop(child.wait());
    thread::Builder::new().name(reaper.to_owned()).stack_size(64 << 10).spawn(reap)?;
    connected
}

/// Whether a process is the one at the other end of a connection.
pub fn is_peer(stream: &UnixStream, child: &Child) -> bool {
    socket_peercred(stream)
        .is_ok_and(|peer| i64::from(peer.pid.as_raw_nonzero().get()) == i64::from(child.id()))
}

/// Why the process at the other end of a connection could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its pid is not visible here: it runs in another PID namespace.
    #[error("its process is not known")]
    Unknown,
    /// It was killed and still exists.
    #[error("it cannot be ended")]
    Remains,
}

/// Kills the process at the other end of a connection, which may be suspended or hang, and waits
/// until it is gone.
pub fn kill_peer(stream: &UnixStream) -> Result<(), KillError> {
    // The connection exists only while the process that accepted it is alive, so its pid is valid.
    let pid = socket_peercred(stream).map_err(io::Error::from)?.pid;
    // 1 is a process of another PID namespace, or none.
    if pid.as_raw_nonzero().get() <= 1 {
        return Err(KillError::Unknown);
    }
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?;
    pidfd_send_signal(&process, Signal::KILL).map_err(io::Error::from)?;
    let timeout = Timespec { tv_sec: EXIT_TIMEOUT.as_secs().cast_signed(), tv_nsec: 0 };
    // Readable once all threads have ended.
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).map_err(io::Error::from)? {
        0 => Err(KillError::Remains),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, kill_process, test_kill_process};

    use super::*;

    fn sleep() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600").stderr(Stdio::null());
        command
    }

    fn pid(child: &Child) -> Pid {
        Pid::from_child(child)
    }

    #[test]
    fn a_process_that_does_not_serve_in_time_is_reaped_when_it_ends() {
        let mut process = None;
        let started = start(&mut sleep(), Duration::ZERO, "reaper", |child| {
            process = Some(pid(child));
            None::<()>
        });
        assert!(matches!(started, Err(StartError::Timeout)));
        let process = process.unwrap();
        kill_process(process, Signal::KILL).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while test_kill_process(process).is_ok() {
            assert!(Instant::now() < deadline, "a zombie stays");
            thread::sleep(POLL_INTERVAL);
        }
    }

    #[test]
    fn a_process_that_ends_before_it_serves_is_reported_with_its_status() {
        let started = start(&mut Command::new("false"), Duration::from_secs(30), "reaper", |_| None::<()>);
        assert!(matches!(started, Err(StartError::Ended(status)) if status.code() == Some(1)));
    }

    #[test]
    fn a_process_is_started_once_it_can_be_reached() {
        let mut attempts = 0;
        let started = start(&mut sleep(), Duration::from_secs(30), "reaper", |child| {
            attempts += 1;
            (attempts == 3).then(|| pid(child))
        });
        kill_process(started.unwrap(), Signal::KILL).unwrap();
    }
}
