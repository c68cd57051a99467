//! Addresses of devices.

use std::net::IpAddr;

use mesh_model::observed::InterfaceAddress;
use mesh_sys::netlink::{Netlink, RequestError, parse};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Whether it is an IPv6 link-local address (RFC 4291, section 2.5.6). The kernel gives each device
/// one.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// All addresses of a namespace, each with the index of its device.
pub(crate) fn dump(netlink: &mut Netlink) -> Result<Vec<(u32, InterfaceAddress)>, RequestError> {
    netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| {
        let RouteNetlinkMessage::NewAddress(message) = parse(message)? else { return Ok(None) };
        // On a point-to-point device `Address` is the other side's, and `Local` the own.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = local.or_else(|| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        });
        let prefix_len = message.header.prefix_len;
        Ok(address.map(|address| (message.header.index, InterfaceAddress { address, prefix_len })))
    })
}

fn message(index: u32, address: InterfaceAddress) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = family(address.address);
    message.header.prefix_len = address.prefix_len;
    message.header.scope = AddressScope::Universe;
    message.attributes =
        vec![AddressAttribute::Local(address.address), AddressAttribute::Address(address.address)];
    message
}

/// Gives a device an address. IPv6 ones are valid at once: the datapath answers no probe for
/// duplicates, since no address is given twice.
pub(crate) fn add(netlink: &mut Netlink, index: u32, address: InterfaceAddress) -> Result<(), RequestError> {
    let mut message = message(index, address);
    if address.address.is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    match netlink.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        answer => answer,
    }
}

/// Removes an address from a device. An address that does not exist is not an error.
pub(crate) fn remove(
    netlink: &mut Netlink,
    index: u32,
    address: InterfaceAddress,
) -> Result<(), RequestError> {
    match netlink.request(RouteNetlinkMessage::DelAddress(message(index, address)), 0) {
        Err(error) if matches!(error.errno(), Some(Errno::EADDRNOTAVAIL | Errno::ENODEV)) => Ok(()),
        answer => answer,
    }
}
