//! What a CPU remembers of a flow.

use aya_ebpf::maps::PerCpuArray;
use mesh_ebpf::headers::ETHERNET;
use mesh_ebpf::vxlan::{OUTER, Template};
use mesh_ebpf_types::Vni;

use crate::datapath::maps::{self, map};
use crate::datapath::start::Start;

/// How long an entry holds: 0.1 to 1 s, by the kernel's clock rate.
pub(super) const UNTIL: u64 = 100;
/// How long a next hop is used, see [`crate::datapath::sent`].
pub(super) const NEXT_HOP_UNTIL: u64 = 25;
/// Ethernet, IPv4 without options, and TCP up to its flags. Datagrams that are shorter go the long
/// way.
pub(super) const READ: usize = ETHERNET + 20 + 14;
/// The same inside the outer headers.
pub(super) const READ_TUNNELLED: usize = OUTER + READ;
/// IPv4, without options, as it stands in a frame together with the type of service.
pub(super) const PLAIN_IPV4: u32 = u32::from_ne_bytes([0x08, 0, 0x45, 0]);
pub(super) const TOS: u32 = u32::from_ne_bytes([0, 0, 0, 0xff]);
pub(super) const FRAGMENT: u16 = u16::from_ne_bytes([0x3f, 0xff]);
/// Where the IP header begins in [`Template::frame`].
pub(super) const INNER_IP: usize = OUTER + ETHERNET;

/// [`Flow::end`]: nothing of the packet changes; its source; its destination.
pub(in crate::datapath::service) const NEITHER: u32 = 2;

/// [`Flow::way`]: to another node; to an endpoint of this one; to somebody outside; as if there
/// were no services, though it comes from a backend.
pub(super) const TO_NODE: u32 = 0;
pub(super) const TO_ENDPOINT: u32 = 1;
pub(super) const LEAVES: u32 = 2;
pub(super) const UNBALANCED: u32 = 3;

/// All of a packet that chooses its way. Words as they lie in the frame.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::datapath) struct FlowKey {
    /// The interface index of the device that it came in by; inside VXLAN, the node that sent it.
    pub(super) from: u32,
    /// The VNI, and a zero after it; zero outside VXLAN.
    pub(super) vni: u32,
    /// Source and destination.
    pub(super) addresses: [u32; 2],
    /// Source and destination port.
    pub(super) ports: u32,
    pub(super) protocol: u32,
    /// The source MAC of what an endpoint sends, the destination MAC of what is for one; zero
    /// otherwise.
    pub(super) mac: [u32; 2],
}

/// What becomes of a flow's packets. All zero fits no packet.
#[repr(C)]
pub(in crate::datapath) struct Flow {
    pub(super) generation: u64,
    /// [`maps::epoch`] of the tuple.
    pub(super) epoch: u64,
    /// When it takes the slow path again, in jiffies.
    pub(super) until: u64,
    /// When the next hop is to be asked for again.
    pub(super) next_hop_until: u64,
    /// When the MACs in the template, by which [`early`] sends it, are to be asked for again.
    pub(super) macs_until: u64,
    pub(super) key: FlowKey,
    pub(super) way: u32,
    /// Which end is replaced.
    pub(super) end: u32,
    /// That end's address before and after.
    pub(super) from: u32,
    pub(super) to: u32,
    /// That end's port before and after, as they lie in the packet.
    pub(super) from_port: u32,
    pub(super) to_port: u32,
    /// What the sum of the IP header grows by.
    pub(super) difference: u32,
    /// What is taken from the hop limit.
    pub(super) hops: u32,
    /// The flow's hash as it leaves, where the socket has made none.
    pub(super) hash: u32,
    /// The largest packet that may leave.
    pub(super) mtu: u32,
    /// Where it leaves, or the endpoint's device.
    pub(super) to_ifindex: u32,
    /// This node and the other one, in outer headers.
    pub(super) outer: [u32; 2],
    /// 0 where the kernel is to find it.
    pub(super) next_hop: u32,
    /// What it is counted for.
    pub(super) vni: Vni,
    pub(super) reason: u32,
    /// What it looks like.
    pub(super) template: Template,
}

impl FlowKey {
    #[inline(always)]
    pub(super) fn of<const N: usize>(
        frame: Start<N>,
        base: usize,
        from: u32,
        vni: u32,
        mac: [u32; 2],
    ) -> Self {
        Self {
            from,
            vni,
            addresses: [frame.word(base + 26), frame.word(base + 30)],
            ports: frame.word(base + 34),
            protocol: frame.byte(base + 23).into(),
            mac,
        }
    }
}

// Not pinned: worth nothing to another program.
map!(FLOWS: PerCpuArray<Flow> = PerCpuArray::with_max_entries(maps::FLOWS, 0));

/// What is in that place on this CPU.
#[inline(always)]
pub(super) fn place(slot: u32) -> Option<*mut Flow> {
    FLOWS.get_ptr_mut(slot)
}
