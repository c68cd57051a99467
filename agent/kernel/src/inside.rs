//! What is configured inside a container's namespace, after the endpoint was made: addresses and
//! routes go when somebody sets the device down, or removes them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_model::IfName;
use mesh_model::observed::{HostRoute, InterfaceAddress};
use mesh_model::plan::InnerEnd;
use mesh_sys::netlink::{Netlink, RequestError};
use netlink_packet_route::link::LinkFlags;

use crate::links::{self, RawLink};
use crate::netlink::{self, During as _};
use crate::{KernelError, addresses, namespace, routes};

/// The host's end of an endpoint's pair, which shows whether the inner end was set down and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterEnd {
    /// Interface index.
    pub index: u32,
    /// Interface index of the inner end, in its namespace.
    pub peer: u32,
    /// How often its carrier came or went.
    pub carrier_changes: u32,
}

/// The host's ends of all endpoints' pairs in the calling thread's namespace.
pub fn outer_ends() -> Result<BTreeMap<IfName, OuterEnd>, KernelError> {
    let mut netlink = netlink::open_own()?;
    let found = links::dump(&mut netlink).map_err(|error| error.during("list the network devices"))?;
    let outer = |link: &RawLink| {
        let (name, _) = link.ours()?;
        let peer = link.link.filter(|_| link.link_elsewhere)?;
        Some((name, OuterEnd { index: link.index, peer, carrier_changes: link.carrier_changes }))
    };
    Ok(found.iter().filter_map(outer).collect())
}

/// What was found inside, and what was done about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// What was missing and is there again, a few words each.
    pub restored: Vec<String>,
    /// What is missing and was left so, since somebody put something of their own in its place; a
    /// few words each.
    pub replaced: Vec<String>,
}

/// Restores the addresses and routes that the inner end of a pair has lost. A device that is down
/// is left alone: another program set it down, and is expected to set it up.
pub fn restore(inner: &InnerEnd, outer: OuterEnd) -> Result<Restored, KernelError> {
    let namespace = namespace::open(&inner.netns)?;
    let mut netlink = namespace::netlink(&inner.netns, &namespace, || ())?;
    let path = inner.netns.path.display();
    let failed =
        |error: RequestError| error.during(format!("restore what {} in {path} has lost", inner.ifname));
    let device = links::by_index(&mut netlink, outer.peer).map_err(failed)?;
    let is_up = |device: &RawLink| LinkFlags::from_bits_retain(device.flags).contains(LinkFlags::Up);
    // The index may be another device's, if ours is about to go.
    match device {
        Some(device) if device.link == Some(outer.index) && is_up(&device) => {}
        _ => return Ok(Restored::default()),
    }
    let mut restored = Restored::default();
    let own = restore_addresses(&mut netlink, inner, outer.peer, &mut restored).map_err(failed)?;
    restore_routes(&mut netlink, inner, outer.peer, &own, &mut restored).map_err(failed)?;
    Ok(restored)
}

/// Returns those of the endpoint's addresses that the device has.
fn restore_addresses(
    netlink: &mut Netlink,
    inner: &InnerEnd,
    index: u32,
    restored: &mut Restored,
) -> Result<Vec<IpAddr>, RequestError> {
    let mut own = Vec::new();
    let there: Vec<InterfaceAddress> = addresses::dump(netlink)?
        .into_iter()
        .filter(|(device, held)| *device == index && !addresses::is_link_local(held.address))
        .map(|(_, held)| held)
        .collect();
    for wanted in &inner.addresses {
        if there.iter().any(|held| held.address == wanted.address) {
            own.push(wanted.address);
            continue;
        }
        let same_family = |held: &&InterfaceAddress| held.address.is_ipv4() == wanted.address.is_ipv4();
        let foreign = there
            .iter()
            .filter(same_family)
            .find(|held| !inner.addresses.iter().any(|wanted| wanted.address == held.address));
        if let Some(foreign) = foreign {
            let what = format!("address {} was replaced by {}", wanted.address, foreign.address);
            restored.replaced.push(what);
        } else {
            addresses::add(netlink, index, *wanted)?;
            own.push(wanted.address);
            restored.restored.push(format!("address {}", wanted.address));
        }
    }
    Ok(own)
}

fn restore_routes(
    netlink: &mut Netlink,
    inner: &InnerEnd,
    index: u32,
    own: &[IpAddr],
    restored: &mut Restored,
) -> Result<(), RequestError> {
    let there = routes::dump(netlink, index)?;
    // Where the address is somebody else's, so are the routes.
    let is_own = |address: IpAddr| own.iter().any(|own| own.is_ipv4() == address.is_ipv4());
    for subnet in inner.on_link.iter().filter(|subnet| is_own(subnet.first())) {
        if !there.iter().any(|route| route.subnet == *subnet) {
            routes::add_on_link(netlink, index, *subnet)?;
            restored.restored.push(format!("the route to {subnet}"));
        }
    }
    for gateway in inner.gateways.iter().filter(|gateway| is_own(**gateway)) {
        // Another default route through this device replaces ours on purpose.
        let is_default = |route: &HostRoute| {
            route.subnet.len() == 0 && route.subnet.first().is_ipv4() == gateway.is_ipv4()
        };
        if !there.iter().any(is_default) {
            routes::add_default(netlink, index, *gateway, inner.internal)?;
            restored.restored.push(format!("the default route by {gateway}"));
        }
    }
    Ok(())
}
