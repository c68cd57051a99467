//! The engine process itself.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::OpenOptionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, umask},
    },
    unistd::{geteuid, setsid},
};
use parking_lot::Mutex;

use mesh_sys::confine::confine;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::protocol::{self, LOCK, Request, Response, SOCKET};
use crate::{Error, Result, Userspace, WireguardEngine, userspace::Handover, wake::Wake};

/// Timeout for the end of the predecessor.
const PREDECESSOR: Duration = Duration::from_secs(10);
/// Interval between checks whether it has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The capabilities that the process keeps:
/// - `NET_ADMIN`, `NET_RAW`: for its device, and the marks of its packets;
/// - `NET_BIND_SERVICE`: for a port below 1024.
const KEPT: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW).union(CapabilitySet::NET_BIND_SERVICE);

/// Options of an engine process.
#[derive(Debug, Clone)]
struct Options {
    run_dir: PathBuf,
    version: String,
    take_over: bool,
}

/// Runs the engine process until it receives a stop request. Implements the command `meshd
/// wireguard-engine`, with its arguments in `args`: `--run-dir DIR --version TEXT [--take-over]`.
///
/// It detaches from its parent and takes the lock of the run directory, so that there is only one
/// engine. It serves the socket `wireguard.sock` there (mode 0600; only the same user may connect).
/// With `--take-over` it receives device and sockets from the engine that serves the directory,
/// which then ends.
pub fn engine_main(args: impl IntoIterator<Item = String>) -> Result<()> {
    let options = Options::parse(args)?;
    // EPERM: it already leads a session.
    let _ = setsid();
    umask(Mode::from_bits_truncate(0o177));
    let engine = if options.take_over { take_over(&options.run_dir)? } else { Userspace::new() };
    drop_rights().map_err(Error::system("give up rights"))?;
    let _lock = lock(&options.run_dir, if options.take_over { PREDECESSOR } else { Duration::ZERO })?;
    serve(engine, &options)
}

/// Drops all rights except those for its device and sockets: the process reads untrusted data.
fn drop_rights() -> io::Result<()> {
    let held = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: held.effective & KEPT,
            permitted: held.permitted & KEPT,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    if let Err(error) = confine() {
        // The kernel does not support such filters.
        eprintln!("warning: the engine runs without a filter of system calls: {error}");
    }
    Ok(())
}

impl Options {
    fn parse(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let (mut run_dir, mut version, mut take_over) = (None, None, false);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--run-dir" => run_dir = args.next().map(PathBuf::from),
                "--version" => version = args.next(),
                "--take-over" => take_over = true,
                other => return Err(Error::Process(format!("got the unknown option {other}"))),
            }
        }
        match (run_dir, version) {
            (Some(run_dir), Some(version)) => Ok(Self { run_dir, version, take_over }),
            _ => Err(Error::Process("requires --run-dir and --version".to_owned())),
        }
    }
}

fn lock(run_dir: &Path, timeout: Duration) -> Result<Flock<File>> {
    let path = run_dir.join(LOCK);
    let deadline = Instant::now() + timeout;
    let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let mut file = open().map_err(Error::file("open", &path))?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, _)) if Instant::now() >= deadline => {
                return Err(Error::Process("already runs in this folder".to_owned()));
            }
            Err((file, _)) => file,
        };
        thread::sleep(POLL_INTERVAL);
    }
}

/// Receives device and sockets from the engine that serves `run_dir`.
fn take_over(run_dir: &Path) -> Result<Userspace> {
    let path = run_dir.join(SOCKET);
    let failed = || Error::file("take over from the engine at", &path);
    let mut stream = UnixStream::connect(&path).map_err(failed())?;
    stream.set_read_timeout(Some(PREDECESSOR)).map_err(failed())?;
    protocol::write(&mut stream, &Request::HandOver).map_err(failed())?;
    match protocol::read(&mut stream).map_err(failed())? {
        Some(Response::HandedOver { device, port, queues, sockets }) => {
            if queues == 0 {
                return Ok(Userspace::new());
            }
            let mut descriptors = protocol::receive_descriptors(&stream).map_err(failed())?;
            if descriptors.len() != queues + sockets {
                return Err(Error::Process("did not receive all descriptors of its predecessor".to_owned()));
            }
            let sockets = descriptors.split_off(queues);
            Userspace::adopt(Handover { device, port, queues: descriptors, sockets })
        }
        Some(Response::Failed(message)) => Err(Error::Remote(message)),
        _ => Err(Error::Process("received an invalid response from its predecessor".to_owned())),
    }
}

fn serve(engine: Userspace, options: &Options) -> Result<()> {
    let path = options.run_dir.join(SOCKET);
    // The lock proves that no process serves it.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::file("replace", path)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(Error::file("listen on", &path))?;
    let engine = Arc::new(Mutex::new(engine));
    let stop = Arc::new(Wake::new().map_err(Error::system("create an event descriptor"))?);
    loop {
        let mut fds =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Error::system("wait for requests")(errno)),
        }
        let [asked, stopped] = fds.map(|fd| fd.any().unwrap_or(true));
        if stopped {
            return Ok(());
        }
        if !asked {
            continue;
        }
        // The caller may have disconnected before it is accepted.
        let Ok((stream, _)) = listener.accept() else { continue };
        let (engine, stop, version) = (Arc::clone(&engine), Arc::clone(&stop), options.version.clone());
        let path = path.clone();
        let conversation = move || serve_caller(stream, &engine, &version, &path, &stop);
        thread::Builder::new()
            .name("wireguard-control".to_owned())
            .spawn(conversation)
            .map_err(Error::system("start a thread"))?;
    }
}

/// Answers one caller until it disconnects.
fn serve_caller(mut stream: UnixStream, engine: &Mutex<Userspace>, version: &str, path: &Path, stop: &Wake) {
    let same_user = getsockopt(&stream, PeerCredentials).is_ok_and(|peer| peer.uid() == geteuid().as_raw());
    if !same_user {
        return;
    }
    while let Ok(Some(request)) = protocol::read(&mut stream) {
        let ends = matches!(request, Request::Stop | Request::HandOver);
        let mut engine = engine.lock();
        let answered = answer(request, &mut engine, version, &mut stream);
        if ends && matches!(answered, Ok(true)) {
            // Later callers find no process, or the successor.
            let _ = fs::remove_file(path);
            stop.wake();
            return;
        }
        if answered.is_err() {
            return;
        }
    }
}

/// Answers one request; returns whether it succeeded.
fn answer(
    request: Request,
    engine: &mut Userspace,
    version: &str,
    stream: &mut UnixStream,
) -> io::Result<bool> {
    let mut descriptors = Vec::new();
    let result = match request {
        Request::Hello => Ok(Response::Hello { version: version.to_owned(), pid: std::process::id() }),
        Request::Apply(config) => engine.apply(&config).map(|()| Response::Done),
        Request::Status => engine.status().map(|status| Response::Status(Box::new(status))),
        Request::Stop => engine.remove().map(|()| Response::Done),
        Request::HandOver => engine.hand_over().map(|given| {
            let (queues, sockets) = (given.queues.len(), given.sockets.len());
            descriptors.extend(given.queues);
            descriptors.extend(given.sockets);
            Response::HandedOver { device: given.device, port: given.port, queues, sockets }
        }),
    };
    let ok = result.is_ok();
    protocol::write(stream, &result.unwrap_or_else(|error| Response::Failed(error.to_string())))?;
    if !descriptors.is_empty() {
        protocol::send_descriptors(stream, &descriptors)?;
    }
    Ok(ok)
}
