//! Map keys and values that the eBPF programs share with user space.
//!
//! All shared types are `#[repr(C)]`, have no implicit padding, and hold addresses, ports and VNIs
//! as byte arrays in network order. Interface indexes, lengths and times are native integers, as in
//! the kernel. [`SCHEMA`] changes with every change of a layout, of a map or of a field's meaning:
//! the loader adopts pinned maps only of its own schema.

#![no_std]

mod address;
mod config;
mod counters;
mod derived;
mod entry;
mod explain;
mod maps;
mod paths;
#[cfg(feature = "aya")]
mod pod;
mod program;
mod services;
mod tag;
mod vxlan;
mod wireguard;

pub use address::{Address, Mac, Vni};
pub use config::{
    Config, DIRECT_RETURN, EVENTS_WANTED, Encapsulation, FROM_EVEN_KEY, FROM_ODD_KEY, UNPUBLISHED,
};
pub use counters::{Counter, CounterKey, Event, Reason};
pub use derived::{NextHop, derived_mac, next_hop};
pub use entry::{MapEntry, MapKey};
pub use explain::Explanation;
pub use maps::{
    ALLOW_FORWARDING, BY_ENDPOINT, BY_HOST, Block, BlockKey, BlockKind, CONTROL_ADDRESS, ENCRYPTED, Endpoint,
    EndpointKey, HOST_ADDRESS, HOST_ALL, HOST_DNS, HostCall, HostFlow, HostRouteKey, INTERNAL, Interface,
    METADATA, Member, Network,
};
pub use paths::{PROBE_REQUEST, PROBE_UNANSWERED, PROBED_BY_WIREGUARD, PathKey};
pub use program::{EARLY, ProgramKind, SocketProgram};
pub use services::{
    AFFINITY_CLIENT_IP, ANSWERED, Allowance, BACKEND_ENCRYPTED, BACKEND_FINISHED, BACKEND_TABLES_ROW, BEGINS,
    Backend, CLIENT_FINISHED, CLOSED, CONTESTED, Connection, ConnectionKey, ConnectionKind, DRAINING,
    FAILING, HAIRPIN_IPV4, HAIRPIN_IPV6, HOST_MODE, HOST_PUBLISHED_IPV4, HOST_PUBLISHED_IPV6, LOCAL,
    LOOPBACK_PUBLISHED_IPV4, LOOPBACK_PUBLISHED_IPV6, MAX_BACKEND, PUBLISHED_BIT, Published, PublishedKey,
    REPLY_BIT, RETURNS, RETURNS_MAC, STAND_INS, Service, ServiceKey, SocketPeer, TableEntry, TableKey,
    USED_SHIFT, WATCHED, host_published, host_published_number, is_host_published, published_vni,
};
pub use tag::FrameTag;
pub use vxlan::source_port;
pub use wireguard::{
    WIREGUARD_KERNEL_IFINDEX, WIREGUARD_USERSPACE_IFINDEX, tunnel_address, tunnel_sender, tunnel_source,
};

/// Version of all layouts and meanings in this crate. Pinned maps of another version are never
/// adopted.
pub const SCHEMA: u32 = 8;

/// Bytes that VXLAN over IPv4 adds to an inner IP packet: its Ethernet header 14, VXLAN 8, UDP 8,
/// IPv4 20 (RFC 7348). The outer Ethernet header is not among them: a device's MTU does not count
/// it.
pub const VXLAN_OVERHEAD_IPV4: u16 = 50;

/// Bytes that VXLAN over IPv6 adds to an inner IP packet (see [`VXLAN_OVERHEAD_IPV4`]; IPv6 has 40
/// for 20).
pub const VXLAN_OVERHEAD_IPV6: u16 = 70;

/// Bytes that WireGuard over IPv4 adds to an IP packet inside the tunnel: header and tag 32, UDP 8,
/// IPv4 20.
pub const WIREGUARD_OVERHEAD_IPV4: u16 = 60;

/// Bytes that WireGuard over IPv6 adds to an IP packet inside the tunnel (see
/// [`WIREGUARD_OVERHEAD_IPV4`]).
pub const WIREGUARD_OVERHEAD_IPV6: u16 = 80;

/// The mark (`skb->mark`) of packets that Mesh itself sends between nodes. The `egress` program
/// recognises Mesh's packets by it.
///
/// Marks do not cross network namespaces. Setting one requires `CAP_NET_ADMIN` or `CAP_NET_RAW` in
/// the host's namespace. A process with these can bypass all programs anyway
/// (`PACKET_QDISC_BYPASS`), so a secret value would add no protection. The bits are not used by
/// kube-proxy, Calico, Cilium, Tailscale or Docker.
pub const MARK: u32 = 0x3050;

/// Interface index of `mesh0`, through which the host receives packets from endpoints.
pub const HOST_LEG_IFINDEX: u32 = 0x3FFF_FF00;

/// The group of the name server's process, which lacks the capability to set a mark. Its queries to
/// the host's resolvers must not be balanced to a service. The number is outside the ranges that
/// systemd and distributions allocate (systemd's `UIDS-GIDS.md`).
pub const NAME_SERVER_GROUP: u32 = 0x706d_6573;

/// VNI of a liveness probe. The receiving node's underlay program answers it, for members only.
pub const PROBE_REQUEST_VNI: Vni = Vni::new(0x00FF_FFFE);

/// VNI of the answer to a liveness probe. The prober's underlay program records it in `PROBES`.
pub const PROBE_REPLY_VNI: Vni = Vni::new(0x00FF_FFFF);
