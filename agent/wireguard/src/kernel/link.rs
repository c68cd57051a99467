//! Creates and removes the device.

use mesh_sys::netlink::{Netlink, RequestError};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::{errno::Errno, net::if_::if_nametoindex};
use rtnetlink::{LinkUnspec, LinkWireguard};

use crate::{Error, Result};

/// Creates a WireGuard device unless a device with this name exists. Its kind is checked when it is
/// configured. Returns whether it was created.
pub(super) fn create(name: &str, index: Option<u32>) -> Result<bool> {
    let link = LinkWireguard::new(name).index(index.unwrap_or_default()).build();
    match request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) => match error.errno() {
            Some(Errno::EEXIST) => Ok(false),
            Some(Errno::EOPNOTSUPP) => Err(Error::NoKernelWireguard),
            _ => Err(Error::System { action: format!("create the device {name}"), source: error.into() }),
        },
        Ok(()) => Ok(true),
    }
}

/// Removes the device; succeeds if it no longer exists.
pub(super) fn remove(name: &str) -> Result<()> {
    let Ok(index) = if_nametoindex(name) else { return Ok(()) };
    let link = LinkUnspec::new_with_index(index).build();
    match request(RouteNetlinkMessage::DelLink(link), 0) {
        Err(error) if error.errno() != Some(Errno::ENODEV) => {
            Err(Error::System { action: format!("remove the device {name}"), source: error.into() })
        }
        _ => Ok(()),
    }
}

fn request(message: RouteNetlinkMessage, flags: u16) -> std::result::Result<(), RequestError> {
    Netlink::open(NETLINK_ROUTE)?.request(message, flags)
}
