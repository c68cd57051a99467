//! What a part of a program decides.

/// What becomes of a packet: what the kernel is to do with it, or which part of the program comes
/// next. The stack of all functions that are called within each other is 512 bytes: so a part does
/// not call the next one, but returns its name.
///
/// The kernel knows only those of the first group ([`Verdict::code`]).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Verdict {
    /// Leaves the packet alone: the next program, or the stack, has it (`TCX_NEXT`,
    /// `TC_ACT_UNSPEC`).
    Pass = -1,
    /// Drops the packet (`TCX_DROP`, `TC_ACT_SHOT`).
    Drop = 2,
    /// Sends the packet where a redirecting helper has directed it (`TCX_REDIRECT`,
    /// `TC_ACT_REDIRECT`).
    Redirect = 7,

    /// Nothing is known of the flow: the slow path decides. The packet is unchanged.
    SlowPath = 0x100,
    /// The packet is for no service. It is unchanged; the overlay decides.
    Unchanged,
    /// The packet has another destination now; the overlay decides how it gets there.
    Translated,

    /// Of an endpoint: an ARP request is to be answered.
    AnswerArp,
    /// Of an endpoint: a neighbour solicitation is to be answered.
    AnswerSolicitation,
    /// Of an endpoint: the packet is for its host, or for the outside.
    ToHost,
    /// Of an endpoint: the packet would leave an internal network.
    InternalNetwork,
    /// Of an endpoint: the host's kernel is to put the fragments in order.
    Reassemble,
    /// Of the host: a packet to a published port.
    FromHost,
    /// Of the host: a packet of an endpoint here, whose fragments are in order now.
    Reassembled,
    /// Of the host: likewise, to one of the host's addresses.
    ReassembledForHost,

    // The parts of the service path, in the order in which `service::run` calls them: each returns
    // one of the kernel's verdicts, or a part further down.
    /// A packet of an endpoint to a VIP.
    ToVip,
    /// A backend's reply to a client of a VIP on this node.
    Reply,
    /// A frame for an endpoint here that may be a backend's reply.
    Inbound,
    /// A fragment to one of the host's addresses, which the host's kernel is to put in order.
    SetAside,
    /// A frame of the routing mesh, without its outer headers.
    Tunnelled,
    /// A packet to an address of the host: its port may be published.
    ToPublished,
    /// The first fragment of a packet to a published port, after a later one that was not put in
    /// order.
    LateFragment,
    /// A packet to a published port.
    ToBackend,
    /// A packet to a published port whose backend is on this node.
    ToEndpoint,
    /// A backend's reply to a client of a published port.
    PublishedReply,
    /// Such a reply that arrived from another node.
    ReplyArrived,
    /// A packet of the host's own to a published port, whose backend is on another node.
    FromOwnAddress,
    /// A packet of the routing mesh that leaves for another node.
    Tunnel,
    /// A frame for the kernel's WireGuard ([`super::wireguard_kernel::send`]).
    KernelWireguard,
    /// A reply that leaves for its client.
    Leave,
    /// A reply that leaves for a client outside.
    ToOutside,
    /// There is no backend: the sender is refused.
    Refuse,
    /// The backend of a connection is gone: the connection is reset.
    Reset,
    /// The hop limit does not allow to route the packet.
    HopLimitReached,
    /// A packet to a VIP whose backend is the sender itself.
    ToItself,
}

impl Verdict {
    /// Returns the verdict as the kernel knows it. A part's name that nobody acted on would be a
    /// fault of the programs: such a packet is dropped.
    #[inline(always)]
    pub(super) const fn code(self) -> i32 {
        if self as i32 >= Self::SlowPath as i32 { Self::Drop as i32 } else { self as i32 }
    }

    /// Returns the verdict of a redirecting helper.
    #[inline(always)]
    pub(super) const fn of_helper(result: i64) -> Self {
        if result == Self::Redirect as i64 { Self::Redirect } else { Self::Drop }
    }

    /// Whether a part of the service path comes next.
    #[inline(always)]
    pub(super) const fn is_part(self) -> bool {
        self as i32 >= Self::ToVip as i32
    }
}
