//! The host that this process runs on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};

use mesh_kernel::inside::{self, OuterEnd, Restored};
use mesh_kernel::{Event, Events, KernelError, Listeners, netns, survivors};
use mesh_model::endpoint::NetnsRef;
use mesh_model::plan::InnerEnd;
use mesh_model::survivor::Survivor;
use mesh_model::{IfName, Mtu, Prefix};
use mesh_sys::ethtool::Driver;
use tokio::sync::mpsc;

use crate::advertise::HostAddress;
use crate::host::{FoundNetns, Host, NetnsName};
use crate::host_sockets::HostSockets;

/// `net.ipv4.ip_local_reserved_ports` of the process's network namespace, for IPv6 too: ports that
/// the kernel does not choose by itself.
pub const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

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
            leads_out: found.leads_out,
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
                        tracing::warn!(%error, "kernel events cannot be received: changes are found by the periodic observation only");
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

    fn describe(&self, descriptions: &BTreeMap<IfName, String>) -> Result<(), KernelError> {
        survivors::describe(descriptions)
    }

    fn survivors(&self, devices: &BTreeSet<IfName>) -> Result<Vec<Survivor>, KernelError> {
        survivors::find(devices)
    }

    fn reserved_ports(&self) -> Option<PathBuf> {
        Some(RESERVED_PORTS.into())
    }

    fn driver(&self, interface: &IfName) -> io::Result<Driver> {
        mesh_sys::ethtool::driver(interface.as_str())
    }
}
