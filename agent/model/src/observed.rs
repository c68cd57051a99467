//! What one node's kernel looks like now: read from it, never remembered.
//!
//! Only what is ours is here, and the few facts about others that the plan depends on. So a plan
//! that is made from it cannot touch what is not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use mesh_ebpf_types::{MapEntry, MapKey, ProgramKind};
use mesh_ipam::Family;

use crate::{EndpointId, IfName, MacAddr, Prefix};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our devices by name: those whose name and kind are both ours.
    pub links: BTreeMap<IfName, Link>,
    /// Indexes of devices that are not ours, as far as they lie where ours are chosen from
    /// ([`crate::naming`]).
    pub foreign_indexes: BTreeSet<u32>,
    /// The host's interfaces that packets from outside this namespace come by, with their indexes.
    /// The data-path interface is one of them.
    pub host_interfaces: BTreeMap<u32, HostInterface>,
    /// The interface that has the node's data-path address; `None` when no interface has it.
    pub underlay: Option<UnderlayLink>,
    /// Addresses of `mesh0`, link-local ones of IPv6 left out: the kernel gives and takes those
    /// itself.
    pub host_addresses: BTreeSet<InterfaceAddress>,
    /// The host's own addresses, on any interface but ours: loopback and link-local ones left out.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Routes out of `mesh0`, those that the kernel makes with an address left out.
    pub host_routes: BTreeSet<HostRoute>,
    /// Subnets that routes of ours make unreachable.
    pub unreachable: BTreeSet<Prefix>,
    /// Endpoints whose namespace is still there: its path opens, and the inode is the one that was
    /// attached.
    pub namespaces: BTreeSet<EndpointId>,
    /// Programs, where they stand, and what is in their maps.
    pub programs: ObservedPrograms,
    /// Which of the kernel's switches are on.
    pub sysctls: BTreeSet<Sysctl>,
    /// The table `inet mesh`.
    pub firewall: FirewallState,
    /// Filters of other programs for what containers send.
    pub filters: ForeignFilters,
}

/// One of our devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// What it is.
    pub kind: LinkKind,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address.
    pub mac: Option<MacAddr>,
    /// Whether it is set up (`IFF_UP`); its carrier does not matter.
    pub up: bool,
    /// Whether it resolves neighbours (`IFF_NOARP` is not set).
    pub arp: bool,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN device.
    Vxlan {
        /// Its UDP port.
        port: u16,
        /// Takes the tunnel's parameters from each packet (`external`).
        external: bool,
    },
    /// One end of a veth pair.
    Veth {
        /// Interface index of the other end, in its own namespace.
        peer: u32,
        /// Whether the other end is in this namespace too.
        peer_is_here: bool,
    },
    /// The WireGuard device: the kernel's own, or one that an engine in user space serves.
    Wireguard,
}

/// The data-path interface. It is not ours: nothing about it is ever changed, but a program stands
/// on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayLink {
    /// Its name.
    pub name: IfName,
    /// Interface index.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address; `None` for a device that has none.
    pub mac: Option<MacAddr>,
}

/// An interface of the host: a network card, bridge, bond, VLAN, tunnel or the like. Not the
/// loopback device, none of ours, and no port of a bridge or bond.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInterface {
    /// Its name, which may change while the index stays.
    pub name: IfName,
    /// Whether its packets have Ethernet headers. Those of layer-3 devices (WireGuard, TUN, IPIP)
    /// begin with the IP header.
    pub ethernet: bool,
}

/// An address on a device, with the length of the prefix it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of the prefix: 0 to 32 or 128.
    pub prefix_len: u8,
}

/// A route of the host to a network's subnet, out of `mesh0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostRoute {
    /// Where to.
    pub subnet: Prefix,
    /// The source that the host itself uses: the network's gateway address, since endpoints may
    /// answer no other.
    pub source: Option<IpAddr>,
    /// The network's MTU; the device's own is that of the largest network.
    pub mtu: Option<u32>,
}

/// What is attached, and what the maps hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedPrograms {
    /// How much is pinned.
    pub pins: Pins,
    /// The attachments of this instance. Those of vanished devices are not among them.
    pub attachments: BTreeMap<Attachment, AttachedProgram>,
    /// Every entry of the maps that user space fills. A `CONFIG` of zeroes counts as absent.
    pub entries: BTreeMap<MapKey, MapEntry>,
}

/// How much is pinned in this instance's folder of the bpf file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pins {
    /// Nothing.
    #[default]
    Absent,
    /// Something, but this process has not loaded its programs yet: an earlier one's, or a load
    /// that was cut short.
    Earlier,
    /// This process's programs and maps.
    Current,
}

/// A program at the ingress of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// Interface index of the device.
    pub ifindex: u32,
    /// The program.
    pub kind: ProgramKind,
}

/// What runs at an [`Attachment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttachedProgram {
    /// The program that this process loaded.
    Current,
    /// A program that an earlier process loaded: it works on, until attaching again replaces it
    /// without a gap.
    Earlier,
}

/// A setting of the kernel that Mesh needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sysctl {
    /// `net.ipv4.ip_forward`.
    Ipv4Forwarding,
    /// `net.ipv6.conf.all.forwarding`.
    Ipv6Forwarding,
    /// `net.ipv4.neigh.default.gc_thresh*`: room for the neighbours of all containers. The machine
    /// has one table for all network namespaces.
    Ipv4Neighbours,
    /// As [`Sysctl::Ipv4Neighbours`], for IPv6.
    Ipv6Neighbours,
}

/// The rules of the table `inet mesh`, beside the fixed ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall {
    /// Subnets whose packets leave the host with the host's own address.
    pub masquerade: BTreeSet<Prefix>,
    /// Which ports they may have then.
    pub ports: MasqueradePorts,
}

/// The source ports of what leaves masqueraded. A packet whose own is among them keeps it, where no
/// other flow has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasqueradePorts {
    /// Of packets whose own port is below 1024: some servers (of NFS) take only such.
    pub low: RangeInclusive<u16>,
    /// Of all others.
    pub high: RangeInclusive<u16>,
}

impl Default for MasqueradePorts {
    fn default() -> Self {
        Self { low: 600..=1023, high: 32768..=60999 }
    }
}

/// Filters of other programs for what containers send through the host, or to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignFilters {
    /// Chains of iptables.
    pub iptables: BTreeMap<Iptables, IptablesState>,
    /// Other chains that drop what they do not accept, in tables without a rule for `mesh0`.
    pub closed: BTreeSet<ClosedChain>,
}

/// A hook of the kernel for filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FilterHook {
    /// For packets to the host itself.
    Input,
    /// For packets through the host.
    Forward,
}

/// A chain of nftables that drops what it does not accept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClosedChain {
    /// Its hook.
    pub hook: FilterHook,
    /// Family, table, and chain.
    pub chain: String,
}

/// One chain of iptables' table `filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iptables {
    /// Of IPv4 or IPv6.
    pub family: Family,
    /// The chain is the one of this hook.
    pub hook: FilterHook,
    /// Kept by the old interface of the kernel, not by nftables.
    pub legacy: bool,
}

/// What a chain of iptables does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IptablesState {
    /// It drops what no rule accepts.
    pub closed: bool,
    /// Our rules in it.
    pub rules: OwnRules,
}

/// How many of our rules there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnRules {
    /// None.
    None,
    /// Some are missing, or there are too many, or they come too late.
    Some,
    /// Exactly those that should be there.
    All,
}

/// What there is of the table `inet mesh`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FirewallState {
    /// No such table.
    #[default]
    Absent,
    /// Exactly what these rules mean.
    Intact(Firewall),
    /// Something else: rules were added, changed or flushed.
    Altered,
}
