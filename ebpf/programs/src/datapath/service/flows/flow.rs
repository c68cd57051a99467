//! The cache entry of a flow, in each CPU's cache.

use aya_ebpf::maps::PerCpuArray;
use mesh_ebpf::headers::ETHERNET;
use mesh_ebpf::vxlan::{OUTER, Template};
use mesh_ebpf_types::Vni;

use crate::datapath::maps::{self, map};
use crate::datapath::start::Start;

/// Lifetime of an entry: 0.1 to 1 s, depending on the kernel's clock rate.
pub(super) const UNTIL: u64 = 100;
/// Lifetime of a next hop; see [`crate::datapath::sent`].
pub(super) const NEXT_HOP_UNTIL: u64 = 25;
/// Ethernet, IPv4 without options, and TCP up to its flags. Shorter datagrams take the slow path.
pub(super) const READ: usize = ETHERNET + 20 + 14;
/// The same inside the outer headers.
pub(super) const READ_TUNNELLED: usize = OUTER + READ;
/// Ethertype, version and header length of IPv4 without options, as in a frame.
pub(super) const PLAIN_IPV4: u32 = u32::from_ne_bytes([0x08, 0, 0x45, 0]);
pub(super) const TOS: u32 = u32::from_ne_bytes([0, 0, 0, 0xff]);
pub(super) const FRAGMENT: u16 = u16::from_ne_bytes([0x3f, 0xff]);
/// Offset of the IP header in [`Template::frame`].
pub(super) const INNER_IP: usize = OUTER + ETHERNET;

/// [`Flow::end`]: neither end of the packet is rewritten; the other values are source and
/// destination.
pub(in crate::datapath::service) const NEITHER: u32 = 2;

/// [`Flow::outcome`]: to another node; to an endpoint on this node; to an outside client; as if
/// there were no services, although it comes from a backend.
pub(super) const TO_NODE: u32 = 0;
pub(super) const TO_ENDPOINT: u32 = 1;
pub(super) const LEAVES: u32 = 2;
pub(super) const UNBALANCED: u32 = 3;

/// All fields of a packet that determine its flow. Words are as in the frame.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::datapath) struct FlowKey {
    /// Interface index of the device where it arrived; inside VXLAN, the sending node's address.
    pub(super) from: u32,
    /// The VNI, followed by a zero byte; zero outside VXLAN.
    pub(super) vni: u32,
    /// Source and destination address.
    pub(super) addresses: [u32; 2],
    /// Source and destination port.
    pub(super) ports: u32,
    pub(super) protocol: u32,
    /// The source MAC of packets from endpoints, the destination MAC of packets to endpoints; zero
    /// otherwise.
    pub(super) mac: [u32; 2],
}

/// The cached processing of a flow's packets. All zero matches no packet.
#[repr(C)]
pub(in crate::datapath) struct Flow {
    pub(super) generation: u64,
    /// [`maps::epoch`] of the tuple.
    pub(super) epoch: u64,
    /// When the flow must take the slow path again, in jiffies.
    pub(super) until: u64,
    /// When the next hop must be queried again.
    pub(super) next_hop_until: u64,
    /// When the MACs in the template, which [`early`] uses, must be queried again.
    pub(super) macs_until: u64,
    pub(super) key: FlowKey,
    pub(super) outcome: u32,
    /// The end that is rewritten.
    pub(super) end: u32,
    /// Address of that end before and after.
    pub(super) from: u32,
    pub(super) to: u32,
    /// Port of that end before and after, as in the packet.
    pub(super) from_port: u32,
    pub(super) to_port: u32,
    /// The increment of the IP header's checksum.
    pub(super) difference: u32,
    /// The decrement of the hop limit.
    pub(super) hops: u32,
    /// The flow's hash on output, if the socket has computed none.
    pub(super) hash: u32,
    /// MTU of the output.
    pub(super) mtu: u32,
    /// Output device, or the endpoint's device.
    pub(super) to_ifindex: u32,
    /// Addresses of this and the other node, for outer headers.
    pub(super) outer: [u32; 2],
    /// 0 if the kernel must find it.
    pub(super) next_hop: u32,
    /// The network for counters.
    pub(super) vni: Vni,
    pub(super) reason: u32,
    /// The headers of the flow's packets.
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

// Not pinned: a cache is useless to another program.
map!(FLOWS: PerCpuArray<Flow> = PerCpuArray::with_max_entries(maps::FLOWS, 0));

/// Returns the entry in this slot on this CPU.
#[inline(always)]
pub(super) fn cache_entry(slot: u32) -> Option<*mut Flow> {
    FLOWS.get_ptr_mut(slot)
}
