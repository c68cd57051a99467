//! Facts about the host's network that are asked for now and then, outside the control loop.

use std::net::IpAddr;

use mesh_ipam::Prefix;
use mesh_model::IfName;
use mesh_sys::netlink::Netlink;

use crate::links::RawLink;
use crate::netlink::{self, During as _};
use crate::{KernelError, addresses, links, routes};

/// An address of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The interface that has it.
    pub interface: IfName,
    /// MTU of that interface, in bytes.
    pub mtu: u32,
    /// The address.
    pub address: IpAddr,
    /// Whether the interface leads out of the host. A bridge of containers or virtual machines does
    /// not, and other hosts may have a bridge with the same address.
    pub leads_out: bool,
}

/// All addresses in the calling thread's namespace, but for those of the mesh's own devices.
pub fn host_addresses() -> Result<Vec<HostAddress>, KernelError> {
    let mut netlink = netlink::open_own()?;
    let links = foreign_links(&mut netlink)?;
    let addresses = addresses::dump(&mut netlink).map_err(|error| error.during("list the addresses"))?;
    let host_address = |(index, held): (u32, mesh_model::observed::InterfaceAddress)| {
        let link = links.iter().find(|link| link.index == index)?;
        let leads_out =
            !link.is_bridge || links.iter().any(|port| port.master == Some(index) && port.may_lead_out());
        let interface = link.name.parse().ok()?;
        Some(HostAddress { interface, mtu: link.mtu, address: held.address, leads_out })
    };
    Ok(addresses.into_iter().filter_map(host_address).collect())
}

/// The prefixes that the calling thread's namespace reaches by its main table: default routes, IPv6
/// link-local ones and those out of the mesh's own devices left out.
pub fn host_routes() -> Result<Vec<Prefix>, KernelError> {
    let mut netlink = netlink::open_own()?;
    let links = foreign_links(&mut netlink)?;
    let mut prefixes = routes::dump_all(&mut netlink).map_err(|error| error.during("list the routes"))?;
    prefixes.retain(|(index, _)| links.iter().any(|link| link.index == *index));
    let mut prefixes: Vec<Prefix> = prefixes.into_iter().map(|(_, prefix)| prefix).collect();
    prefixes.retain(|prefix| prefix.len() > 0 && !addresses::is_link_local(prefix.first()));
    prefixes.sort();
    prefixes.dedup();
    Ok(prefixes)
}

fn foreign_links(netlink: &mut Netlink) -> Result<Vec<RawLink>, KernelError> {
    let mut links = links::dump(netlink).map_err(|error| error.during("list the network devices"))?;
    links.retain(|link| link.ours().is_none());
    Ok(links)
}
