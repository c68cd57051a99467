//! What the programs report to user space: counters and events.

use crate::Vni;

/// Key of `COUNTERS`, a per-CPU hash.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterKey {
    /// The network; [`Vni::NONE`] if unknown.
    pub vni: Vni,
    /// A [`Reason`], as its number.
    pub reason: u32,
}

/// Value of `COUNTERS`, one for each CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counter {
    /// Number of packets; a super-packet counts as the number of its segments.
    pub packets: u64,
    /// Bytes of the frames as seen by the program.
    pub bytes: u64,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $drop:literal;)*) => {
        /// The result for a packet: forwarded, answered, or dropped for a reason.
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Reason {
            /// All reasons, by number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the stable name, as used in `meshctl` output and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Returns whether the packet was dropped.
            pub const fn is_drop(self) -> bool {
                match self { $(Self::$variant => $drop,)* }
            }

            /// Returns the reason with this number, if there is one.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    /// From a local endpoint to a local endpoint.
    ForwardedLocal = 0, "forwarded_local", false;
    /// From a local endpoint to another node.
    ForwardedRemote = 1, "forwarded_remote", false;
    /// From another node to a local endpoint.
    Received = 2, "received", false;
    /// From a local endpoint to the host, or through it to the outside.
    ToHost = 3, "to_host", false;
    /// From the host to a local endpoint.
    FromHost = 4, "from_host", false;
    /// A neighbour request (ARP, ND) that the datapath answered.
    NeighbourAnswered = 5, "neighbour_answered", false;
    /// Too big for the tunnel: the sender was notified ("fragmentation needed", "packet too big").
    TooBigAnswered = 6, "too_big_answered", false;
    /// A liveness probe that the datapath answered.
    ProbeAnswered = 7, "probe_answered", false;
    /// To a published port: from outside, sent to its backend.
    Published = 8, "published", false;
    /// From a published port: a reply that left for its client.
    PublishedReply = 9, "published_reply", false;
    /// To a service without backends, or of a connection whose backend is gone: the sender was
    /// notified (TCP reset, port unreachable).
    RefusalAnswered = 10, "refusal_answered", false;
    /// Forwarded by the XDP program. Also counted as [`Reason::Published`] or
    /// [`Reason::PublishedReply`].
    SentEarly = 11, "sent_early", false;
    /// The frame's source MAC is not the endpoint's.
    SpoofedMac = 16, "spoofed_mac", true;
    /// The packet's source address is not the endpoint's.
    SpoofedIp = 17, "spoofed_ip", true;
    /// VXLAN from an address that belongs to no node.
    NotMember = 18, "not_member", true;
    /// The VNI or the interface is unknown on this node.
    UnknownNetwork = 19, "unknown_network", true;
    /// The next hop is in the subnet, but no endpoint has it (on this node).
    NoEndpoint = 20, "no_endpoint", true;
    /// The destination belongs to another network, or is a VXLAN port of any address, which would
    /// give access to every network.
    Isolated = 21, "isolated", true;
    /// The destination is outside the network, and the network is internal.
    Internal = 22, "internal", true;
    /// A packet of an encrypted network arrived in the clear.
    EncryptedInClear = 23, "encrypted_in_clear", true;
    /// Broadcast or multicast other than an answered neighbour request.
    Multicast = 24, "multicast", true;
    /// Truncated, or with lengths that contradict each other.
    Malformed = 25, "malformed", true;
    /// Too big for the tunnel, and the sender could not be notified.
    TooBig = 26, "too_big", true;
    /// Neither the program nor the VXLAN device could encapsulate it.
    EncapsulationFailed = 27, "encapsulation_failed", true;
    /// Decapsulation failed: the kernel refused to remove the headers.
    DecapsulationFailed = 28, "decapsulation_failed", true;
    /// Not IPv4, IPv6 or ARP; or a VLAN tag; or neighbour discovery other than a solicitation.
    UnsupportedProtocol = 29, "unsupported_protocol", true;
    /// The node lacks what this packet needs (no host leg, no underlay).
    NotConfigured = 30, "not_configured", true;
    /// To a node of an encrypted network that has no key, or there is no WireGuard device.
    NoKey = 31, "no_key", true;
    /// Received through WireGuard, with a source address that belongs to another node.
    SpoofedPeer = 32, "spoofed_peer", true;
    /// UDP to or from the VXLAN or WireGuard port of a node, not sent by Mesh: it would be mistaken
    /// for a tunnel packet.
    ForeignTunnel = 33, "foreign_tunnel", true;
    /// To a socket of a host, or to a cloud's metadata service, which the network's policy forbids.
    HostAccess = 34, "host_access", true;
    /// To or from a published port, and its hop limit does not allow another hop.
    HopLimit = 35, "hop_limit", true;
    /// To the outside, and the host does not know the next hop: the endpoint sent too many such.
    Unresolved = 36, "unresolved", true;
    /// The service has no backend that could take it, and the sender could not be told.
    NoBackend = 40, "no_backend", true;
    /// A later fragment whose first fragment was not seen, so its flow is unknown.
    FragmentWithoutFirst = 41, "fragment_without_first", true;
    /// A reply of a published port from an address that is not this host's.
    NotOurAddress = 42, "not_our_address", true;
    /// The kernel refused to translate or deliver the packet.
    TranslationFailed = 44, "translation_failed", true;
}

/// A record of `EVENTS`: a sampled drop. Written only while [`crate::EVENTS_WANTED`] is set.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event {
    /// Time of the drop, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The network; [`Vni::NONE`] if unknown.
    pub vni: Vni,
    /// A [`Reason`], as its number.
    pub reason: u32,
    /// Interface index of the device where the program is attached.
    pub ifindex: u32,
    /// Length of the frame, in bytes.
    pub length: u32,
    /// The first bytes of the frame, as seen by the program.
    pub header: [u8; 64],
}
