//! What the programs tell user space: counters and events.

use crate::Vni;

/// Key of `COUNTERS`, a per-CPU hash.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterKey {
    /// The network; [`Vni::NONE`] where it is not known.
    pub vni: Vni,
    /// A [`Reason`], as its number.
    pub reason: u32,
}

/// Value of `COUNTERS`, one for each CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counter {
    /// Packets; a super-packet counts as its segments.
    pub packets: u64,
    /// Bytes of the frames as the program saw them.
    pub bytes: u64,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $drop:literal;)*) => {
        /// What became of a packet: forwarded in one of five ways, or dropped for a reason.
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Reason {
            /// All reasons, by number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stable name, as in `meshctl` output and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether the packet was dropped.
            pub const fn is_drop(self) -> bool {
                match self { $(Self::$variant => $drop,)* }
            }

            /// The reason of that number, if there is one.
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
    /// Too big for the tunnel: the sender was told ("fragmentation needed", "packet too big").
    TooBigAnswered = 6, "too_big_answered", false;
    /// A liveness probe that the datapath answered.
    ProbeAnswered = 7, "probe_answered", false;
    /// To a published port: from outside, sent to its backend.
    Published = 8, "published", false;
    /// From a published port: a reply that left for its client.
    PublishedReply = 9, "published_reply", false;
    /// Of a connection whose backend is gone, or to a service without backends: the sender was told
    /// (TCP reset, port unreachable).
    RefusalAnswered = 10, "refusal_answered", false;
    /// Sent on by the XDP program. Each is also counted for what it is: [`Reason::Published`] or
    /// [`Reason::PublishedReply`].
    SentEarly = 11, "sent_early", false;
    /// The frame's source MAC is not the endpoint's.
    SpoofedMac = 16, "spoofed_mac", true;
    /// The packet's source address is not the endpoint's.
    SpoofedIp = 17, "spoofed_ip", true;
    /// VXLAN from an address that is no node's.
    NotMember = 18, "not_member", true;
    /// A VNI, or an interface, that this node knows nothing of.
    UnknownNetwork = 19, "unknown_network", true;
    /// The next hop is in the subnet, but nobody has it (here).
    NoEndpoint = 20, "no_endpoint", true;
    /// The destination belongs to another network, or is the port of VXLAN, whoever's: the way into
    /// every network.
    Isolated = 21, "isolated", true;
    /// The destination is outside, and the network is internal.
    Internal = 22, "internal", true;
    /// A packet of an encrypted network arrived in the clear.
    EncryptedInClear = 23, "encrypted_in_clear", true;
    /// Broadcast or multicast other than an answered neighbour request.
    Multicast = 24, "multicast", true;
    /// Truncated, or with lengths that contradict each other.
    Malformed = 25, "malformed", true;
    /// Too big for the tunnel, and the sender could not be told.
    TooBig = 26, "too_big", true;
    /// Neither the program nor the VXLAN device could encapsulate it.
    EncapsulationFailed = 27, "encapsulation_failed", true;
    /// Decapsulation failed: the kernel refused to remove the headers.
    DecapsulationFailed = 28, "decapsulation_failed", true;
    /// Not IPv4, IPv6 or ARP; or a VLAN tag; or neighbour discovery other than a solicitation.
    UnsupportedProtocol = 29, "unsupported_protocol", true;
    /// The node is not configured for this (no host leg, no underlay).
    NotConfigured = 30, "not_configured", true;
    /// To a node of an encrypted network that has no key, or while there is no WireGuard device.
    NoKey = 31, "no_key", true;
    /// Through WireGuard from a node, with a source address that is another's.
    SpoofedPeer = 32, "spoofed_peer", true;
    /// Not sent by Mesh, and to or from the VXLAN or WireGuard port of a node: it would pass for a
    /// tunnel's packet.
    ForeignTunnel = 33, "foreign_tunnel", true;
    /// To a socket of a host, or to a cloud's metadata service, and the network's policy forbids
    /// it.
    HostAccess = 34, "host_access", true;
    /// To or from a published port, and its hop limit does not allow another hop.
    HopLimit = 35, "hop_limit", true;
    /// To the outside, and the host does not know the next hop: the endpoint sent too many such.
    Unresolved = 36, "unresolved", true;
    /// The service has no backend that could take it, and the sender could not be told.
    NoBackend = 40, "no_backend", true;
    /// A later fragment whose first one has not been seen: its flow cannot be told.
    FragmentWithoutFirst = 41, "fragment_without_first", true;
    /// A reply of a published port from an address that is not this host's.
    NotOurAddress = 42, "not_our_address", true;
    /// The kernel refused to translate it.
    TranslationFailed = 44, "translation_failed", true;
}

/// A record of `EVENTS`: a sampled drop. Written only while [`crate::EVENTS_WANTED`] is set.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The network; [`Vni::NONE`] where it is not known.
    pub vni: Vni,
    /// A [`Reason`], as its number.
    pub reason: u32,
    /// Interface index of the device where the program stands.
    pub ifindex: u32,
    /// Length of the frame, in bytes.
    pub length: u32,
    /// The first bytes of the frame, as the program saw it.
    pub header: [u8; 64],
}
