//! The daemon's interface to the engine process.

use std::{
    ffi::OsString,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use mesh_sys::helper::{self, StartError};

use super::{
    protocol::{self, Request, Response, SOCKET},
    stuck,
};
use crate::{EngineConfig, EngineKind, EngineStatus, Error, Result, WireguardEngine};

/// Timeout for the start of an engine process.
const START: Duration = Duration::from_secs(15);
/// Timeout for its responses.
const ANSWER: Duration = Duration::from_secs(5);
/// Timeout for its response to a liveness check.
const LIFE_SIGN: Duration = Duration::from_secs(3);

/// The command that starts engine processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineCommand {
    /// The program.
    pub program: PathBuf,
    /// Its first arguments, such as `wireguard-engine`; those of [`crate::engine_main`] follow.
    pub args: Vec<OsString>,
    /// Version of the program: a process of another version is replaced.
    pub version: String,
}

/// An engine in a separate process, which continues when the daemon ends.
#[derive(Debug)]
pub struct EngineProcess {
    run_dir: PathBuf,
    command: EngineCommand,
    connection: Option<Connection>,
    /// The process was suspended (`SIGSTOP`) at the last check.
    was_suspended: bool,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    version: String,
    pid: u32,
}

impl EngineProcess {
    /// Connects to the engine process of `run_dir`, or starts one, in the calling thread's network
    /// namespace. Replaces a process of another version: the new one takes over its device and
    /// sockets, in which packets wait for the keys. So call [`WireguardEngine::apply`] immediately.
    pub fn connect_or_spawn(run_dir: impl Into<PathBuf>, command: EngineCommand) -> Result<Self> {
        let mut process = Self { run_dir: run_dir.into(), command, connection: None, was_suspended: false };
        process.connect()?;
        Ok(process)
    }

    /// Stops the engine process of `run_dir`, of any version, if one runs. This removes its device
    /// and its keys.
    pub fn stop_running(run_dir: &Path) -> Result<()> {
        match Connection::open(run_dir) {
            Ok(mut connection) => match connection.ask(&Request::Stop) {
                Ok(Response::Failed(message)) => Err(Error::Remote(message)),
                Ok(_) => Ok(()),
                Err(_) => stuck::end(run_dir),
            },
            Err(error) if stuck::is_nobody(&error) => Ok(()),
            Err(_) => stuck::end(run_dir),
        }
    }

    /// Returns the pid that the process reported.
    pub fn pid(&self) -> Option<u32> {
        self.connection.as_ref().map(|connection| connection.pid)
    }

    fn connect(&mut self) -> Result<()> {
        match Connection::open(&self.run_dir) {
            Ok(connection) if connection.version == self.command.version => {
                self.connection = Some(connection);
                Ok(())
            }
            Ok(old) => {
                drop(old);
                self.spawn(true)
            }
            Err(error) if stuck::is_nobody(&error) => self.spawn(false),
            Err(error) => {
                tracing::warn!(%error, "the WireGuard engine process does not respond; replacing it");
                stuck::end(&self.run_dir)?;
                self.spawn(false)
            }
        }
    }

    /// Sends the process a liveness check.
    fn check_alive(&mut self) -> Result<()> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            // An earlier caller gave up waiting for a response.
            none => match Connection::open(&self.run_dir) {
                Ok(connection) => none.insert(connection),
                Err(error) if stuck::is_nobody(&error) => return Ok(()),
                Err(_) => return Err(Error::Process("does not respond".to_owned())),
            },
        };
        let suspended = stuck::is_suspended(connection.pid);
        if suspended && self.was_suspended {
            return Err(Error::Process("is suspended".to_owned()));
        }
        self.was_suspended = suspended;
        if suspended {
            // A debugger may have stopped it briefly.
            return Ok(());
        }
        let ask = |connection: &mut Connection| {
            connection.stream.set_read_timeout(Some(LIFE_SIGN))?;
            connection.ask(&Request::Hello)?;
            connection.stream.set_read_timeout(Some(ANSWER))
        };
        match ask(connection) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(Error::Process("does not respond".to_owned()))
            }
            // The process and its device are gone, which is reported separately.
            Err(_) => {
                self.connection = None;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn spawn(&mut self, take_over: bool) -> Result<()> {
        let failed = || Error::system(format!("start {}", self.command.program.display()));
        let mut command = Command::new(&self.command.program);
        command.args(&self.command.args).arg("--run-dir").arg(&self.run_dir);
        command.args(["--version", &self.command.version]);
        if take_over {
            command.arg("--take-over");
        }
        let connect = |_: &_| {
            Connection::open(&self.run_dir)
                .ok()
                .filter(|connection| connection.version == self.command.version)
        };
        // Its errors go to the daemon's stderr; it continues if the daemon ends.
        let started = helper::start(&mut command, START, "wireguard-reaper", connect);
        self.connection = Some(started.map_err(|error| match error {
            StartError::Io(error) => failed()(error),
            StartError::Ended(status) => Error::Process(format!("ended at once ({status})")),
            StartError::Timeout => Error::Process("did not start in time".to_owned()),
        })?);
        Ok(())
    }

    fn ask(&mut self, request: &Request) -> Result<Response> {
        let Some(connection) = &mut self.connection else {
            return Err(Error::Process("does not run".to_owned()));
        };
        let result = connection.ask(request);
        if result.is_err() {
            self.connection = None;
        }
        match result.map_err(|error| Error::Process(format!("does not respond: {error}")))? {
            Response::Failed(message) => Err(Error::Remote(message)),
            response => Ok(response),
        }
    }
}

impl Connection {
    fn open(run_dir: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(run_dir.join(SOCKET))?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut connection = Self { stream, version: String::new(), pid: 0 };
        match connection.ask(&Request::Hello)? {
            Response::Hello { version, pid } => Ok(Self { version, pid, ..connection }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn ask(&mut self, request: &Request) -> io::Result<Response> {
        protocol::write(&mut self.stream, request)?;
        protocol::read(&mut self.stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl WireguardEngine for EngineProcess {
    fn kind(&self) -> EngineKind {
        EngineKind::Userspace
    }

    /// Starts a new process if the old one died.
    fn apply(&mut self, config: &EngineConfig) -> Result<()> {
        config.validate()?;
        let request = Request::Apply(Box::new(config.clone()));
        if self.connection.is_some() {
            match self.ask(&request) {
                Err(Error::Process(_)) => {}
                result => return result.map(drop),
            }
        }
        self.connect()?;
        self.ask(&request).map(drop)
    }

    fn check(&mut self) -> Result<()> {
        let alive = self.check_alive();
        if alive.is_err() {
            (self.connection, self.was_suspended) = (None, false);
            stuck::end(&self.run_dir)?;
        }
        alive
    }

    fn status(&mut self) -> Result<EngineStatus> {
        if self.connection.as_ref().is_some_and(|connection| stuck::is_suspended(connection.pid)) {
            return Err(Error::Process("is suspended".to_owned()));
        }
        match self.ask(&Request::Status)? {
            Response::Status(status) => Ok(*status),
            _ => Err(Error::Process("sent an invalid response".to_owned())),
        }
    }

    fn remove(&mut self) -> Result<()> {
        self.ask(&Request::Stop)?;
        self.connection = None;
        Ok(())
    }
}
