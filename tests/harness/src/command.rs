//! Commands run to their end, in a namespace or outside, with a time limit.

use std::{
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::{Pid, sethostname},
};
use serde::de::DeserializeOwned;

use crate::{Error, Netns, Process, Result};

/// Where programs look up their name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A command line and the circumstances in which it is to run.
#[derive(Debug, Clone)]
#[must_use = "a command does nothing until it is run"]
pub struct Cmd {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Option<String>,
    netns: Option<Netns>,
    hostname: Option<String>,
    resolv_conf: Option<PathBuf>,
    timeout: Duration,
}

impl Cmd {
    /// A command line: the program, then its arguments.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            stdin: None,
            netns: None,
            hostname: None,
            resolv_conf: None,
            timeout: Duration::from_mins(1),
        }
    }

    /// To be run inside `netns`.
    pub fn netns(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.clone());
        self
    }

    /// What the command is told the machine is called, in a UTS namespace of its own.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into());
        self
    }

    /// The file that the command is to see as /etc/resolv.conf, by a mount that only it sees.
    pub fn resolv_conf(mut self, path: impl Into<PathBuf>) -> Self {
        self.resolv_conf = Some(path.into());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Text for its standard input, which is empty otherwise.
    pub fn stdin(mut self, text: impl Into<String>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// The time after which it is killed; 60 s unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The command line as a person would type it.
    pub fn line(&self) -> String {
        self.argv.join(" ")
    }

    /// Runs it and waits for its end. A non-zero exit code is not an error here; see
    /// [`Output::ok`].
    pub fn output(&self) -> Result<Output> {
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        // Its own process group, so that a time-out ends its children too.
        command.process_group(0);
        let mut child = self.start(&mut command)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            scope.spawn(move || {
                if let (Some(mut pipe), Some(text)) = (stdin, &self.stdin) {
                    // A program that does not read all of its input closes the pipe; its exit code
                    // tells the story.
                    let _ = pipe.write_all(text.as_bytes());
                }
            });
            let stdout = scope.spawn(move || read_all(stdout));
            let stderr = scope.spawn(move || read_all(stderr));
            let timed_out = self.wait_or_kill(&child)?;
            let status = child.wait().map_err(Error::system(format!("wait for `{}`", self.line())))?;
            if timed_out {
                return Err(Error::CommandTimeout { command: self.line(), after: self.timeout });
            }
            Ok(Output {
                command: self.line(),
                code: exit_code(status),
                stdout: stdout.join().unwrap_or_default(),
                stderr: stderr.join().unwrap_or_default(),
            })
        })
    }

    /// Starts it in the background, its output appended to `log`; it is killed when the handle is
    /// dropped.
    pub fn spawn(&self, log: &Path) -> Result<Process> {
        let file =
            std::fs::File::options().create(true).append(true).open(log).map_err(Error::file("open", log))?;
        let stderr = file.try_clone().map_err(Error::file("open", log))?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(file).stderr(stderr);
        // Its own process group: an interrupt typed at the terminal is for whoever runs the lab.
        command.process_group(0);
        Ok(Process::new(self.start(&mut command)?, self.line(), log))
    }

    /// Replaces the calling process with the command, inside the namespace; comes back only on
    /// failure.
    pub fn exec(&self) -> Error {
        if let Some(netns) = &self.netns
            && let Err(error) = netns.enter_for_good()
        {
            return error;
        }
        if let Err(error) = self.isolate() {
            return error;
        }
        Error::system(format!("run `{}`", self.line()))(std::os::unix::process::CommandExt::exec(
            &mut self.command(),
        ))
    }

    /// Blocks until the child has ended, by itself or killed at its time-out; whether it was the
    /// latter. The child is not reaped, so its pid cannot be another's by the time it is killed.
    fn wait_or_kill(&self, child: &Child) -> Result<bool> {
        // Linux pids fit 22 bits.
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let (ended, watch) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let watchdog = scope.spawn(move || {
                let late = matches!(watch.recv_timeout(self.timeout), Err(RecvTimeoutError::Timeout));
                if late {
                    // It fails when all of them are gone by now.
                    let _ = killpg(pid, Signal::SIGKILL);
                }
                late
            });
            let waited = loop {
                match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                    Err(Errno::EINTR) => {}
                    waited => break waited,
                }
            };
            drop(ended);
            waited.map_err(Error::system(format!("wait for `{}`", self.line())))?;
            Ok(watchdog.join().unwrap_or(false))
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.argv.first().map_or("", String::as_str));
        command.args(self.argv.iter().skip(1)).envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// A child inherits the namespaces of the thread that starts it.
    fn start(&self, command: &mut Command) -> Result<Child> {
        let spawn = || {
            self.isolate()?;
            command.spawn().map_err(Error::system(format!("run `{}`", self.line())))
        };
        match &self.netns {
            Some(netns) => netns.enter(spawn)?,
            // A thread of its own here too: what it does to its namespaces ends with it.
            None => thread::scope(|scope| match scope.spawn(spawn).join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }),
        }
    }

    /// Gives the calling thread namespaces of its own for what the command is to see otherwise than
    /// others.
    fn isolate(&self) -> Result<()> {
        if let Some(name) = &self.hostname {
            unshare(CloneFlags::CLONE_NEWUTS)
                .and_then(|()| sethostname(name))
                .map_err(Error::system(format!("set the host name to {name}")))?;
        }
        if let Some(file) = &self.resolv_conf {
            cover(file, Path::new(RESOLV_CONF))
                .map_err(Error::system(format!("mount {}", file.display())))?;
        }
        Ok(())
    }
}

/// Mounts `file` over `target`, for the calling thread and what it starts. A target that is not
/// there stays so.
fn cover(file: &Path, target: &Path) -> nix::Result<()> {
    if !target.exists() {
        return Ok(());
    }
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What others mount is still seen here; what is mounted here is not seen by others.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    mount(Some(file), target, none, MsFlags::MS_BIND, none)
}

/// What a command left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line.
    pub command: String,
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

impl Output {
    /// Whether the exit code is 0.
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// The output itself when the exit code is 0, else [`Error::Command`].
    pub fn ok(self) -> Result<Self> {
        if self.success() {
            return Ok(self);
        }
        Err(Error::Command {
            command: self.command,
            code: self.code,
            stdout: self.stdout,
            stderr: self.stderr,
        })
    }

    /// Standard output of a successful command without surrounding white space.
    pub fn text(self) -> Result<String> {
        Ok(self.ok()?.stdout.trim().to_owned())
    }

    /// Standard output of a successful command, read as JSON.
    pub fn json<T: DeserializeOwned>(self) -> Result<T> {
        let output = self.ok()?;
        serde_json::from_str(&output.stdout).map_err(|source| Error::Json { command: output.command, source })
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Everything up to the pipe's end; bytes that are not UTF-8 are replaced.
fn read_all(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // A read error ends the text early, which is what a reader of it would see too.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
