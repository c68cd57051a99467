//! Creates and removes the device.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::{errno::Errno, net::if_::if_nametoindex};

use super::netlink;
use crate::{Error, Result};

/// Creates a WireGuard device unless a device of that name exists; its kind is checked when it is
/// set up. Returns whether it was created.
pub(super) fn create(name: &str, index: Option<u32>) -> Result<bool> {
    let mut link = LinkMessage::default();
    link.header.index = index.unwrap_or_default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
    ];
    match send(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EEXIST) => Ok(false),
            Some(Errno::EOPNOTSUPP) => Err(Error::NoKernelWireguard),
            _ => Err(Error::System { action: format!("create the device {name}"), source: error }),
        },
        Ok(()) => Ok(true),
    }
}

/// Removes the device; succeeds if it no longer exists.
pub(super) fn remove(name: &str) -> Result<()> {
    let Ok(index) = if_nametoindex(name) else { return Ok(()) };
    let mut link = LinkMessage::default();
    link.header.index = index;
    match send(RouteNetlinkMessage::DelLink(link), 0) {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => {
            Err(Error::System { action: format!("remove the device {name}"), source: error })
        }
        _ => Ok(()),
    }
}

fn send(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    netlink::request(NETLINK_ROUTE, &bytes).map(drop)
}
