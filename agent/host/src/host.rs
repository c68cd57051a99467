//! What the agent asks the host beside the kernel loop: addresses, names, containers' namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;

use mesh_kernel::inside::{OuterEnd, Restored};
use mesh_kernel::{Event, KernelError};
use mesh_model::endpoint::NetnsRef;
use mesh_model::plan::InnerEnd;
use mesh_model::survivor::Survivor;
use mesh_model::{IfName, Mtu, Prefix};
use mesh_sys::ethtool::Driver;
use tokio::sync::mpsc;

use crate::advertise::HostAddress;
use crate::host_sockets::HostSockets;

/// How a container's namespace is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsName {
    /// A path when it has a slash, else a name under `/run/netns`.
    Text(String),
    /// The namespace that this process is in.
    Pid(u32),
}

impl fmt::Display for NetnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Pid(pid) => write!(f, "of process {pid}"),
        }
    }
}

/// A container's namespace as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundNetns {
    /// The namespace.
    pub netns: NetnsRef,
    /// The interfaces in it.
    pub interfaces: BTreeSet<IfName>,
}

/// The host that the agent runs on, or its twin in memory. Calls may block for a short time.
pub trait Host: Send + Sync + fmt::Debug + 'static {
    /// The host's name.
    fn name(&self) -> io::Result<String>;

    /// All addresses of its interfaces.
    fn addresses(&self) -> Result<Vec<HostAddress>, KernelError>;

    /// The prefixes that it reaches by routes of its own: default routes and those of the mesh left
    /// out.
    fn routes(&self) -> Result<Vec<Prefix>, KernelError>;

    /// The MTU of the interface that has the address; `None` when none has it.
    fn mtu_of(&self, address: IpAddr) -> Result<Option<Mtu>, KernelError>;

    /// Returns whether another socket or VXLAN device uses this UDP port.
    fn udp_port_is_taken(&self, port: u16) -> bool;

    /// Sends an event when our objects in the kernel may have changed, until the receiver is
    /// dropped.
    fn watch_kernel(&self) -> Result<mpsc::Receiver<Event>, KernelError>;

    /// Finds a container's namespace.
    fn find_netns(&self, name: &NetnsName) -> Result<FoundNetns, KernelError>;

    /// Opens a TCP socket in a container's namespace: not connected, and non-blocking.
    fn tcp_socket(&self, netns: &NetnsRef, ipv6: bool) -> Result<TcpStream, KernelError>;

    /// The sockets that published ports may conflict with.
    fn sockets(&self) -> Result<HostSockets, KernelError>;

    /// The host's ends of all endpoints' pairs.
    fn outer_ends(&self) -> Result<BTreeMap<IfName, OuterEnd>, KernelError>;

    /// Gives the inner end of a pair what it has lost in its namespace.
    fn restore_inside(&self, inner: &InnerEnd, outer: OuterEnd) -> Result<Restored, KernelError>;

    /// Writes descriptions into the aliases of endpoints' devices.
    fn describe(&self, descriptions: &BTreeMap<IfName, String>) -> Result<(), KernelError>;

    /// Identifies these devices of endpoints.
    fn survivors(&self, devices: &BTreeSet<IfName>) -> Result<Vec<Survivor>, KernelError>;

    /// The file with the ports that the host does not choose by itself, if it has one.
    fn reserved_ports(&self) -> Option<PathBuf>;

    /// What drives a network device.
    fn driver(&self, interface: &IfName) -> io::Result<Driver>;
}
