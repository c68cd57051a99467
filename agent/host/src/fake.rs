//! A host and a kernel in memory, for the tests of what runs on them.

#![expect(clippy::unwrap_used, reason = "tests fail where a twin is given what is not valid")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use mesh_kernel::inside::{OuterEnd, Restored};
use mesh_kernel::{Depth, Event, FakeKernel, FakePrograms, Kernel, KernelError, Listeners, Programs};
use mesh_model::endpoint::NetnsRef;
use mesh_model::observed::UnderlayLink;
use mesh_model::plan::InnerEnd;
use mesh_model::survivor::Survivor;
use mesh_model::{Action, Desired, IfName, Mtu, Observed, Prefix, Protocol};
use mesh_sys::ethtool::Driver;
use tokio::sync::mpsc;

use crate::advertise::HostAddress;
use crate::host::{FoundNetns, Host, NetnsName};
use crate::host_sockets::HostSockets;

/// A UDP port that is in use on every [`TestHost`].
pub const TAKEN_UDP_PORT: u16 = 4800;

/// A host of one address, on which every namespace name exists that begins with `c`.
#[derive(Debug)]
pub struct TestHost {
    /// Its address.
    pub address: IpAddr,
    /// Its name.
    pub name: String,
    /// Of its one network device.
    pub driver: Mutex<Driver>,
    /// The sockets of other processes.
    pub listeners: Mutex<Listeners>,
    /// Devices of endpoints without a record.
    pub survivors: Mutex<Vec<Survivor>>,
    events: Mutex<Vec<mpsc::Sender<Event>>>,
}

impl TestHost {
    /// Creates a host with this name and address.
    pub fn new(name: &str, address: &str) -> Arc<Self> {
        Arc::new(Self {
            address: address.parse().unwrap(),
            name: name.to_owned(),
            driver: Mutex::new(Driver { name: "veth".to_owned(), bus: String::new() }),
            listeners: Mutex::default(),
            survivors: Mutex::default(),
            events: Mutex::default(),
        })
    }

    /// Sends a kernel event to every subscriber.
    pub fn kernel_changed(&self) {
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
        let own = HostAddress { interface: "eth0".parse().unwrap(), address: self.address, leads_out: true };
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
        // Equal for every agent and after every restart, and different for each path.
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

    fn describe(&self, _descriptions: &BTreeMap<IfName, String>) -> Result<(), KernelError> {
        Ok(())
    }

    fn survivors(&self, devices: &BTreeSet<IfName>) -> Result<Vec<Survivor>, KernelError> {
        let survivors = self.survivors.lock().unwrap();
        Ok(survivors.iter().filter(|one| devices.contains(&one.device)).cloned().collect())
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
pub struct TestKernel {
    /// The kernel itself.
    pub inner: Arc<Mutex<FakeKernel>>,
    /// Number of observations.
    pub reconciliations: Arc<Mutex<usize>>,
    programs: FakePrograms,
}

impl TestKernel {
    /// Creates a kernel with the interface `eth0` that has the data-path address.
    pub fn with_underlay() -> Self {
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
    pub fn take_applied(&self) -> Vec<Action> {
        std::mem::take(&mut self.inner.lock().unwrap().applied)
    }

    /// Number of observations.
    pub fn reconciliations(&self) -> usize {
        *self.reconciliations.lock().unwrap()
    }
}

impl Kernel for TestKernel {
    fn observe(&mut self, desired: Option<&Desired>, depth: Depth) -> Result<Observed, KernelError> {
        *self.reconciliations.lock().unwrap() += 1;
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

/// A host with these addresses on these interfaces. All but `docker0` lead out of the host.
pub fn host_addresses(addresses: &[(&str, &str)]) -> Vec<HostAddress> {
    let parse = |(interface, address): &(&str, &str)| HostAddress {
        interface: interface.parse().unwrap(),
        address: address.parse().unwrap(),
        leads_out: *interface != "docker0",
    };
    addresses.iter().map(parse).collect()
}

/// The sockets of a host that listen on TCP port 8080 of these addresses. The host's own addresses
/// are 192.0.2.1, `2001:db8::1`, 127.0.0.1 and 127.0.0.7.
pub fn host_sockets(listeners: &[&str]) -> HostSockets {
    let mut all = Listeners::default();
    for address in listeners {
        all.add(Protocol::Tcp, address.parse().unwrap(), 8080);
    }
    let addresses = ["192.0.2.1", "2001:db8::1", "127.0.0.1", "127.0.0.7"];
    HostSockets::new(all, addresses.iter().map(|address| address.parse().unwrap()))
}
