//! Processes that are recognised again: a pid alone may belong to someone else by now.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, eventually, poll_until};

/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// One process for all time: its pid, and when it started, in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has `pid` now.
    pub fn of(pid: i32) -> Option<Self> {
        Stat::read(pid).map(|stat| Self { pid, start_time: stat.start_time })
    }

    /// The calling process.
    pub fn current() -> Option<Self> {
        Self::of(Pid::this().as_raw())
    }

    /// Whether it still runs. A zombie does not, once its last thread has ended: until then its
    /// files are open.
    pub fn is_alive(self) -> bool {
        self.reap();
        Stat::read(self.pid).is_some_and(|stat| {
            let ended = match stat.state {
                'Z' => threads(self.pid) <= 1,
                state => state == 'X',
            };
            stat.start_time == self.start_time && !ended
        })
    }

    /// Its program's name, as far as the kernel keeps it (15 bytes).
    pub fn name(self) -> Option<String> {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid)).ok()?;
        Some(name.trim_end().to_owned())
    }

    /// CPU time that it has used, in seconds.
    pub fn cpu_seconds(self) -> Option<f64> {
        let stat = Stat::read(self.pid).filter(|stat| stat.start_time == self.start_time)?;
        // USER_HZ is 100 on every architecture that matters here.
        Some(f64::from(stat.cpu_ticks) / 100.0)
    }

    /// Sends `signal` if it still runs.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::system(format!("signal process {}", self.pid))(errno)),
        }
    }

    /// Suspends it (SIGSTOP): it keeps all that it has, and does nothing.
    pub fn suspend(self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Kills it (SIGKILL) and waits until it is gone; one that is gone already is fine.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        eventually(&format!("end of killed process {}", self.pid), KILL_TIMEOUT, || !self.is_alive())
    }

    /// Takes the exit status if it is a child of ours that has ended; harmless otherwise.
    fn reap(self) {
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
    }
}

/// How many threads of a process the kernel still has.
fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// The parts of /proc/PID/stat that are needed here.
struct Stat {
    state: char,
    /// In user mode and in the kernel.
    cpu_ticks: u32,
    start_time: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in parentheses and may itself hold spaces and
        // parentheses.
        let (_, after_name) = text.rsplit_once(") ")?;
        let mut fields = after_name.split(' ');
        let state = fields.next()?.chars().next()?;
        let user: u32 = fields.nth(10)?.parse().ok()?;
        let system: u32 = fields.next()?.parse().ok()?;
        let start_time = fields.nth(6)?.parse().ok()?;
        Some(Self { state, cpu_ticks: user + system, start_time })
    }
}

/// A child that is killed when this value is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    command: String,
    log: PathBuf,
    detached: bool,
}

impl Process {
    pub(crate) fn new(child: Child, command: String, log: &Path) -> Self {
        Self { child, command, log: log.to_owned(), detached: false }
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        // Linux pids fit 22 bits.
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// The command line it was started with.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal if it still runs.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        kill(Pid::from_raw(self.pid()), signal).map_err(Error::system(format!("signal `{}`", self.command)))
    }

    /// Waits for its end and returns the exit code; `None` for one ended by a signal.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<i32>> {
        let status = poll_until(timeout, || self.child.try_wait().transpose())
            .ok_or_else(|| Error::CommandTimeout { command: self.command.clone(), after: timeout })?;
        Ok(status.map_err(Error::system(format!("wait for `{}`", self.command)))?.code())
    }

    /// Lets it run on after this value is gone; its identity finds it again.
    pub(crate) fn detach(mut self) -> Option<ProcessId> {
        self.detached = true;
        ProcessId::of(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        // Both fail only when it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
