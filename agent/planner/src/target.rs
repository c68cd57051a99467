//! The target state of the kernel, in the kernel's own terms.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use mesh_ebpf_types::{
    FROM_EVEN_KEY, FROM_ODD_KEY, HOST_PUBLISHED_IPV4, HOST_PUBLISHED_IPV6, MapEntry, MapKey, ProgramKind,
    UNPUBLISHED,
};
use mesh_ipam::Family;
use mesh_model::observed::{
    Attachment, ClosedChain, FilterHook, Firewall, HostRoute, InterfaceAddress, Sysctl,
};
use mesh_model::plan::{EndpointDevice, HostLeg, InnerEnd, PlanProblem, VxlanDevice};
use mesh_model::{
    Desired, Endpoint, EndpointId, IfName, MacAddr, Mtu, Network, NetworkId, Observed, Prefix, naming,
};

use crate::mtu::Largest;
use crate::{entries, masquerade, stand_ins};

/// The MTU of the VXLAN device, in bytes. Senders are notified of packets that exceed the underlay
/// before this device. Packets on this device may be fragmented below it, so any length that IP can
/// express fits.
const VXLAN_MTU: u32 = Mtu::MAX - 70;

/// The MTU of the host leg, in bytes. Routes limit the host's own packets to the networks' MTU.
/// Larger packets from a container that raised its MTU are accepted here, and forwarded or answered
/// by the host's routing.
const HOST_LEG_MTU: u32 = Mtu::MAX;

/// Maximum number of subnets, of networks without local endpoints, that the programs know. Their
/// map `HOST_ROUTES` has twice the size, so that networks with endpoints have room. Packets to
/// other subnets are dropped by unreachable routes.
const FOREIGN_SUBNETS: usize = 4096;

/// The target state of an endpoint.
pub(crate) struct TargetEndpoint {
    /// Its device, if it must be created; index and MTU also apply to an existing one.
    pub device: EndpointDevice,
    /// The entry that identifies the sender at the device.
    pub interface: MapEntry,
    /// The entries that lead to the endpoint.
    pub addresses: Vec<MapEntry>,
}

/// The target state of the kernel.
pub(crate) struct Target {
    pub vxlan: VxlanDevice,
    pub host_leg: HostLeg,
    pub endpoints: BTreeMap<EndpointId, TargetEndpoint>,
    /// Entries that belong to no single endpoint, in the order of their maps: `CONFIG`, networks,
    /// blocks, routes, members.
    pub entries: BTreeMap<MapKey, MapEntry>,
    /// Programs at devices that belong to no single endpoint.
    pub attachments: BTreeSet<Attachment>,
    pub host_addresses: BTreeSet<InterfaceAddress>,
    pub host_routes: BTreeSet<HostRoute>,
    /// The subnets of all networks that this node knows. If one has no local endpoint, or its route
    /// was removed, packets to it must not take the host's default route.
    pub unreachable: BTreeSet<Prefix>,
    pub sysctls: BTreeSet<Sysctl>,
    pub firewall: Firewall,
    pub lost: BTreeSet<EndpointId>,
    pub problems: BTreeSet<PlanProblem>,
}

impl Target {
    /// Derives the target from the desired state, and from observed facts: the underlay interface,
    /// the live namespaces, the used indexes.
    pub(crate) fn derive(desired: &Desired, observed: &Observed) -> Self {
        let mtus = Largest::of(desired, observed);
        let (present, lost) = sort_endpoints(desired, observed);
        let local: BTreeMap<&NetworkId, &Network> =
            present.iter().map(|(_, network)| (&network.id, *network)).collect();

        let host_mac =
            observed.links.get(&name(naming::HOST_LEG)).and_then(|link| link.mac).unwrap_or_else(host_mac);
        let mut target = Self {
            vxlan: VxlanDevice {
                name: name(naming::VXLAN),
                index: naming::VXLAN_INDEX,
                port: desired.underlay.port,
                mtu: VXLAN_MTU,
            },
            host_leg: HostLeg {
                name: name(naming::HOST_LEG),
                index: naming::HOST_LEG_INDEX,
                mac: host_mac,
                peer_name: name(naming::HOST_LEG_PEER),
                peer_index: naming::HOST_LEG_PEER_INDEX,
                mtu: HOST_LEG_MTU,
            },
            endpoints: endpoints(&present, observed, mtus),
            entries: BTreeMap::new(),
            attachments: BTreeSet::new(),
            host_addresses: BTreeSet::new(),
            host_routes: BTreeSet::new(),
            unreachable: desired
                .networks
                .values()
                .flat_map(|network| network.subnets.iter().map(|subnet| subnet.subnet))
                .collect(),
            sysctls: BTreeSet::from([Sysctl::Ipv4Forwarding, Sysctl::Ipv4Neighbours]),
            firewall: firewall(desired, observed),
            lost,
            problems: BTreeSet::new(),
        };
        target.attach(ProgramKind::Host, naming::HOST_LEG_PEER_INDEX);
        target.attach(ProgramKind::Overlay, naming::VXLAN_INDEX);
        target.underlay(desired, observed, host_mac);
        target.publish(desired, observed);
        target.put(entries::members(desired));
        let foreign = desired.networks.values().filter(|network| !local.contains_key(&network.id));
        target.put(foreign.flat_map(entries::subnets).take(FOREIGN_SUBNETS));
        target.put(stand_ins::entries(&observed.own_addresses, &observed.programs.entries));
        for network in local.into_values() {
            target.network(desired, network, mtus.network(network));
        }
        let closed: Vec<_> = observed.filters.closed.iter().filter_map(|c| target.closed(c)).collect();
        target.problems.extend(closed);
        target
    }

    /// Returns whether packets from containers pass a netfilter hook.
    pub(crate) fn passes(&self, hook: FilterHook) -> bool {
        match hook {
            FilterHook::Input => !self.host_addresses.is_empty(),
            FilterHook::Forward => !self.firewall.masquerade.is_empty(),
        }
    }

    /// Returns the problem that a chain of another program causes, if any.
    fn closed(&self, closed: &ClosedChain) -> Option<PlanProblem> {
        let chain = closed.chain.clone();
        self.passes(closed.hook).then_some(match closed.hook {
            FilterHook::Input => PlanProblem::InputClosed { chain },
            FilterHook::Forward => PlanProblem::ForwardClosed { chain },
        })
    }

    fn put(&mut self, entries: impl IntoIterator<Item = MapEntry>) {
        self.entries.extend(entries.into_iter().map(|entry| (entry.key(), entry)));
    }

    fn attach(&mut self, kind: ProgramKind, ifindex: u32) {
        self.attachments.insert(Attachment { ifindex, kind });
    }

    /// Adds the underlay's program and the underlay's fields of `CONFIG`. While no interface has
    /// the data-path address, both keep their state, so that they work again as soon as the address
    /// returns.
    fn underlay(&mut self, desired: &Desired, observed: &Observed, host_mac: MacAddr) {
        let mut config = entries::config(desired, host_mac);
        if let Some(link) = &observed.underlay {
            config.underlay_ifindex = link.index;
            config.underlay_mtu = link.mtu;
            if !desired.publish_interfaces.include(&link.name) {
                config.flags |= UNPUBLISHED;
            }
            if link.mtu < Mtu::MIN_DATA_PATH {
                self.problems.insert(PlanProblem::SmallUnderlay { name: link.name.clone(), mtu: link.mtu });
            }
            self.attach(ProgramKind::Underlay, link.index);
            self.attach(ProgramKind::Egress, link.index);
            if desired.underlay.address.is_ipv4() {
                let source = Some(desired.underlay.address);
                self.route_to_published(HOST_PUBLISHED_IPV4.into(), source);
                // Only on hosts that have an IPv6 address.
                let source = global_ipv6(&observed.own_addresses).map(IpAddr::from);
                if source.is_some() {
                    self.route_to_published(HOST_PUBLISHED_IPV6.to_ip(), source);
                }
            }
        } else {
            self.problems.insert(PlanProblem::NoUnderlay { address: desired.underlay.address });
            if let Some(MapEntry::Config(old)) = observed.programs.entries.get(&MapKey::Config) {
                config.underlay_ifindex = old.underlay_ifindex;
                config.underlay_mtu = old.underlay_mtu;
            }
            let routes = observed.host_routes.iter();
            let kept = [HOST_PUBLISHED_IPV4.into(), HOST_PUBLISHED_IPV6.to_ip()].map(to_published);
            self.host_routes.extend(routes.filter(|route| kept.contains(&route.subnet)));
            let attached = observed.programs.attachments.keys();
            let of_underlay = |kind| matches!(kind, ProgramKind::Underlay | ProgramKind::Egress);
            self.attachments.extend(attached.filter(|attachment| of_underlay(attachment.kind)));
        }
        // The engine creates its device itself and outlives this process: use the device while it
        // exists.
        if let Some(link) = observed.links.get(&name(naming::WIREGUARD))
            && matches!(link.index, naming::WIREGUARD_USERSPACE_INDEX | naming::WIREGUARD_KERNEL_INDEX)
        {
            self.attach(ProgramKind::Wireguard, link.index);
            config.wireguard_ifindex = link.index;
            config.wireguard_peer = desired.wireguard_number;
            config.flags |= from_keys(desired, observed);
        }
        self.put([MapEntry::Config(config)]);
    }

    /// Published ports are answered on the host's other interfaces too; the underlay's own program
    /// handles the data-path interface. Every interface is checked for outgoing packets, and for
    /// packets with a forged node address.
    fn publish(&mut self, desired: &Desired, observed: &Observed) {
        let attached = self.attachments.iter();
        let underlay: BTreeSet<u32> = attached
            .filter(|attachment| attachment.kind == ProgramKind::Underlay)
            .map(|attachment| attachment.ifindex)
            .collect();
        for (index, interface) in &observed.host_interfaces {
            self.attach(
                if interface.ethernet { ProgramKind::Egress } else { ProgramKind::EgressLayer3 },
                *index,
            );
            if underlay.contains(index) {
                continue;
            }
            let publishes = desired.publish_interfaces.include(&interface.name);
            let kind = match (interface.ethernet, publishes) {
                (true, true) => ProgramKind::Published,
                (false, true) => ProgramKind::PublishedLayer3,
                (true, false) => ProgramKind::Guard,
                (false, false) => ProgramKind::GuardLayer3,
            };
            self.attach(kind, *index);
        }
    }

    /// Routes the host's own packets to published ports to the `host` program.
    fn route_to_published(&mut self, address: IpAddr, source: Option<IpAddr>) {
        self.host_routes.insert(HostRoute { subnet: to_published(address), source, mtu: None });
    }

    /// Adds a network that has local endpoints.
    fn network(&mut self, desired: &Desired, network: &Network, mtu: u32) {
        self.put(entries::network(desired, network, mtu));
        for subnet in &network.subnets {
            let prefix_len = subnet.subnet.family().width();
            self.host_addresses.insert(InterfaceAddress { address: subnet.gateway, prefix_len });
            self.host_routes.insert(HostRoute {
                subnet: subnet.subnet,
                source: Some(subnet.gateway),
                mtu: Some(mtu),
            });
            if subnet.subnet.family() == Family::Ipv6 {
                self.sysctls.extend([Sysctl::Ipv6Forwarding, Sysctl::Ipv6Neighbours]);
            }
        }
    }
}

/// Returns the source addresses, by own key, for packets. While the keys are unknown, the engine's
/// device continues with its current keys.
fn from_keys(desired: &Desired, observed: &Observed) -> u8 {
    let of = |generation| if generation % 2 == 0 { FROM_EVEN_KEY } else { FROM_ODD_KEY };
    let flags = desired.wireguard_generations.iter().fold(0, |flags, generation| flags | of(generation));
    match observed.programs.entries.get(&MapKey::Config) {
        Some(MapEntry::Config(old)) if flags == 0 => old.flags & (FROM_EVEN_KEY | FROM_ODD_KEY),
        _ => flags,
    }
}

/// Returns the prefix of the addresses that the host itself uses for published ports: those that
/// differ from this one in the last byte.
fn to_published(address: IpAddr) -> Prefix {
    let single = Prefix::single(address);
    // Fails only for a length beyond the address.
    Prefix::new(address, single.len() - 8).unwrap_or(single)
}

/// Returns the first address that others can answer.
fn global_ipv6(addresses: &BTreeSet<IpAddr>) -> Option<Ipv6Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V6(v6) if !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_multicast() => Some(*v6),
        _ => None,
    })
}

/// Returns the endpoints that can be served, oldest first, each with its network, and those whose
/// container is gone. An endpoint whose namespace cannot be found, but whose device exists, is
/// alive: only the path to its namespace is gone.
fn sort_endpoints<'a>(
    desired: &'a Desired,
    observed: &Observed,
) -> (Vec<(&'a Endpoint, &'a Network)>, BTreeSet<EndpointId>) {
    let mut present = Vec::new();
    let mut lost = BTreeSet::new();
    for endpoint in desired.endpoints.values() {
        let alive = observed.namespaces.contains(&endpoint.id)
            || observed.links.contains_key(&endpoint.host_ifname());
        if !alive {
            lost.insert(endpoint.id.clone());
        } else if let Some(network) = desired.networks.get(&endpoint.network) {
            present.push((endpoint, network));
        }
    }
    present.sort_by(|(a, _), (b, _)| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    (present, lost)
}

/// Adds the endpoints' devices and entries.
fn endpoints(
    present: &[(&Endpoint, &Network)],
    observed: &Observed,
    mtus: Largest,
) -> BTreeMap<EndpointId, TargetEndpoint> {
    let mut taken: BTreeSet<u32> = observed.links.values().map(|link| link.index).collect();
    taken.extend(&observed.foreign_indexes);
    let mut target = BTreeMap::new();
    for (endpoint, network) in present {
        let host_name = endpoint.host_ifname();
        let index =
            observed.links.get(&host_name).map_or_else(|| free_index(&host_name, &taken), |link| link.index);
        taken.insert(index);
        let InnerEnd { netns, ifname, addresses, on_link, gateways, internal } = inner_end(endpoint, network);
        let device = EndpointDevice {
            name: host_name,
            index,
            netns,
            ifname,
            mac: endpoint.mac,
            mtu: mtus.network(network),
            burst: mtus.burst(network),
            addresses,
            on_link,
            gateways,
            internal,
        };
        let interface = entries::interface(endpoint, network, index);
        let addresses = entries::addresses(endpoint, network, index);
        target.insert(endpoint.id.clone(), TargetEndpoint { device, interface, addresses });
    }
    target
}

/// Returns the configuration inside an endpoint's namespace.
pub(crate) fn inner_end(endpoint: &Endpoint, network: &Network) -> InnerEnd {
    let mut inner = InnerEnd {
        netns: endpoint.netns.clone(),
        ifname: endpoint.ifname.clone(),
        addresses: Vec::new(),
        on_link: Vec::new(),
        gateways: Vec::new(),
        internal: network.internal,
    };
    for address in endpoint.addresses() {
        let own = network.subnets.iter().find(|subnet| subnet.subnet.contains(address));
        let prefix = own.map_or_else(|| Prefix::single(address), |subnet| subnet.subnet);
        inner.addresses.push(InterfaceAddress { address, prefix_len: prefix.len() });
        let others = network.subnets.iter().map(|subnet| subnet.subnet);
        inner.on_link.extend(others.filter(|other| other.family() == prefix.family() && *other != prefix));
        inner.gateways.extend(own.map(|subnet| subnet.gateway));
    }
    inner
}

/// Returns the first free index from the preferred one on; wraps around at the end of the
/// endpoints' range.
fn free_index(name: &IfName, taken: &BTreeSet<u32>) -> u32 {
    let preferred = naming::preferred_index(name);
    let mut candidates = (preferred..=naming::LAST_INDEX).chain(naming::FIRST_ENDPOINT_INDEX..preferred);
    candidates.find(|index| !taken.contains(index)).unwrap_or(preferred)
}

/// Returns the networks whose outgoing packets are masqueraded: those in which this node has
/// leases, with or without local endpoints. Setting rules is slow, so it happens before the first
/// attachment and not during each one.
fn firewall(desired: &Desired, observed: &Observed) -> Firewall {
    let own: BTreeSet<&NetworkId> = desired
        .leases
        .iter()
        .filter(|lease| lease.node == desired.node)
        .map(|lease| &lease.network)
        .collect();
    let outward = desired.networks.values().filter(|network| !network.internal && own.contains(&network.id));
    Firewall {
        masquerade: outward.flat_map(|network| network.subnets.iter().map(|subnet| subnet.subnet)).collect(),
        ports: masquerade::ports(desired, observed),
    }
}

/// `mesh0`'s address: locally administered, the same on every host, since no frame with it leaves a
/// host.
fn host_mac() -> MacAddr {
    MacAddr::new([0x02, b'M', b'e', b's', b'h', 0]).expect("it is unicast and not zero")
}

pub(crate) fn name(name: &str) -> IfName {
    name.parse().expect("the names of our devices are valid")
}
