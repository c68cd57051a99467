//! A host and a kernel in memory, for the tests of what runs on them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mesh_ipam::Delays;
use mesh_kernel::inside::{OuterEnd, Restored};
use mesh_kernel::{Depth, Event, FakeKernel, FakePrograms, Kernel, KernelError, Listeners, Programs};
use mesh_model::desired::Encapsulation;
use mesh_model::endpoint::NetnsRef;
use mesh_model::observed::UnderlayLink;
use mesh_model::plan::InnerEnd;
use mesh_model::{Action, Desired, IfName, InterfacePatterns, Mtu, Observed, Prefix};
use mesh_sys::ethtool::Driver;
use mesh_wireguard::{EngineConfig, EngineKind, EngineStatus, FakeEngine, WireguardEngine};
use tokio::sync::mpsc;

use crate::advertise::HostAddress;
use crate::config::XdpChoice;
use crate::encryption::Engines;
use crate::host::{FoundNetns, Host, NetnsName};
use crate::instance::StatePaths;
use crate::member::Platform;
use crate::reconcile::SharedKernel;
use crate::services::taken::HostSockets;

/// A UDP port that somebody has on every [`TestHost`].
pub(crate) const TAKEN_UDP_PORT: u16 = 4800;

/// A host of one address, on which every namespace name exists that begins with `c`.
#[derive(Debug)]
pub(crate) struct TestHost {
    pub(crate) address: IpAddr,
    pub(crate) name: String,
    /// Of its one network device.
    pub(crate) driver: Mutex<Driver>,
    /// The sockets of other processes.
    pub(crate) listeners: Mutex<Listeners>,
    events: Mutex<Vec<mpsc::Sender<Event>>>,
}

impl TestHost {
    pub(crate) fn new(name: &str, address: &str) -> Arc<Self> {
        Arc::new(Self {
            address: address.parse().unwrap(),
            name: name.to_owned(),
            driver: Mutex::new(Driver { name: "veth".to_owned(), bus: String::new() }),
            listeners: Mutex::default(),
            events: Mutex::default(),
        })
    }

    /// Plays the part of the kernel that tells of a change.
    pub(crate) fn kernel_changed(&self) {
        for events in self.events.lock().unwrap().iter() {
            let _ = events.try_send(Event::Network);
        }
    }
}

impl Host for TestHost {
    fn name(&self) -> io::Result<String> {
        Ok(self.name.clone())
    }

    fn addresses(&self) -> Result<Vec<HostAddress>, KernelError> {
        let own = HostAddress { interface: "eth0".parse().unwrap(), address: self.address };
        Ok(vec![own])
    }

    fn routes(&self) -> Result<Vec<Prefix>, KernelError> {
        Ok(vec![])
    }

    fn mtu_of(&self, address: IpAddr) -> Result<Option<Mtu>, KernelError> {
        Ok((address == self.address).then(|| Mtu::try_from(1500).unwrap()))
    }

    fn udp_port_is_taken(&self, port: u16) -> bool {
        port == TAKEN_UDP_PORT
    }

    fn watch_kernel(&self) -> Result<mpsc::Receiver<Event>, KernelError> {
        let (sender, receiver) = mpsc::channel(1);
        self.events.lock().unwrap().push(sender);
        Ok(receiver)
    }

    fn find_netns(&self, name: &NetnsName) -> Result<FoundNetns, KernelError> {
        let path = match name {
            NetnsName::Text(text) if text.starts_with('/') => text.clone(),
            NetnsName::Text(text) => format!("/run/netns/{text}"),
            NetnsName::Pid(pid) => format!("/proc/{pid}/ns/net"),
        };
        if !path.rsplit('/').next().is_some_and(|name| name.starts_with('c')) {
            return Err(KernelError::NamespaceGone {
                path: path.into(),
                source: Some(io::Error::from(io::ErrorKind::NotFound)),
            });
        }
        // The same for every agent that looks, in all its lives, and no two alike.
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        let inode = hasher.finish();
        let interfaces: BTreeSet<IfName> = ["lo".parse().unwrap()].into();
        Ok(FoundNetns { netns: NetnsRef { path: path.into(), inode, cookie: 0 }, interfaces })
    }

    fn tcp_socket(&self, netns: &NetnsRef, _ipv6: bool) -> Result<TcpStream, KernelError> {
        Err(KernelError::NamespaceGone { path: netns.path.clone(), source: None })
    }

    fn sockets(&self) -> Result<HostSockets, KernelError> {
        Ok(HostSockets::new(self.listeners.lock().unwrap().clone(), [self.address]))
    }

    fn outer_ends(&self) -> Result<BTreeMap<IfName, OuterEnd>, KernelError> {
        Ok(BTreeMap::new())
    }

    fn restore_inside(&self, _inner: &InnerEnd, _outer: OuterEnd) -> Result<Restored, KernelError> {
        Ok(Restored::default())
    }

    fn reserved_ports(&self) -> Option<PathBuf> {
        None
    }

    fn driver(&self, _interface: &IfName) -> io::Result<Driver> {
        Ok(self.driver.lock().unwrap().clone())
    }
}

/// A [`FakeKernel`] that the test can reach while the loop has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct TestKernel {
    pub(crate) inner: Arc<Mutex<FakeKernel>>,
    pub(crate) passes: Arc<Mutex<usize>>,
    programs: FakePrograms,
}

impl TestKernel {
    pub(crate) fn with_underlay() -> Self {
        let kernel = Self::default();
        kernel.inner.lock().unwrap().state.underlay = Some(UnderlayLink {
            name: "eth0".parse().unwrap(),
            index: 2,
            mtu: 1500,
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
        });
        kernel
    }

    /// Steps taken, and forgotten.
    pub(crate) fn take_applied(&self) -> Vec<Action> {
        std::mem::take(&mut self.inner.lock().unwrap().applied)
    }

    /// How often the loop has looked.
    pub(crate) fn passes(&self) -> usize {
        *self.passes.lock().unwrap()
    }
}

impl Kernel for TestKernel {
    fn observe(&mut self, desired: Option<&Desired>, depth: Depth) -> Result<Observed, KernelError> {
        *self.passes.lock().unwrap() += 1;
        self.inner.lock().unwrap().observe(desired, depth)
    }

    fn apply(&mut self, action: &Action) -> Result<(), KernelError> {
        self.inner.lock().unwrap().apply(action)
    }

    fn programs(&mut self) -> &mut dyn Programs {
        // Steps go to the kernel's own twin; a load among them is as good as done here.
        let _ = self.programs.load();
        &mut self.programs
    }
}

/// Engines in memory that the test can reach while the loop has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct TestEngines {
    pub(crate) inner: Arc<Mutex<FakeEngine>>,
    /// The port that is taken, so that no engine can be opened.
    pub(crate) refused: Arc<Mutex<Option<u16>>>,
    /// Whether they say that they are the kernel's.
    pub(crate) of_kernel: bool,
    /// Why an engine does not respond at the next check.
    pub(crate) silent: Arc<Mutex<Option<String>>>,
    /// How often they were asked which of its keys each node uses.
    pub(crate) looks: Arc<Mutex<u32>>,
}

/// The engine that they all are.
struct TestEngine(TestEngines);

impl WireguardEngine for TestEngine {
    fn kind(&self) -> EngineKind {
        if self.0.of_kernel { EngineKind::Kernel } else { EngineKind::Userspace }
    }

    fn apply(&mut self, config: &EngineConfig) -> mesh_wireguard::Result<()> {
        self.0.inner.lock().unwrap().apply(config)
    }

    fn check(&mut self) -> mesh_wireguard::Result<()> {
        match self.0.silent.lock().unwrap().take() {
            Some(reason) => Err(mesh_wireguard::Error::Process(reason)),
            None => Ok(()),
        }
    }

    fn follow(&mut self) -> mesh_wireguard::Result<()> {
        *self.0.looks.lock().unwrap() += 1;
        Ok(())
    }

    fn status(&mut self) -> mesh_wireguard::Result<EngineStatus> {
        let status = self.0.inner.lock().unwrap().status()?;
        Ok(EngineStatus { engine: self.kind(), ..status })
    }

    fn remove(&mut self) -> mesh_wireguard::Result<()> {
        self.0.inner.lock().unwrap().remove()
    }
}

impl Engines for TestEngines {
    fn open(&self) -> mesh_wireguard::Result<(Box<dyn WireguardEngine>, String)> {
        match *self.refused.lock().unwrap() {
            Some(port) => Err(mesh_wireguard::Error::PortTaken { port }),
            None => Ok((Box::new(TestEngine(self.clone())), "as the test wants it".to_owned())),
        }
    }

    fn device_is_intact(&self, _kind: EngineKind, _config: &EngineConfig) -> bool {
        self.inner.lock().unwrap().config().is_some()
    }

    fn remove_left(&self) -> mesh_wireguard::Result<()> {
        self.inner.lock().unwrap().remove()
    }

    fn port(&self) -> u16 {
        51820
    }
}

/// A platform in a directory of its own.
pub(crate) fn platform(dir: &Path, host: Arc<TestHost>, kernel: &TestKernel) -> Platform {
    Platform {
        paths: StatePaths::new(dir),
        host,
        kernel: SharedKernel::new(Box::new(kernel.clone())),
        encapsulation: Encapsulation::Direct,
        encapsulation_reason: "as the test wants it".to_owned(),
        xdp: XdpChoice::default(),
        publish_interfaces: InterfacePatterns::default(),
        delays: Delays::default(),
        name_server: None,
        engines: Arc::new(TestEngines::default()),
        connection_entries: None,
        rotate_keys: None,
    }
}
