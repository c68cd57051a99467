//! The steps from what is to what should be; they leave nothing to choose.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_ebpf_types::{MapEntry, MapKey};

use crate::endpoint::NetnsRef;
use crate::observed::{Attachment, Firewall, HostRoute, InterfaceAddress, Iptables, Sysctl};
use crate::{EndpointId, IfName, MacAddr, Mtu, Prefix};

/// One step. Each is one attempt that is done in full or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Load the programs and make the maps, or adopt the maps that are pinned.
    LoadPrograms,
    /// Detach all programs and remove every pin of this instance, and with them programs and maps.
    UnloadPrograms,
    /// Write a map's entry, new or not.
    PutEntry(MapEntry),
    /// Remove a map's entry.
    DeleteEntry(MapKey),
    /// Put a program at a device, in the place of another version of it if there is one.
    Attach(Attachment),
    /// Take a program from a device.
    Detach(Attachment),
    /// Make the VXLAN device, set up.
    CreateVxlan(VxlanDevice),
    /// Make the host leg, both ends set up.
    CreateHostLeg(HostLeg),
    /// Make an endpoint's pair of devices, the inner end ready in its namespace, the outer end not
    /// yet set up.
    CreateEndpoint(EndpointDevice),
    /// Set a device of ours up.
    SetUp {
        /// Its index.
        index: u32,
    },
    /// Stop a device of ours from resolving neighbours.
    SetNoArp {
        /// Its index.
        index: u32,
    },
    /// Give a device of ours another MTU.
    SetMtu {
        /// Its index.
        index: u32,
        /// MTU in bytes.
        mtu: u32,
    },
    /// Give both ends of an endpoint's pair another MTU, the inner one first.
    SetEndpointMtu {
        /// Index of the outer end.
        index: u32,
        /// Index of the inner end in its namespace.
        peer: u32,
        /// Where the inner end is.
        netns: NetnsRef,
        /// MTU of the inner end in bytes; the outer end gets [`outer_mtu`] of it.
        mtu: u32,
        /// As [`EndpointDevice::burst`].
        burst: Option<u32>,
    },
    /// Remove a device of ours, and the other end of its pair with it.
    DeleteLink {
        /// Its name.
        name: IfName,
        /// Its index.
        index: u32,
    },
    /// Give a device of ours an address.
    AddAddress {
        /// The device's index.
        index: u32,
        /// The address.
        address: InterfaceAddress,
    },
    /// Take an address from a device of ours.
    RemoveAddress {
        /// The device's index.
        index: u32,
        /// The address.
        address: InterfaceAddress,
    },
    /// Route a subnet out of a device of ours, in the place of the route to that subnet that there
    /// is.
    PutRoute {
        /// The device's index.
        index: u32,
        /// The route.
        route: HostRoute,
    },
    /// Remove the route to a subnet out of a device of ours.
    RemoveRoute {
        /// The device's index.
        index: u32,
        /// The route.
        route: HostRoute,
    },
    /// Make a subnet unreachable where no other route leads to it, a default route left out of
    /// account.
    PutUnreachable {
        /// The subnet.
        subnet: Prefix,
    },
    /// Remove a route to a subnet.
    RemoveUnreachable {
        /// The subnet.
        subnet: Prefix,
    },
    /// Turn a switch of the kernel on.
    SetSysctl(Sysctl),
    /// Make the table `inet mesh`, in the place of what there is, in one transaction.
    SetFirewall(Firewall),
    /// Remove the table `inet mesh`.
    RemoveFirewall,
    /// Insert rules into a chain of iptables that accept what containers send.
    OpenFilter(Iptables),
    /// Remove these rules.
    CloseFilter(Iptables),
}

impl Action {
    /// Whether it only removes something, so that nothing that is wanted depends on it.
    pub const fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::UnloadPrograms
                | Self::DeleteEntry(_)
                | Self::Detach(_)
                | Self::DeleteLink { .. }
                | Self::RemoveAddress { .. }
                | Self::RemoveRoute { .. }
                | Self::RemoveUnreachable { .. }
                | Self::RemoveFirewall
                | Self::CloseFilter(_)
        )
    }
}

/// The VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanDevice {
    /// Its name.
    pub name: IfName,
    /// Its index.
    pub index: u32,
    /// UDP port.
    pub port: u16,
    /// MTU in bytes.
    pub mtu: u32,
}

/// The host's own leg: a pair of devices, both on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLeg {
    /// Name of the end that has addresses and routes.
    pub name: IfName,
    /// Its index.
    pub index: u32,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Name of the end where the program stands.
    pub peer_name: IfName,
    /// Its index.
    pub peer_index: u32,
    /// MTU of both, in bytes.
    pub mtu: u32,
}

/// An endpoint's pair of devices and all that is configured inside its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointDevice {
    /// Name of the host's end.
    pub name: IfName,
    /// Index of the host's end.
    pub index: u32,
    /// The container's namespace.
    pub netns: NetnsRef,
    /// Name of the container's end.
    pub ifname: IfName,
    /// Ethernet address of the container's end.
    pub mac: MacAddr,
    /// MTU of the container's end, in bytes; the host's end has [`outer_mtu`] of it.
    pub mtu: u32,
    /// Most bytes that the container's TCP hands over at once, to be cut into segments later
    /// (`IFLA_GSO_MAX_SIZE`); `None`: as many as the kernel likes.
    pub burst: Option<u32>,
    /// Addresses of the container's end, with the lengths of their subnets.
    pub addresses: Vec<InterfaceAddress>,
    /// Further subnets of the network: reached directly, as the endpoint's own subnet is.
    pub on_link: Vec<Prefix>,
    /// Next hops of the default routes, at most one for each family. They come after those that the
    /// container already has, and take their place when those go.
    pub gateways: Vec<IpAddr>,
    /// The network is internal: the default routes are for replies of published ports, and come
    /// after those of all other networks.
    pub internal: bool,
}

/// What is configured on the container's end of an endpoint's pair, and may be lost there: as in
/// [`EndpointDevice`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InnerEnd {
    /// The container's namespace.
    pub netns: NetnsRef,
    /// Name of the device when it was made.
    pub ifname: IfName,
    /// Its addresses, with the lengths of their subnets.
    pub addresses: Vec<InterfaceAddress>,
    /// Further subnets of the network.
    pub on_link: Vec<Prefix>,
    /// Next hops of the default routes.
    pub gateways: Vec<IpAddr>,
    /// The network is internal.
    pub internal: bool,
}

/// The MTU of the host's end of an endpoint's pair whose inner end has `mtu`, in bytes.
///
/// The kernel drops what is bigger than the receiving end's MTU before any program sees it. A
/// container may raise its own; for its senders to be told how big packets may be, the host's end
/// takes them. It still tells the two ends' MTU apart from any other: it is the only one that can
/// be seen without entering the namespace.
pub const fn outer_mtu(mtu: u32) -> u32 {
    const HEADROOM: u32 = 40_000;
    if mtu <= Mtu::MAX - HEADROOM { mtu + HEADROOM } else { mtu }
}

/// A step and whom it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// The endpoint that it is done for; `None` for what the node needs. When a step fails, the
    /// later steps of the same endpoint are not taken; all others are.
    pub endpoint: Option<EndpointId>,
}

/// Something that no step can mend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum PlanProblem {
    /// No interface has the data-path address, so this node reaches no other.
    #[error("no interface has the data-path address {address}: this node reaches no other node")]
    NoUnderlay {
        /// The address.
        address: IpAddr,
    },
    /// A chain of another program drops what containers send outside.
    #[error(
        "the nftables chain `{chain}` drops what containers send outside; accept it: nft insert rule {chain} iifname \
         mesh0 accept; nft insert rule {chain} oifname mesh0 ct state established,related accept"
    )]
    ForwardClosed {
        /// Family, table, and chain.
        chain: String,
    },
    /// A chain of another program drops what containers ask the name server.
    #[error(
        "the nftables chain `{chain}` drops the DNS queries of containers; accept them: nft insert rule {chain} iifname \
         mesh0 meta l4proto {{ tcp, udp }} th dport 53 accept"
    )]
    InputClosed {
        /// Family, table, and chain.
        chain: String,
    },
    /// The data-path interface's MTU is below [`Mtu::MIN_DATA_PATH`].
    #[error(
        "the MTU of the data-path interface {name} is {mtu} bytes, Mesh needs {} or more: larger packets between \
         hosts are lost; set it with: ip link set {name} mtu 1500",
        Mtu::MIN_DATA_PATH
    )]
    SmallUnderlay {
        /// The interface.
        name: IfName,
        /// Its MTU in bytes.
        mtu: u32,
    },
}

/// The steps, in the order to take them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// Endpoints whose namespace and device are both gone: nothing is made for them.
    pub lost: BTreeSet<EndpointId>,
    /// What no step can mend.
    pub problems: BTreeSet<PlanProblem>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}
