//! Results of the parts of a program.

/// The next step for a packet: an action of the kernel, or another part of the program. All nested
/// functions share a stack of 512 bytes. So a part does not call the next one, but returns its
/// name.
///
/// The kernel knows only the first group ([`Verdict::code`]).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Verdict {
    /// Leaves the packet unchanged to the next program or the stack (`TCX_NEXT`, `TC_ACT_UNSPEC`).
    Pass = -1,
    /// Drops the packet (`TCX_DROP`, `TC_ACT_SHOT`).
    Drop = 2,
    /// Sends the packet to the target of a redirecting helper (`TCX_REDIRECT`, `TC_ACT_REDIRECT`).
    Redirect = 7,

    /// The flow is not cached: take the slow path. The packet is unchanged.
    SlowPath = 0x100,
    /// The packet is for no service and unchanged: continue with overlay forwarding.
    Unchanged,
    /// The packet has a new destination: continue with overlay forwarding.
    Translated,

    /// `endpoint`: answer an ARP request.
    AnswerArp,
    /// `endpoint`: answer a neighbour solicitation.
    AnswerSolicitation,
    /// `endpoint`: the packet is for the host or the outside.
    ToHost,
    /// `endpoint`: the packet would leave an internal network.
    InternalNetwork,
    /// `endpoint`: let the host's kernel reassemble the fragments.
    Reassemble,
    /// `host`: a packet to a published port.
    FromHost,
    /// `host`: a reassembled packet of a local endpoint.
    Reassembled,
    /// `host`: a reassembled packet to one of the host's addresses.
    ReassembledForHost,

    // The parts of the service path, in the order in which `service::run` calls them. Each returns
    // a verdict of the kernel, or a later part.
    /// A packet from an endpoint to a VIP.
    ToVip,
    /// A backend's reply to a client of a VIP on this node.
    Reply,
    /// A frame for a local endpoint that may be a backend's reply.
    Inbound,
    /// A fragment to one of the host's addresses that the host's kernel must reassemble.
    SendToReassembly,
    /// A frame of the routing mesh, without its outer headers.
    Tunnelled,
    /// A packet to an address of the host, whose port may be published.
    ToPublished,
    /// The first fragment of a packet to a published port, after a later fragment that was not sent
    /// for reassembly.
    LateFragment,
    /// A packet to a published port.
    ToBackend,
    /// A packet to a published port whose backend is on this node.
    ToEndpoint,
    /// A backend's reply to a client of a published port.
    PublishedReply,
    /// Such a reply, received from another node.
    ReplyArrived,
    /// The host's own packet to a published port whose backend is on another node.
    FromOwnAddress,
    /// A packet of the routing mesh to another node.
    Tunnel,
    /// A frame for the kernel's WireGuard ([`super::wireguard_kernel::send`]).
    KernelWireguard,
    /// A reply that leaves for its client.
    Leave,
    /// A reply that leaves to an outside client.
    ToOutside,
    /// There is no backend: answer with a refusal.
    Refuse,
    /// The backend of a connection is gone: answer with a reset.
    Reset,
    /// The hop limit does not allow another hop.
    HopLimitReached,
    /// A packet to a VIP whose backend is the sender itself.
    ToItself,
}

impl Verdict {
    /// Returns the kernel's code of a verdict. A part that was not handled would be a bug of the
    /// programs: such a packet is dropped.
    #[inline(always)]
    pub(super) const fn code(self) -> i32 {
        if self as i32 >= Self::SlowPath as i32 { Self::Drop as i32 } else { self as i32 }
    }

    /// Returns the verdict from a redirecting helper's result.
    #[inline(always)]
    pub(super) const fn of_helper(result: i64) -> Self {
        if result == Self::Redirect as i64 { Self::Redirect } else { Self::Drop }
    }

    /// Returns whether a part of the service path comes next.
    #[inline(always)]
    pub(super) const fn is_part(self) -> bool {
        self as i32 >= Self::ToVip as i32
    }
}
