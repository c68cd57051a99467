//! The programs of the datapath.

/// A tc program of the datapath, named after its attachment point. [`ProgramKind::Egress`] and
/// [`ProgramKind::EgressLayer3`] run at a device's egress, the others at its ingress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProgramKind {
    /// Host-side device of an endpoint: all packets from the container.
    Endpoint,
    /// Data-path device: VXLAN from other nodes.
    Underlay,
    /// VXLAN device: packets that the underlay program left to it.
    Overlay,
    /// `mesh0p`: packets from the host to endpoints.
    Host,
    /// `meshwg0`: packets that the WireGuard engine decrypted.
    Wireguard,
    /// The host's interfaces with Ethernet headers, including the data-path device: all outgoing
    /// packets, after the host's NAT.
    Egress,
    /// The host's other interfaces with Ethernet headers: packets to published ports.
    Published,
    /// The host's other layer-3 interfaces, whose packets begin with the IP header: packets to
    /// published ports.
    PublishedLayer3,
    /// As [`ProgramKind::Egress`], for the host's layer-3 interfaces.
    EgressLayer3,
    /// The host's interfaces with Ethernet headers that do not answer published ports: packets with
    /// a forged node address. [`ProgramKind::Published`] drops these too.
    Guard,
    /// As [`ProgramKind::Guard`], for layer-3 interfaces.
    GuardLayer3,
}

impl ProgramKind {
    /// All programs.
    pub const ALL: [Self; 11] = [
        Self::Endpoint,
        Self::Underlay,
        Self::Overlay,
        Self::Host,
        Self::Wireguard,
        Self::Egress,
        Self::Published,
        Self::PublishedLayer3,
        Self::EgressLayer3,
        Self::Guard,
        Self::GuardLayer3,
    ];

    /// Returns whether it is attached to a device's egress.
    pub const fn is_egress(self) -> bool {
        matches!(self, Self::Egress | Self::EgressLayer3)
    }

    /// Returns the program's name in the object, in pins and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Underlay => "underlay",
            Self::Overlay => "overlay",
            Self::Host => "host",
            Self::Wireguard => "wireguard",
            Self::Egress => "egress",
            Self::Published => "published",
            Self::PublishedLayer3 => "published_l3",
            Self::EgressLayer3 => "egress_l3",
            Self::Guard => "guard",
            Self::GuardLayer3 => "guard_l3",
        }
    }
}

/// The XDP program's name in the object and in pins. It runs on the data-path device, before
/// [`ProgramKind::Underlay`].
pub const EARLY: &str = "early";

/// A cgroup program for the host's own sockets. These let the host reach published ports at its own
/// addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketProgram {
    /// `connect` to an IPv4 address.
    Connect4,
    /// `connect` to an IPv6 address.
    Connect6,
    /// `sendmsg` of UDP to an IPv4 address.
    Sendmsg4,
    /// `sendmsg` of UDP to an IPv6 address.
    Sendmsg6,
    /// `recvmsg` of UDP from an IPv4 address.
    Recvmsg4,
    /// `recvmsg` of UDP from an IPv6 address.
    Recvmsg6,
    /// `getpeername`, IPv4.
    Getpeername4,
    /// `getpeername`, IPv6.
    Getpeername6,
}

impl SocketProgram {
    /// All socket programs.
    pub const ALL: [Self; 8] = [
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Getpeername4,
        Self::Getpeername6,
    ];

    /// Returns the program's name in the object and in pins.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
        }
    }

    /// Returns the attach type (`enum bpf_attach_type` of the kernel).
    pub const fn attach_type(self) -> u32 {
        match self {
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::Sendmsg4 => 14,
            Self::Sendmsg6 => 15,
            Self::Recvmsg4 => 19,
            Self::Recvmsg6 => 20,
            Self::Getpeername4 => 29,
            Self::Getpeername6 => 30,
        }
    }
}
