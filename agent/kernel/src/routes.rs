//! Routes, in the main table.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_ipam::{Family, Prefix};
use mesh_model::naming;
use mesh_model::observed::HostRoute;
use mesh_sys::netlink::{Netlink, RequestError, parse};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

/// Reads the routes of the main table, of either family, that a request with more attributes
/// selects.
fn dump_main<T>(
    netlink: &mut Netlink,
    select: impl Fn(&mut RouteMessage),
    read: impl Fn(RouteNetlinkMessage) -> Option<T>,
) -> Result<Vec<T>, RequestError> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        select(&mut message);
        match netlink.dump(&RouteNetlinkMessage::GetRoute(message), |message| Ok(read(parse(message)?))) {
            Ok(found) => routes.extend(found),
            // No route in that family yet, or the kernel has no IPv6.
            Err(error)
                if matches!(error.errno(), Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => {
            }
            Err(error) => return Err(error),
        }
    }
    Ok(routes)
}

/// Returns the routes out of a device, without those that the kernel makes with its addresses; none
/// if the device does not exist.
pub(crate) fn dump(netlink: &mut Netlink, index: u32) -> Result<Vec<HostRoute>, RequestError> {
    let select = |message: &mut RouteMessage| message.attributes.push(RouteAttribute::Oif(index));
    match dump_main(netlink, select, |message| host_route(message, index)) {
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(Vec::new()),
        routes => routes,
    }
}

/// The metric of routes that make a subnet unreachable: any other route to it comes first.
const LAST_METRIC: u32 = u32::MAX;

/// Returns the subnets that routes of ours make unreachable.
pub(crate) fn dump_unreachable(netlink: &mut Netlink) -> Result<Vec<Prefix>, RequestError> {
    let select = |message: &mut RouteMessage| message.header.protocol = naming::ROUTE_PROTOCOL.into();
    dump_main(netlink, select, unreachable_prefix)
}

fn unreachable_prefix(message: RouteNetlinkMessage) -> Option<Prefix> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let RouteHeader { kind, table, protocol, .. } = message.header;
    let ours = kind == RouteType::Unreachable
        && table == RouteHeader::RT_TABLE_MAIN
        && protocol == naming::ROUTE_PROTOCOL.into();
    ours.then(|| destination(&message)).flatten()
}

fn unreachable(subnet: Prefix) -> io::Result<RouteMessage> {
    let route = to(subnet.first(), subnet.len())?
        .protocol(naming::ROUTE_PROTOCOL.into())
        .kind(RouteType::Unreachable)
        .priority(LAST_METRIC);
    Ok(route.build())
}

/// Adds an unreachable route to a subnet, so that packets to it do not follow a default route;
/// succeeds if the route exists.
pub(crate) fn put_unreachable(netlink: &mut Netlink, subnet: Prefix) -> Result<(), RequestError> {
    match netlink.request(RouteNetlinkMessage::NewRoute(unreachable(subnet)?), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        answer => answer,
    }
}

/// Removes that route; succeeds if it does not exist.
pub(crate) fn remove_unreachable(netlink: &mut Netlink, subnet: Prefix) -> Result<(), RequestError> {
    match netlink.request(RouteNetlinkMessage::DelRoute(unreachable(subnet)?), 0) {
        Err(error) if matches!(error.errno(), Some(Errno::ESRCH | Errno::ENODEV)) => Ok(()),
        answer => answer,
    }
}

/// Returns the prefix and the device's index of every route of the main table, including the
/// kernel's own and those of other programs.
pub(crate) fn dump_all(netlink: &mut Netlink) -> Result<Vec<(u32, Prefix)>, RequestError> {
    dump_main(netlink, |_| (), prefix_of)
}

fn prefix_of(message: RouteNetlinkMessage) -> Option<(u32, Prefix)> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let RouteHeader { kind, table, .. } = message.header;
    if kind != RouteType::Unicast || table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let index = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    Some((index?, destination(&message)?))
}

fn host_route(message: RouteNetlinkMessage, index: u32) -> Option<HostRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let RouteHeader { kind, protocol, table, address_family, destination_prefix_length, .. } = message.header;
    if kind != RouteType::Unicast || protocol == RouteProtocol::Kernel || table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let mut destination = match address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut source, mut mtu, mut here) = (None, None, false);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(&address)?,
            RouteAttribute::PrefSource(address) => source = ip(&address),
            RouteAttribute::Oif(oif) => here = oif == index,
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let subnet = Prefix::new(destination, destination_prefix_length).ok()?;
    here.then_some(HostRoute { subnet, source, mtu })
}

/// The prefix that a route names; a default route names none.
fn destination(message: &RouteMessage) -> Option<Prefix> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    Prefix::new(address?, message.header.destination_prefix_length).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// A route to a subnet.
fn to(first: IpAddr, len: u8) -> io::Result<RouteMessageBuilder<IpAddr>> {
    RouteMessageBuilder::<IpAddr>::new().destination_prefix(first, len).map_err(io::Error::other)
}

/// A route out of a device, without a next hop.
fn out_of(index: u32, subnet: Prefix) -> io::Result<RouteMessageBuilder<IpAddr>> {
    let scope = match subnet.family() {
        Family::Ipv4 => RouteScope::Link,
        Family::Ipv6 => RouteScope::Universe,
    };
    Ok(to(subnet.first(), subnet.len())?.scope(scope).output_interface(index))
}

/// Routes a subnet out of a device, in the place of the route that there is.
pub(crate) fn put(netlink: &mut Netlink, index: u32, route: HostRoute) -> Result<(), RequestError> {
    let mut message = out_of(index, route.subnet)?;
    if let Some(source) = route.source {
        message = message.pref_source(source).map_err(io::Error::other)?;
    }
    let mut message = message.build();
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    netlink.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Removes the route to a subnet out of a device. A route that does not exist is not an error.
pub(crate) fn remove(netlink: &mut Netlink, index: u32, route: HostRoute) -> Result<(), RequestError> {
    match netlink.request(RouteNetlinkMessage::DelRoute(out_of(index, route.subnet)?.build()), 0) {
        Err(error) if matches!(error.errno(), Some(Errno::ESRCH | Errno::ENODEV)) => Ok(()),
        answer => answer,
    }
}

/// Routes a further subnet straight out of a container's device, beside another device of the same
/// network.
pub(crate) fn add_on_link(netlink: &mut Netlink, index: u32, subnet: Prefix) -> Result<(), RequestError> {
    let message = RouteNetlinkMessage::NewRoute(out_of(index, subnet)?.build());
    match netlink.request(message, NLM_F_CREATE | NLM_F_APPEND) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        answer => answer,
    }
}

/// The least metric of default routes through internal networks. It is above those of all other
/// endpoints.
const INTERNAL_METRIC: u32 = 1 << 30;

/// The metric that the kernel gives a route of IPv6 by itself.
const METRIC: u32 = 1024;

/// Adds a default route that is used after all others: first the container's own, then that of the
/// oldest device. When that one is removed, the kernel uses the next.
///
/// Those through internal networks come last: only replies of published ports get anywhere there.
pub(crate) fn add_default(
    netlink: &mut Netlink,
    index: u32,
    gateway: IpAddr,
    internal: bool,
) -> Result<(), RequestError> {
    let everywhere = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Indexes grow within a namespace.
    let metric = if internal { INTERNAL_METRIC } else { METRIC }.saturating_add(index);
    let route = to(everywhere, 0)?.output_interface(index).priority(metric);
    let message = route.gateway(gateway).map_err(io::Error::other)?.build();
    match netlink.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        answer => answer,
    }
}
