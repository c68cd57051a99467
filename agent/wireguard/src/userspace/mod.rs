//! The engine in user space: boringtun's Noise protocol and cipher, with Mesh's own packet I/O.
//!
//! The device is a TAP whose frames carry network and peer in their source MAC
//! ([`crate::FrameTag`]). A worker reads up to 64 KiB of TCP or UDP in one call, segments it, and
//! adds IPv4, UDP and VXLAN headers. It encrypts the segments into one buffer, which the kernel
//! sends in one or two calls (UDP GSO). In the other direction it receives many datagrams per call
//! (UDP GRO), decrypts them into one buffer, coalesces consecutive segments and writes
//! super-packets to the device. On the wire this is VXLAN over WireGuard, as from the kernel's own
//! devices.
//!
//! Each worker has one queue of the device and one socket, so a flow's packets stay in order. Peers
//! are locked once per batch.

mod counters;
mod handshake;
mod link;
mod peer;
mod polling;
mod probe;
mod receive;
mod shared;
mod table;
mod timer;
mod transmit;
mod waiting;
mod worker;

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use mesh_ebpf_types::MARK;
use mesh_sys::{
    device::configure,
    tap::{Offload, Tap},
    udp::UdpSocket,
};
use nix::errno::Errno;

use self::{counters::Counters, link::HANDSHAKE, peer::Peer, shared::Shared, table::Table, worker::Worker};
use crate::{EngineConfig, EngineKind, EngineStatus, Error, Result, WireguardEngine, device, wake::Wake};

/// Frames that the device's queue holds while the engine is busy.
const QUEUE: i32 = 1000;
/// Maximum number of workers.
const MAX_WORKERS: usize = 8;

/// The engine. Its device exists as long as this value: when it is dropped, or its process dies,
/// the device is removed, and its packets have no other path.
pub struct Userspace {
    device: Option<Device>,
    running: Option<Running>,
    config: Option<EngineConfig>,
    /// Sessions of a lost device, for the next one.
    former: Option<Arc<Table>>,
    counters: Arc<Counters>,
    offload: Offload,
}

/// The device's open queues.
struct Device {
    name: String,
    queues: Vec<Arc<Tap>>,
    udp: bool,
}

/// Sockets and threads.
struct Running {
    port: u16,
    sockets: Vec<Arc<UdpSocket>>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Transferred from an engine to its successor; keeps the device alive.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    /// Name of the device.
    pub(crate) device: String,
    /// Port of the sockets.
    pub(crate) port: u16,
    /// Queues of the device.
    pub(crate) queues: Vec<OwnedFd>,
    /// Sockets.
    pub(crate) sockets: Vec<OwnedFd>,
}

impl Default for Userspace {
    fn default() -> Self {
        Self::new()
    }
}

impl Userspace {
    /// Creates an engine without a device. At its first configuration, it opens everything in the
    /// network namespace of the thread that calls [`WireguardEngine::apply`].
    pub fn new() -> Self {
        Self {
            device: None,
            running: None,
            config: None,
            former: None,
            counters: Arc::default(),
            offload: Offload::All,
        }
    }

    /// Creates an engine whose device has no offloads: each packet is processed separately. For
    /// tests and comparisons.
    pub fn without_offloads() -> Self {
        Self { offload: Offload::None, ..Self::new() }
    }

    /// Creates an engine that continues with another's device and sockets. Its first configuration
    /// must name the same device.
    pub(crate) fn adopt(handover: Handover) -> Result<Self> {
        let mut engine = Self::new();
        let queues: Vec<Arc<Tap>> =
            handover.queues.into_iter().map(|fd| Arc::new(Tap::from_fd(fd))).collect();
        let udp = set_offload(&queues, engine.offload)?;
        let sockets = handover
            .sockets
            .into_iter()
            .map(|fd| UdpSocket::from_fd(fd, MARK).map(Arc::new))
            .collect::<io::Result<Vec<_>>>()
            .map_err(Error::system("take over sockets"))?;
        engine.device = Some(Device { name: handover.device, queues, udp });
        engine.running = Some(Running::idle(handover.port, sockets, &engine.counters)?);
        Ok(engine)
    }

    /// Stops processing and transfers device and sockets, in which packets wait meanwhile.
    pub(crate) fn hand_over(&mut self) -> Result<Handover> {
        self.config = None;
        let (Some(device), Some(mut running)) = (self.device.take(), self.running.take()) else {
            return Ok(Handover::default());
        };
        running.stop();
        let failed = || Error::system("hand over descriptors");
        Ok(Handover {
            device: device.name,
            port: running.port,
            queues: device
                .queues
                .iter()
                .map(|tap| tap.duplicate())
                .collect::<io::Result<_>>()
                .map_err(failed())?,
            sockets: running
                .sockets
                .iter()
                .map(|socket| socket.duplicate())
                .collect::<io::Result<_>>()
                .map_err(failed())?,
        })
    }

    /// Returns whether existing device and threads still work. Another program may have deleted or
    /// renamed the device, or moved it to another network namespace.
    fn is_intact(&self, config: &EngineConfig) -> bool {
        let is_there = |device: &Device| {
            let index = nix::net::if_::if_nametoindex(device.name.as_str());
            let expected = config.device_index;
            index.is_ok_and(|index| expected.is_none_or(|expected| expected == index))
                && device.queues.iter().all(|queue| queue.is_attached())
        };
        let works = |running: &Running| !running.threads.iter().any(JoinHandle::is_finished);
        self.device.as_ref().is_none_or(is_there) && self.running.as_ref().is_none_or(works)
    }

    /// Closes the device and the sockets, but keeps the sessions with peers.
    fn give_up_device(&mut self) {
        tracing::warn!("the WireGuard device was changed by another program or failed; recreating it");
        (self.device, self.config) = (None, None);
        self.former = self.running.take().map(|running| running.shared.table());
    }

    fn open_device(&mut self, config: &EngineConfig) -> Result<()> {
        if let Some(device) = &self.device {
            return if device.name == config.device {
                Ok(())
            } else {
                Err(Error::Config("the device of a running engine cannot be renamed"))
            };
        }
        let name = &config.device;
        let queues = (0..workers())
            .map(|queue| match queue {
                0 => Tap::create(name, config.device_index),
                _ => Tap::attach(name),
            })
            .map(|tap| tap.map(Arc::new))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| device_error(name, source))?;
        let udp = set_offload(&queues, self.offload)?;
        device::silence(name).map_err(Error::system(format!("set up the device {name}")))?;
        self.device = Some(Device { name: name.clone(), queues, udp });
        Ok(())
    }

    /// Starts the threads, with a new socket if the port has changed.
    fn run(&mut self, config: &EngineConfig) -> Result<()> {
        let Some(device) = &self.device else { return Err(Error::Config("there is no device")) };
        let mut known = self.former.take();
        let changed = self.running.as_ref().is_none_or(|running| running.port != config.listen_port);
        if changed {
            let sockets = bind(config.listen_port, device.queues.len())?;
            let new = Running::idle(config.listen_port, sockets, &self.counters)?;
            // The old threads end before the new ones take their peers.
            known = self.running.replace(new).map(|old| old.shared.table()).or(known);
        }
        let Some(running) = &mut self.running else { return Err(Error::Config("there is no socket")) };
        running.start(config, device, known.as_deref())
    }
}

impl WireguardEngine for Userspace {
    fn kind(&self) -> EngineKind {
        EngineKind::Userspace
    }

    fn apply(&mut self, config: &EngineConfig) -> Result<()> {
        config.validate()?;
        if !self.is_intact(config) {
            self.give_up_device();
        } else if self.config.as_ref() == Some(config) && config.device_is_intact(self.kind()) {
            return Ok(());
        }
        let fresh = self.device.is_none();
        let result = self.open_device(config).and_then(|()| {
            configure(&config.device, config.device_mtu(EngineKind::Userspace), QUEUE)
                .map_err(Error::system(format!("set up the device {}", config.device)))?;
            self.run(config)
        });
        if result.is_err() && fresh {
            self.remove()?;
        }
        result?;
        self.config = Some(config.clone());
        Ok(())
    }

    fn status(&mut self) -> Result<EngineStatus> {
        let peers: BTreeMap<_, _> = self
            .running
            .iter()
            .flat_map(|running| running.shared.table().peers.clone())
            .map(|(index, peer)| (index, peer.status()))
            .collect();
        Ok(EngineStatus { engine: self.kind(), peers, drops: self.counters.snapshot() })
    }

    fn remove(&mut self) -> Result<()> {
        (self.running, self.former) = (None, None);
        (self.device, self.config) = (None, None);
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    /// Holds sockets, without threads or peers.
    fn idle(port: u16, sockets: Vec<Arc<UdpSocket>>, counters: &Arc<Counters>) -> Result<Self> {
        let wakes = (0..sockets.len())
            .map(|_| Wake::new())
            .collect::<io::Result<Vec<_>>>()
            .map_err(Error::system("create an event descriptor"))?;
        let shared = Arc::new(Shared::new(Table::empty(), wakes, Arc::clone(counters)));
        Ok(Self { port, sockets, shared, threads: Vec::new() })
    }

    /// Gives the threads a new table; starts them if they do not run. The table keeps as much as
    /// possible of `known`, or of the threads' old table.
    fn start(&mut self, config: &EngineConfig, device: &Device, known: Option<&Table>) -> Result<()> {
        let own = self.shared.table();
        let (table, fresh) = Table::new(config, known.unwrap_or(&own))?;
        self.shared.replace(table);
        if self.threads.is_empty() {
            for (index, (tap, socket)) in device.queues.iter().zip(&self.sockets).enumerate() {
                let worker = Worker::new(index, &self.shared, tap, socket, device.udp);
                let run = move || {
                    if let Err(error) = worker.run() {
                        tracing::error!(%error, "a WireGuard worker ends");
                    }
                };
                self.threads.push(spawn(&format!("wireguard-{index}"), run)?);
            }
            if let Some(socket) = self.sockets.first() {
                let (shared, socket) = (Arc::clone(&self.shared), Arc::clone(socket));
                let timer = spawn("wireguard-timer", move || timer::run(&shared, &socket))?;
                self.shared.set_timer(timer.thread().clone());
                self.threads.push(timer);
            }
        }
        for peer in fresh {
            self.greet(&peer);
        }
        Ok(())
    }

    /// Starts a handshake with a peer that is new or has new keys. So the first packet need not
    /// wait for it, and a peer that still has sessions with an earlier engine learns immediately
    /// that they are gone.
    fn greet(&self, peer: &Peer) {
        let mut state = peer.lock();
        let mut out = [0; HANDSHAKE];
        let Some(socket) = self.sockets.first() else { return };
        let mut started = false;
        state.initiate(Instant::now(), &mut out, |message, to| {
            // The timers repeat lost messages.
            let _ = socket.send(message, to);
            started = true;
        });
        if started {
            self.shared.start_timers(peer);
        }
    }

    fn stop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // The thread itself reported a panic.
            let _ = thread.join();
        }
    }
}

/// Returns half the number of CPUs: the other half is for the senders of traffic.
fn workers() -> usize {
    thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, MAX_WORKERS))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map_err(Error::system("start a thread"))
}

fn set_offload(queues: &[Arc<Tap>], offload: Offload) -> Result<bool> {
    // Offloads belong to the device, whichever queue sets them.
    match queues.first() {
        Some(tap) => tap.offload(offload).map_err(Error::system("set the device's offloads")),
        None => Ok(false),
    }
}

fn bind(port: u16, count: usize) -> Result<Vec<Arc<UdpSocket>>> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => Error::PortTaken { port },
        _ => Error::System { action: format!("listen on UDP port {port}"), source: error },
    };
    if count > 1 {
        // Sockets that share a port would share it with a stranger's, too.
        UdpSocket::bind(port, false, MARK).map_err(failed)?;
    }
    (0..count).map(|_| UdpSocket::bind(port, count > 1, MARK).map(Arc::new).map_err(failed)).collect()
}

fn device_error(name: &str, source: io::Error) -> Error {
    let device = name.to_owned();
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY | Errno::EINVAL | Errno::EEXIST) => Error::DeviceTaken { device },
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::EACCES | Errno::EPERM) => {
            Error::NoTun { device, source }
        }
        _ => Error::System { action: format!("create the device {name}"), source },
    }
}
