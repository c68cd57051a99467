//! What one node's kernel looks like now: read from it, never remembered.
//!
//! Only what is ours is here, and the few facts about others that the plan depends on. So a plan that is made from it
//! cannot touch what is not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_ebpf_types::{MapEntry, MapKey, ProgramKind};

use crate::{EndpointId, IfName, MacAddr, Prefix};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our devices by name: those whose name and kind are both ours.
    pub links: BTreeMap<IfName, Link>,
    /// Indexes of devices that are not ours, as far as they lie where ours are chosen from ([`crate::naming`]).
    pub foreign_indexes: BTreeSet<u32>,
    /// The interface that has the node's data-path address; `None` when no interface has it.
    pub underlay: Option<UnderlayLink>,
    /// Addresses of `mesh0`, link-local ones of IPv6 left out: the kernel gives and takes those itself.
    pub host_addresses: BTreeSet<InterfaceAddress>,
    /// Routes out of `mesh0`, those that the kernel makes with an address left out.
    pub host_routes: BTreeSet<HostRoute>,
    /// Endpoints whose namespace is still there: its path opens, and the inode is the one that was attached.
    pub namespaces: BTreeSet<EndpointId>,
    /// The eBPF part.
    pub datapath: Datapath,
    /// Which of the kernel's switches are on.
    pub sysctls: BTreeSet<Sysctl>,
    /// The table `inet mesh`.
    pub firewall: FirewallState,
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
}

/// The data-path interface. It is not ours: nothing about it is ever changed, but a program stands on it.
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
    /// The source that the host itself uses: the network's gateway address, since endpoints may answer no other.
    pub source: Option<IpAddr>,
    /// The network's MTU; the device's own is that of the largest network.
    pub mtu: Option<u32>,
}

/// Programs and maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Datapath {
    /// How much of it is pinned.
    pub pins: Pins,
    /// Where programs stand.
    pub attachments: BTreeMap<Attachment, AttachmentState>,
    /// Entries of all maps that user space fills. A `CONFIG` of zeroes is left out.
    pub entries: BTreeMap<MapKey, MapEntry>,
}

/// How much of the datapath is pinned in this instance's part of the bpf file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pins {
    /// Nothing.
    #[default]
    Absent,
    /// Something, but not all of this agent's programs and maps: another version's, or a load that was cut short.
    Partial,
    /// This agent's programs and maps.
    Complete,
}

/// A program at a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// The program.
    pub program: ProgramKind,
    /// Interface index of the device, at whose ingress it stands.
    pub ifindex: u32,
}

/// How a program stands at a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachmentState {
    /// It runs, and it is this agent's.
    Current,
    /// It runs, but it is another version's: attaching again replaces it at once.
    Outdated,
    /// Only a pin is left: the device is gone, or somebody detached the program.
    Dead,
}

/// A switch of the kernel that must be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sysctl {
    /// `net.ipv4.ip_forward`.
    Ipv4Forwarding,
    /// `net.ipv6.conf.all.forwarding`.
    Ipv6Forwarding,
}

/// The rules of the table `inet mesh`, beside the fixed ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall {
    /// Subnets whose packets leave the host with the host's own address.
    pub masquerade: BTreeSet<Prefix>,
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
