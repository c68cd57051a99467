//! Devices: reading them, making ours, changing and removing ours.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mesh_model::observed::{HostInterface, Link, LinkKind};
use mesh_model::plan::{EndpointDevice, HostLeg, VxlanDevice, outer_mtu};
use mesh_model::{IfName, MacAddr, naming};
use mesh_sys::netlink::{HEADER, Netlink, RequestError};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask,
    LinkFlags, State,
};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use crate::netlink::{self, During as _, kind};
use crate::{KernelError, addresses, namespace, routes, sysctl};

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_CARRIER_CHANGES: u16 = 35;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
/// Where the attributes begin: after the netlink header and `struct ifinfomsg`.
const ATTRIBUTES: usize = HEADER + 16;

/// `ARPHRD_ETHER` of the kernel: a device whose packets have Ethernet headers.
const ETHERNET: u16 = 1;
/// Types of devices whose received packets begin with their IP headers (`ARPHRD_PPP`, `_RAWIP`,
/// `_TUNNEL`, `_TUNNEL6`, `_SIT`, `_IPGRE`, `_IP6GRE`, `_NONE`): tunnels, modems, TUN devices,
/// WireGuard.
const LAYER_3: [u16; 8] = [512, 519, 768, 769, 776, 778, 823, 0xFFFE];

/// Longest wait for a device's carrier. The kernel usually sets it within a millisecond.
const CARRIER_DEADLINE: Duration = Duration::from_millis(200);

/// Interval between checks whether the device is gone.
const REMOVAL_PAUSE: Duration = Duration::from_micros(200);

/// Whether a device's own programs see the packets that come by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Role {
    /// They do.
    #[default]
    Independent,
    /// The programs of its bridge or bond do.
    Port,
    /// The programs of its member interfaces do.
    Vrf,
}

/// A device as netlink reports it.
///
/// Read by hand: the packet library would take apart a hundred attributes of each device, and hosts
/// have hundreds.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each has its own attribute in the kernel's message")]
pub(crate) struct RawLink {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) address: Option<[u8; 6]>,
    pub(crate) flags: u32,
    pub(crate) kind: Option<naming::Kind>,
    /// The other end's index.
    pub(crate) link: Option<u32>,
    /// Whether the other end is in another namespace.
    pub(crate) link_elsewhere: bool,
    pub(crate) operational: bool,
    /// The kernel's number of its hardware type (`ARPHRD_...`).
    hardware: u16,
    role: Role,
    pub(crate) carrier_changes: u32,
    /// Index of the bridge or bond of which this device is a port.
    pub(crate) master: Option<u32>,
    pub(crate) is_bridge: bool,
    /// A text that the agent or a person has set; usually empty.
    pub(crate) alias: String,
    vxlan_port: u16,
    vxlan_external: bool,
}

impl RawLink {
    fn parse(message: &[u8]) -> Self {
        let header = |at: usize| message.get(at..at + 4).map_or(0, native);
        let hardware = message.get(18..20).and_then(|bytes| bytes.try_into().ok());
        let mut link = Self {
            index: header(20),
            flags: header(24),
            hardware: hardware.map_or(0, u16::from_ne_bytes),
            ..Self::default()
        };
        let mut in_vrf = false;
        for attribute in NlasIterator::new(message.get(ATTRIBUTES..).unwrap_or_default()).flatten() {
            let value = attribute.value();
            match attribute.kind() {
                IFLA_IFNAME => link.name = String::from_utf8_lossy(text(value)).into_owned(),
                IFLA_MTU => link.mtu = native(value),
                IFLA_IFALIAS => link.alias = String::from_utf8_lossy(text(value)).into_owned(),
                IFLA_ADDRESS => link.address = value.try_into().ok(),
                IFLA_LINK => link.link = Some(native(value)),
                IFLA_CARRIER_CHANGES => link.carrier_changes = native(value),
                IFLA_LINK_NETNSID => link.link_elsewhere = true,
                IFLA_MASTER => link.master = Some(native(value)),
                IFLA_OPERSTATE => {
                    link.operational = value.first().is_some_and(|state| State::from(*state) == State::Up);
                }
                IFLA_LINKINFO => in_vrf = link.parse_info(value),
                _ => {}
            }
        }
        if link.master.is_some() && !in_vrf {
            link.role = Role::Port;
        }
        link
    }

    /// Returns whether the device is in a VRF.
    fn parse_info(&mut self, info: &[u8]) -> bool {
        let mut in_vrf = false;
        for attribute in NlasIterator::new(info).flatten() {
            match attribute.kind() {
                IFLA_INFO_KIND => {
                    self.kind = Some(kind(text(attribute.value())));
                    self.is_bridge = text(attribute.value()) == b"bridge";
                    if text(attribute.value()) == b"vrf" {
                        self.role = Role::Vrf;
                    }
                }
                IFLA_INFO_SLAVE_KIND => in_vrf = text(attribute.value()) == b"vrf",
                IFLA_INFO_DATA if self.kind == Some(naming::Kind::Vxlan) => {
                    self.parse_vxlan(attribute.value());
                }
                _ => {}
            }
        }
        in_vrf
    }

    fn parse_vxlan(&mut self, data: &[u8]) {
        for attribute in NlasIterator::new(data).flatten() {
            match attribute.kind() {
                IFLA_VXLAN_PORT => {
                    self.vxlan_port = attribute.value().try_into().map_or(0, u16::from_be_bytes);
                }
                IFLA_VXLAN_COLLECT_METADATA => self.vxlan_external = attribute.value().first() == Some(&1),
                _ => {}
            }
        }
    }

    /// Its address, if it is one that a device may have.
    pub(crate) fn mac(&self) -> Option<MacAddr> {
        self.address.and_then(|address| MacAddr::new(address).ok())
    }

    /// The device as an interface of the host that packets come by, if it is one.
    ///
    /// Ports of bridges and bonds are left out, and so are VRFs ([`Role`]).
    pub(crate) fn host_interface(&self) -> Option<(u32, HostInterface)> {
        let is_ours = self.kind.is_some_and(|kind| naming::is_ours(&self.name, kind));
        let ethernet = self.hardware == ETHERNET;
        let carries_ip = ethernet || LAYER_3.contains(&self.hardware);
        if is_ours || self.role != Role::Independent || !carries_ip {
            return None;
        }
        Some((self.index, HostInterface { name: self.name.parse().ok()?, ethernet }))
    }

    /// Whether a bridge with this port may lead out of the host.
    ///
    /// A veth or TUN device that is a port of a bridge leads into a container or a virtual machine.
    pub(crate) const fn may_lead_out(&self) -> bool {
        !matches!(self.kind, Some(naming::Kind::Veth | naming::Kind::Tun))
    }

    /// The device as one of ours, if it is.
    pub(crate) fn ours(&self) -> Option<(IfName, Link)> {
        let kind = self.kind.filter(|kind| naming::is_ours(&self.name, *kind))?;
        let kind = match kind {
            naming::Kind::Vxlan => LinkKind::Vxlan { port: self.vxlan_port, external: self.vxlan_external },
            naming::Kind::Veth => {
                LinkKind::Veth { peer: self.link.unwrap_or_default(), peer_is_here: !self.link_elsewhere }
            }
            naming::Kind::Wireguard | naming::Kind::Tun => LinkKind::Wireguard,
            naming::Kind::Other => return None,
        };
        let flags = LinkFlags::from_bits_retain(self.flags);
        let link = Link {
            index: self.index,
            kind,
            mtu: self.mtu,
            mac: self.mac(),
            up: flags.contains(LinkFlags::Up),
            arp: !flags.contains(LinkFlags::Noarp),
        };
        Some((self.name.parse().ok()?, link))
    }
}

fn native(value: &[u8]) -> u32 {
    value.try_into().map_or(0, u32::from_ne_bytes)
}

fn text(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// All devices of a namespace.
pub(crate) fn dump(netlink: &mut Netlink) -> Result<Vec<RawLink>, RequestError> {
    let all = LinkMessageBuilder::<LinkUnspec>::new()
        .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let request = RouteNetlinkMessage::GetLink(all.build());
    netlink.dump(&request, |message| Ok(Some(RawLink::parse(message))))
}

/// One device, by its name.
pub(crate) fn by_name(netlink: &mut Netlink, name: &IfName) -> Result<Option<RawLink>, RequestError> {
    get(netlink, LinkUnspec::new_with_name(name.as_str()))
}

/// An interface for messages: by its name, as far as it has one.
pub(crate) fn called(netlink: &mut Netlink, index: u32) -> String {
    match by_index(netlink, index) {
        Ok(Some(link)) => format!("interface {}", link.name),
        _ => naming::name_of(index).map_or_else(
            || format!("a removed interface (index {index})"),
            |name| format!("interface {name}, which does not exist"),
        ),
    }
}

/// One device, by its index.
pub(crate) fn by_index(netlink: &mut Netlink, index: u32) -> Result<Option<RawLink>, RequestError> {
    get(netlink, LinkUnspec::new_with_index(index))
}

fn get(netlink: &mut Netlink, link: LinkMessageBuilder<LinkUnspec>) -> Result<Option<RawLink>, RequestError> {
    let message = RouteNetlinkMessage::GetLink(link.build());
    match netlink.get(message, |message| Ok(RawLink::parse(message))) {
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        answer => answer.map(Some),
    }
}

fn create<T>(netlink: &mut Netlink, link: LinkMessageBuilder<T>) -> Result<(), RequestError> {
    netlink.request(RouteNetlinkMessage::NewLink(link.build()), NLM_F_CREATE | NLM_F_EXCL)
}

fn set(netlink: &mut Netlink, link: LinkMessageBuilder<LinkUnspec>) -> Result<(), RequestError> {
    netlink.request(RouteNetlinkMessage::SetLink(link.build()), 0)
}

/// Keeps IPv6 from giving a device a link-local address, and from speaking on it. A kernel without
/// IPv6 does neither.
fn silence_ipv6(netlink: &mut Netlink, index: u32) -> Result<(), RequestError> {
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let silent = LinkAttribute::AfSpecUnspec(vec![mode]);
    match set(netlink, LinkUnspec::new_with_index(index).append_extra_attribute(silent)) {
        Err(error)
            if matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::ENODEV)) =>
        {
            Ok(())
        }
        answer => answer,
    }
}

/// Sets a device up, and waits until both ends of a pair have a
/// carrier: until then it drops what the other end sends. A pair whose other end is down has none;
/// that is not waited for long.
pub(crate) fn set_up(netlink: &mut Netlink, index: u32) -> Result<(), RequestError> {
    set(netlink, LinkUnspec::new_with_index(index).up())?;
    let begin = Instant::now();
    loop {
        match by_index(netlink, index)? {
            Some(link)
                if link.kind == Some(naming::Kind::Veth)
                    && !link.operational
                    && begin.elapsed() < CARRIER_DEADLINE =>
            {
                thread::sleep(Duration::from_micros(100));
            }
            _ => return Ok(()),
        }
    }
}

/// Makes a device ignore neighbours.
pub(crate) fn set_no_arp(netlink: &mut Netlink, index: u32) -> Result<(), RequestError> {
    set(netlink, LinkUnspec::new_with_index(index).arp(false))
}

/// Gives a device an MTU.
pub(crate) fn set_mtu(netlink: &mut Netlink, index: u32, mtu: u32) -> Result<(), RequestError> {
    set(netlink, LinkUnspec::new_with_index(index).mtu(mtu))
}

/// Removes a device, and waits until no process finds it, here or at the other end of a pair. A
/// device that does not exist is not an error.
///
/// The kernel answers about 20 ms later, when it has freed the device's memory. The caller need not
/// wait for that, so another thread does. If the process ends before, the kernel completes the
/// removal.
pub(crate) fn remove(netlink: &mut Netlink, index: u32) -> Result<(), RequestError> {
    let mut own = netlink::open()?;
    let (answer, answered) = mpsc::channel();
    thread::Builder::new().name("remove".to_owned()).spawn(move || {
        // The receiver is dropped as soon as the device is gone.
        let _ = answer.send(delete(&mut own, index));
    })?;
    loop {
        match answered.recv_timeout(REMOVAL_PAUSE) {
            Ok(answer) => return answer,
            // While the kernel removes the device, it does not answer this.
            Err(_) if by_index(netlink, index)?.is_none() => return Ok(()),
            Err(_) => {}
        }
    }
}

/// Removes a device, and waits until the kernel has finished. A device that does not exist is not
/// an error.
fn delete(netlink: &mut Netlink, index: u32) -> Result<(), RequestError> {
    let link = LinkUnspec::new_with_index(index).build();
    match netlink.request(RouteNetlinkMessage::DelLink(link), 0) {
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
        answer => answer,
    }
}

/// Makes the VXLAN device and sets it up, which is when it takes its UDP port.
pub(crate) fn create_vxlan(netlink: &mut Netlink, device: &VxlanDevice) -> Result<(), KernelError> {
    let VxlanDevice { name, index, port, mtu } = device;
    let link = LinkMessageBuilder::<LinkVxlan>::new(name.as_str())
        .index(*index)
        .mtu(*mtu)
        .collect_metadata(true)
        .learning(false)
        .port(*port)
        // IPv6 underlays carry VXLAN without a UDP checksum, as IPv4 ones do (RFC 7348, section 5;
        // RFC 6935).
        .udp_zero_csum6_tx(true)
        .udp_zero_csum6_rx(true);
    let action = || format!("create the VXLAN device {name}");
    let taken = || KernelError::PortTaken { port: *port, name: name.clone() };
    if let Err(error) = create(netlink, link) {
        return Err(match error.errno() {
            // Another device with the name, or another VXLAN device with the port.
            Some(Errno::EEXIST) if by_name(netlink, name).is_ok_and(|found| found.is_none()) => taken(),
            _ => exists(error, name, action()),
        });
    }
    let up = LinkUnspec::new_with_index(*index).up();
    let ready = silence_ipv6(netlink, *index).and_then(|()| set(netlink, up));
    ready.map_err(|error| {
        undo(netlink, *index);
        if error.errno() == Some(Errno::EADDRINUSE) { taken() } else { error.during(action()) }
    })
}

/// Makes the host leg, with both ends set up.
pub(crate) fn create_host_leg(netlink: &mut Netlink, leg: &HostLeg) -> Result<(), KernelError> {
    let peer = LinkUnspec::new_with_index(leg.peer_index).name(leg.peer_name.as_str()).mtu(leg.mtu);
    let link = veth(&leg.name, peer).index(leg.index).address(leg.mac.octets().to_vec()).mtu(leg.mtu);
    let action = || format!("create the devices {} and {}", leg.name, leg.peer_name);
    if let Err(error) = create(netlink, link) {
        let peer_exists = by_name(netlink, &leg.peer_name).is_ok_and(|found| found.is_some());
        let name = if peer_exists { &leg.peer_name } else { &leg.name };
        return Err(exists(error, name, action()));
    }
    let ready = silence_ipv6(netlink, leg.index)
        .and_then(|()| silence_ipv6(netlink, leg.peer_index))
        .and_then(|()| set_no_arp(netlink, leg.index))
        .and_then(|()| set(netlink, LinkUnspec::new_with_index(leg.index).up()))
        .and_then(|()| set_up(netlink, leg.peer_index));
    ready.map_err(|error| {
        undo(netlink, leg.index);
        error.during(action())
    })
}

/// Makes an endpoint's pair in one request, the inner end in its namespace from the start, under
/// its final name. Then configures the inner end. The outer end stays down: it has no program yet.
pub(crate) fn create_endpoint(netlink: &mut Netlink, device: &EndpointDevice) -> Result<(), KernelError> {
    let namespace = namespace::open(&device.netns)?;
    let peer = LinkUnspec::new_with_name(device.ifname.as_str())
        .address(device.mac.octets().to_vec())
        .mtu(device.mtu)
        .setns_by_fd(namespace.as_raw_fd());
    let link =
        veth(&device.name, with_burst(peer, device.burst)).index(device.index).mtu(outer_mtu(device.mtu));
    if let Err(error) = create(netlink, link) {
        let action = format!(
            "create the device {} with {} in {}",
            device.name,
            device.ifname,
            device.netns.path.display()
        );
        let here = by_name(netlink, &device.name).is_ok_and(|found| found.is_some())
            || by_index(netlink, device.index).is_ok_and(|found| found.is_some());
        return Err(if error.errno() == Some(Errno::EEXIST) && !here {
            KernelError::IfnameTaken { ifname: device.ifname.clone(), netns: device.netns.path.clone() }
        } else {
            exists(error, &device.name, action)
        });
    }
    let ready = silence_ipv6(netlink, device.index)
        .map_err(|error| error.during(format!("configure {}", device.name)))
        .and_then(|()| configure_inside(device, &namespace));
    ready.inspect_err(|_| undo(netlink, device.index))
}

/// Sets the inner end up and gives it addresses and routes.
fn configure_inside(device: &EndpointDevice, namespace: &std::fs::File) -> Result<(), KernelError> {
    let EndpointDevice { ifname, addresses, .. } = device;
    let path = device.netns.path.display();
    let has_ipv6 = addresses.iter().any(|address| address.address.is_ipv6());
    // Container runtimes like to turn IPv6 off in the namespaces that they make.
    let mut allowed = Ok(());
    let mut inner = namespace::netlink(&device.netns, namespace, || {
        if has_ipv6 {
            allowed = sysctl::allow_ipv6(ifname);
        }
    })?;
    allowed?;
    let configure = || format!("configure {ifname} in {path}");
    let found = by_name(&mut inner, ifname).map_err(|error| error.during(configure()))?;
    let index = found.map(|link| link.index).ok_or_else(|| KernelError::Refused {
        action: configure(),
        detail: Some("it vanished".to_owned()),
        source: io::Error::from(Errno::ENODEV),
    })?;
    if !has_ipv6 {
        silence_ipv6(&mut inner, index).map_err(|error| error.during(configure()))?;
    }
    set(&mut inner, LinkUnspec::new_with_index(index).up()).map_err(|error| error.during(configure()))?;
    for address in addresses {
        addresses::add(&mut inner, index, *address).map_err(|error| {
            error.during(format!("give {ifname} in {path} the address {}", address.address))
        })?;
    }
    for subnet in &device.on_link {
        routes::add_on_link(&mut inner, index, *subnet)
            .map_err(|error| error.during(format!("route {subnet} out of {ifname} in {path}")))?;
    }
    for gateway in &device.gateways {
        routes::add_default(&mut inner, index, *gateway, device.internal)
            .map_err(|error| error.during(format!("set the default route to {gateway} in {path}")))?;
    }
    Ok(())
}

/// Writes a device's alias.
pub(crate) fn set_alias(netlink: &mut Netlink, index: u32, alias: &str) -> Result<(), RequestError> {
    let alias = LinkAttribute::IfAlias(alias.to_owned());
    set(netlink, LinkUnspec::new_with_index(index).append_extra_attribute(alias))
}

/// Sets the MTU and the burst of both ends of an endpoint's pair, the inner one first. So the outer
/// end's MTU shows that both have it.
pub(crate) fn set_endpoint_mtu(
    netlink: &mut Netlink,
    index: u32,
    peer: u32,
    netns: &mesh_model::endpoint::NetnsRef,
    mtu: u32,
    burst: Option<u32>,
) -> Result<(), KernelError> {
    let namespace = namespace::open(netns)?;
    let mut inner = namespace::netlink(netns, &namespace, || ())?;
    let action = || format!("set the MTU of the container's interface in {} to {mtu}", netns.path.display());
    let link = with_burst(LinkUnspec::new_with_index(peer).mtu(mtu), burst);
    set(&mut inner, link).map_err(|error| error.during(action()))?;
    set_mtu(netlink, index, outer_mtu(mtu))
        .map_err(|error| error.during(format!("set the MTU of {} to {mtu}", called(netlink, index))))
}

/// A pair of which `peer` is the other end.
fn veth(name: &IfName, peer: LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkVeth> {
    LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name.as_str())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
}

/// Limits the size of the super-packets that a device takes.
fn with_burst(link: LinkMessageBuilder<LinkUnspec>, burst: Option<u32>) -> LinkMessageBuilder<LinkUnspec> {
    burst.map(LinkAttribute::GsoMaxSize).into_iter().fold(link, LinkMessageBuilder::append_extra_attribute)
}

/// A device of ours that exists would have been observed, so the one in the way is somebody else's.
fn exists(error: RequestError, name: &IfName, action: String) -> KernelError {
    match error.errno() {
        Some(Errno::EEXIST) => KernelError::NameTaken { name: name.clone() },
        _ => error.during(action),
    }
}

/// Removes a device that was made in vain. When even that fails, the next pass finds the device and
/// removes it.
fn undo(netlink: &mut Netlink, index: u32) {
    let _unobserved_until_next_pass = delete(netlink, index);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_call_interfaces_by_their_names_also_when_they_are_gone() {
        let mut netlink = netlink::open().unwrap();
        assert_eq!(called(&mut netlink, 1), "interface lo");
        assert_eq!(called(&mut netlink, 999_999), "a removed interface (index 999999)");
        let vxlan = called(&mut netlink, naming::VXLAN_INDEX);
        assert!(vxlan.starts_with("interface meshvx0"), "{vxlan}");
    }
}
