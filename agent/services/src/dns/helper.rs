//! The agent's client of the name server process: finds or starts the process, and updates it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use mesh_dns::{Change, Sockets, Status, Zones};
use mesh_model::naming;
use mesh_sys::helper;
use tokio::sync::watch;

use super::process::{COMMAND, SOCKET};
use super::settings::{PORT, Settings};
use super::wire::{Answer, Program, Request, receive, send, strange};

/// Timeout for the process to start or to respond.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for a status request: users wait for it.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// The networks to serve, each with its gateway addresses.
pub(super) type ServedAddresses = BTreeMap<String, BTreeSet<IpAddr>>;

/// The connection to a process, and the state that was sent to it.
#[derive(Debug)]
struct Connected {
    stream: UnixStream,
    /// The zones that the process has; `None` if they must be sent again.
    zones: Option<Zones>,
    served: BTreeSet<(String, IpAddr)>,
}

/// Keeps the process up to date.
#[derive(Debug)]
pub(super) struct Helper {
    settings: Settings,
    connected: Option<Connected>,
    /// Changes when a process ends.
    gone: watch::Sender<u64>,
}

impl Helper {
    pub(super) fn new(settings: Settings, gone: watch::Sender<u64>) -> Self {
        Self { settings, connected: None, gone }
    }

    /// Updates the process to these zones and networks, whatever its state. Returns the failures,
    /// one line each.
    pub(super) fn follow(&mut self, zones: &Zones, wanted: &ServedAddresses) -> Vec<String> {
        let connected = match self.connected.take() {
            Some(connected) if connected.answers() => Ok(connected),
            _ => self.connect(zones),
        };
        let followed = connected.and_then(|mut connected| {
            let problems = connected.follow(zones, wanted)?;
            self.connected = Some(connected);
            Ok(problems)
        });
        followed.unwrap_or_else(|error| vec![format!("the name server's process does not work: {error}")])
    }

    /// Returns the running process if it has this version; otherwise starts a new one, which takes
    /// over.
    fn connect(&self, zones: &Zones) -> io::Result<Connected> {
        let own = Program::own(&self.settings.resolv_conf)?;
        let old = match connect(&self.settings.run_dir, TIMEOUT) {
            Err(_) => None,
            Ok(stream) => match hello(&stream) {
                Ok((program, served)) if program == own => {
                    self.watch()?;
                    return Ok(Connected { stream, zones: None, served });
                }
                Ok(_) => Some(stream),
                Err(error) => {
                    tracing::warn!(%error, "the name server's process does not answer: it is replaced");
                    end_by_force(&stream);
                    None
                }
            },
        };
        let mut new = Connected { stream: self.start()?, zones: None, served: BTreeSet::new() };
        self.watch()?;
        if let Some(old) = old {
            tracing::info!("a name server of this version replaces the former one");
            new.take_over(&old, zones)?;
        }
        Ok(new)
    }

    fn start(&self) -> io::Result<UnixStream> {
        let Settings { run_dir, resolv_conf } = &self.settings;
        // Run this program's own file, even if another one is at its path by now.
        let mut command = Command::new("/proc/self/exe");
        command.arg(COMMAND).arg(run_dir).arg(resolv_conf);
        let stream = helper::start(&mut command, TIMEOUT, "dns-reaper", |child| {
            // The socket of an earlier process may still exist.
            connect(run_dir, TIMEOUT).ok().filter(|stream| helper::is_peer(stream, child))
        });
        Ok(stream?)
    }

    /// Detects the end of the process by a separate connection, which ends with it.
    fn watch(&self) -> io::Result<()> {
        let stream = connect(&self.settings.run_dir, TIMEOUT)?;
        stream.set_read_timeout(None)?;
        let gone = self.gone.clone();
        let wait = move || {
            let _ = receive::<Answer>(&stream);
            gone.send_modify(|count| *count += 1);
        };
        thread::Builder::new().name("dns-watcher".to_owned()).stack_size(64 << 10).spawn(wait)?;
        Ok(())
    }
}

impl Connected {
    fn answers(&self) -> bool {
        hello(&self.stream).is_ok()
    }

    fn follow(&mut self, zones: &Zones, wanted: &ServedAddresses) -> io::Result<Vec<String>> {
        // Send a network's names before the network is served.
        self.send_zones(zones)?;
        let is_wanted =
            |(name, address): &(String, IpAddr)| wanted.get(name).is_some_and(|all| all.contains(address));
        let changed: BTreeSet<String> =
            self.served.iter().filter(|served| !is_wanted(served)).map(|(name, _)| name.clone()).collect();
        for network in changed {
            self.served.retain(|(name, _)| *name != network);
            done(&self.stream, &Request::Stop { network }, None)?;
        }
        let mut problems = Vec::new();
        for (network, addresses) in wanted {
            for address in addresses {
                if self.served.contains(&(network.clone(), *address)) {
                    continue;
                }
                // A reconciliation creates the device that the socket is bound to.
                match Sockets::bind_on(SocketAddr::new(*address, PORT), naming::HOST_LEG) {
                    Ok(sockets) => self.serve(network, &sockets)?,
                    Err(error) => {
                        problems.push(format!("network {network}: no name server on {address}: {error}"));
                    }
                }
            }
        }
        Ok(problems)
    }

    fn send_zones(&mut self, zones: &Zones) -> io::Result<()> {
        let nothing = Zones::default();
        let from_nothing = self.zones.is_none();
        let before = self.zones.as_ref().unwrap_or(&nothing);
        let change = Change::between(before, zones);
        if from_nothing || !change.is_empty(before) {
            done(&self.stream, &Request::Zones { change, from_nothing }, None)?;
            self.zones = Some(zones.clone());
        }
        Ok(())
    }

    fn serve(&mut self, network: &str, sockets: &Sockets) -> io::Result<()> {
        let address = sockets.udp.local_addr()?.ip();
        done(&self.stream, &Request::Serve { network: network.to_owned() }, Some(sockets))?;
        self.served.insert((network.to_owned(), address));
        Ok(())
    }

    /// Serves on the sockets of another process, which then accepts no more queries.
    fn take_over(&mut self, old: &UnixStream, zones: &Zones) -> io::Result<()> {
        self.send_zones(zones)?;
        send(old, &Request::Give, None)?;
        loop {
            match answer(old)? {
                (Answer::Sockets { network }, Some(sockets)) => self.serve(&network, &sockets)?,
                (Answer::Done, _) => break,
                _ => return Err(strange()),
            }
        }
        done(old, &Request::Retire, None)
    }
}

/// Ends the process of a run directory, if there is one.
pub fn end(run_dir: &Path) {
    let Ok(stream) = connect(run_dir, TIMEOUT) else { return };
    if done(&stream, &Request::End, None).is_err() {
        end_by_force(&stream);
    }
    // The process may not remove the file itself.
    if let Err(error) = std::fs::remove_file(run_dir.join(SOCKET)) {
        tracing::debug!(%error, "the name server's socket could not be removed");
    }
}

/// Reads the process's statistics for each network, over a separate connection. Returns the last
/// known values while the process does not respond.
#[derive(Debug)]
pub(super) struct Statistics {
    run_dir: PathBuf,
    stream: Option<UnixStream>,
    last: BTreeMap<String, Status>,
}

impl Statistics {
    pub(super) fn new(run_dir: PathBuf) -> Self {
        Self { run_dir, stream: None, last: BTreeMap::new() }
    }

    pub(super) fn now(&mut self) -> BTreeMap<String, Status> {
        // The connection may belong to a replaced process.
        let answer = self.stream.take().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), status);
        let answer = answer.or_else(|_: io::Error| status(connect(&self.run_dir, STATUS_TIMEOUT)?));
        if let Ok((stream, status)) = answer {
            (self.stream, self.last) = (Some(stream), status);
        }
        self.last.clone()
    }
}

fn status(stream: UnixStream) -> io::Result<(UnixStream, BTreeMap<String, Status>)> {
    send(&stream, &Request::Status, None)?;
    match answer(&stream)? {
        (Answer::Status(status), _) => {
            Ok((stream, status.into_iter().map(|(name, counts)| (name, counts.into())).collect()))
        }
        _ => Err(strange()),
    }
}

fn connect(run_dir: &Path, patience: Duration) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(run_dir.join(SOCKET))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn hello(stream: &UnixStream) -> io::Result<(Program, BTreeSet<(String, IpAddr)>)> {
    send(stream, &Request::Hello, None)?;
    match answer(stream)? {
        (Answer::Hello { program, served }, _) => Ok((program, served.into_iter().collect())),
        _ => Err(strange()),
    }
}

fn done(stream: &UnixStream, request: &Request, sockets: Option<&Sockets>) -> io::Result<()> {
    send(stream, request, sockets)?;
    match answer(stream)? {
        (Answer::Done, _) => Ok(()),
        (Answer::Failed(reason), _) => Err(io::Error::other(reason)),
        _ => Err(strange()),
    }
}

fn answer(stream: &UnixStream) -> io::Result<(Answer, Option<Sockets>)> {
    receive(stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Kills the process at the other end of a connection, which may be suspended or hang.
fn end_by_force(stream: &UnixStream) {
    if let Err(error) = helper::kill_peer(stream) {
        tracing::debug!(%error, "the name server's process could not be ended");
    }
}
