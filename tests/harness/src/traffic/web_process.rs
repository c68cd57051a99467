//! A [`super::WebServer`] as a process of its own, which is measured without its client's share, or
//! outlives its lab's maker.

use std::{net::TcpStream, path::Path, time::Duration};

use crate::{Binaries, Error, Netns, Process, Result, poll_until};

/// How long it may take to listen.
const START: Duration = Duration::from_secs(5);

/// The process; it is killed when this value is dropped.
#[derive(Debug)]
pub struct ServerProcess(Process);

impl ServerProcess {
    /// Starts it in `netns` and returns when it listens. Its log is in `directory`.
    pub fn start(netns: &Netns, name: &str, port: u16, directory: &Path) -> Result<Self> {
        let program = Binaries::locate()?.path("mesh-lab");
        let argv = [program, "web".to_owned(), name.to_owned(), port.to_string()];
        Self::of(netns, netns.cmd(argv).spawn(&directory.join(format!("{name}.web.log")))?, port)
    }

    /// Likewise on one CPU only.
    pub fn start_on_cpu(netns: &Netns, cpu: usize, name: &str, port: u16, directory: &Path) -> Result<Self> {
        let program = Binaries::locate()?.path("mesh-lab");
        let argv = ["taskset", "-c", &cpu.to_string(), &program, "web", name, &port.to_string()];
        Self::of(netns, netns.cmd(argv).spawn(&directory.join(format!("{name}.web.log")))?, port)
    }

    fn of(netns: &Netns, mut process: Process, port: u16) -> Result<Self> {
        let listens = poll_until(START, || {
            let connected = netns.enter(|| TcpStream::connect(("127.0.0.1", port))).is_ok_and(|c| c.is_ok());
            (connected || !process.is_running()).then_some(connected)
        });
        if listens == Some(true) {
            return Ok(Self(process));
        }
        let log = process.log();
        Err(Error::Traffic(format!("`{}` does not listen: {log}", process.command())))
    }

    /// Lets it run on until its namespace is removed; its pid.
    pub fn detach(self) -> i32 {
        let pid = self.0.pid();
        self.0.detach();
        pid
    }
}
