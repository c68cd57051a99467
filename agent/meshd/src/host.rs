//! What the agent asks the host beside the kernel loop: addresses, names, containers' namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};

use mesh_kernel::inside::{self, OuterEnd, Restored};
use mesh_kernel::{Event, Events, KernelError, Listeners, netns};
use mesh_model::endpoint::NetnsRef;
use mesh_model::plan::InnerEnd;
use mesh_model::{IfName, Mtu, Prefix};
use mesh_sys::ethtool::Driver;
use tokio::sync::mpsc;

use crate::advertise::HostAddress;
use crate::services::ports;
use crate::services::taken::HostSockets;

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

    /// Whether a socket or a VXLAN device of somebody has this UDP port.
    fn udp_port_is_taken(&self, port: u16) -> bool;

    /// Tells, until the receiver is dropped, when something of ours in the kernel may have changed.
    fn watch_kernel(&self) -> Result<mpsc::Receiver<Event>, KernelError>;

    /// Finds a container's namespace.
    fn find_netns(&self, name: &NetnsName) -> Result<FoundNetns, KernelError>;

    /// A TCP socket that stands in a container's namespace: not connected, and non-blocking.
    fn tcp_socket(&self, netns: &NetnsRef, ipv6: bool) -> Result<TcpStream, KernelError>;

    /// The sockets that published ports may conflict with.
    fn sockets(&self) -> Result<HostSockets, KernelError>;

    /// The host's ends of all endpoints' pairs.
    fn outer_ends(&self) -> Result<BTreeMap<IfName, OuterEnd>, KernelError>;

    /// Gives the inner end of a pair what it has lost in its namespace.
    fn restore_inside(&self, inner: &InnerEnd, outer: OuterEnd) -> Result<Restored, KernelError>;

    /// The file with the ports that the host does not choose by itself, if it has one.
    fn reserved_ports(&self) -> Option<PathBuf>;

    /// What drives a network device.
    fn driver(&self, interface: &IfName) -> io::Result<Driver>;
}

/// Where `ip netns` and others keep named namespaces.
const NAMED: &str = "/run/netns";

/// The host that this process runs on, in the network namespace that it runs in.
#[derive(Debug, Clone, Copy)]
pub struct ThisHost;

impl Host for ThisHost {
    fn name(&self) -> io::Result<String> {
        let name = nix::unistd::gethostname()?;
        // A fully qualified name is longer than people want to type.
        Ok(name.to_string_lossy().split('.').next().unwrap_or_default().to_owned())
    }

    fn addresses(&self) -> Result<Vec<HostAddress>, KernelError> {
        let addresses = mesh_kernel::host::host_addresses()?;
        let address = |found: mesh_kernel::host::HostAddress| HostAddress {
            interface: found.interface,
            address: found.address,
        };
        Ok(addresses.into_iter().map(address).collect())
    }

    fn routes(&self) -> Result<Vec<Prefix>, KernelError> {
        mesh_kernel::host::host_routes()
    }

    fn mtu_of(&self, address: IpAddr) -> Result<Option<Mtu>, KernelError> {
        let addresses = mesh_kernel::host::host_addresses()?;
        let found = addresses.into_iter().find(|found| found.address == address);
        // The loopback device has 65536, one more than an IP packet can have.
        Ok(found.and_then(|found| Mtu::try_from(found.mtu.min(Mtu::MAX)).ok()))
    }

    fn udp_port_is_taken(&self, port: u16) -> bool {
        // The kernel's VXLAN device binds one socket of each family.
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        any.into_iter().any(|any| {
            let bound = UdpSocket::bind((any, port));
            bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        })
    }

    fn watch_kernel(&self) -> Result<mpsc::Receiver<Event>, KernelError> {
        let mut events = Events::subscribe()?;
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = sender.closed() => return,
                };
                match event {
                    // A change of the network that finds no room is seen with what waits already.
                    Ok(Event::Network) => drop(sender.try_send(Event::Network)),
                    Ok(Event::Firewall) if sender.send(Event::Firewall).await.is_err() => return,
                    Ok(Event::Firewall) => {}
                    Err(error) => {
                        tracing::warn!(%error, "changes of the kernel are only found by looking for them");
                        return;
                    }
                }
            }
        });
        Ok(receiver)
    }

    fn find_netns(&self, name: &NetnsName) -> Result<FoundNetns, KernelError> {
        let path = match name {
            NetnsName::Text(text) if text.contains('/') => PathBuf::from(text),
            NetnsName::Text(text) => Path::new(NAMED).join(text),
            NetnsName::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        };
        let (netns, interfaces) = netns::find(&path)?;
        Ok(FoundNetns { netns, interfaces })
    }

    fn tcp_socket(&self, netns: &NetnsRef, ipv6: bool) -> Result<TcpStream, KernelError> {
        netns::tcp_socket(netns, ipv6)
    }

    fn sockets(&self) -> Result<HostSockets, KernelError> {
        let failed = |source| KernelError::Netlink { action: "list the sockets".to_owned(), source };
        let listeners = Listeners::read().map_err(failed)?;
        let addresses = mesh_kernel::host::host_addresses()?;
        Ok(HostSockets::new(listeners, addresses.into_iter().map(|found| found.address)))
    }

    fn outer_ends(&self) -> Result<BTreeMap<IfName, OuterEnd>, KernelError> {
        inside::outer_ends()
    }

    fn restore_inside(&self, inner: &InnerEnd, outer: OuterEnd) -> Result<Restored, KernelError> {
        inside::restore(inner, outer)
    }

    fn reserved_ports(&self) -> Option<PathBuf> {
        Some(ports::RESERVED_PORTS.into())
    }

    fn driver(&self, interface: &IfName) -> io::Result<Driver> {
        mesh_sys::ethtool::driver(interface.as_str())
    }
}
