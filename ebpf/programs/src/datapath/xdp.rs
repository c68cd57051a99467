//! A packet as a driver has it, before the kernel makes its own of it: XDP.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{BPF_FIB_LOOKUP_OUTPUT, xdp_md};
use aya_ebpf::helpers::generated as helpers;

use super::route::Route;
use super::skb::Refused;
use super::start::Start;

/// What is to be done with the packet, as the kernel knows it.
pub(super) type Action = u32;

/// Goes on as if there were no program.
pub(super) const PASS: Action = XDP_PASS;
/// Drops the packet.
pub(super) const DROP: Action = XDP_DROP;
/// Sends the packet out of the device that it came by.
pub(super) const SEND_BACK: Action = XDP_TX;

/// The packet that the program was called for. It lies in one piece: the program says nothing of
/// buffers of several, so the kernel gives it none.
#[derive(Clone, Copy)]
pub(super) struct Xdp(*mut xdp_md);

// SAFETY, for every block here: as in `Skb`.
impl Xdp {
    #[inline(always)]
    pub(super) const fn new(context: *mut xdp_md) -> Self {
        Self(context)
    }

    #[inline(always)]
    fn bounds(self) -> (usize, usize) {
        unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) }
    }

    /// Length of the frame in bytes.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        let (data, end) = self.bounds();
        (end - data) as u32
    }

    /// Interface index of the device where the program stands.
    #[inline(always)]
    pub(super) fn ifindex(self) -> u32 {
        unsafe { (*self.0).ingress_ifindex }
    }

    /// The first `N` bytes of the frame where they lie, if there are so many. Not valid any more
    /// once the frame has another start.
    #[inline(always)]
    pub(super) fn start<const N: usize>(self) -> Option<Start<N>> {
        let (data, end) = self.bounds();
        Start::between(data, end)
    }

    /// Has the frame begin so many bytes earlier, or later if negative. What is in new bytes is the
    /// caller's to write.
    #[inline(always)]
    pub(super) fn extend(self, bytes: i32) -> Result<(), Refused> {
        // The kernel takes away what is added to the start.
        if unsafe { helpers::bpf_xdp_adjust_head(self.0, -bytes) } == 0 { Ok(()) } else { Err(Refused) }
    }

    /// The MACs, destination's first, by which an IPv4 packet leaves by the device that it came by:
    /// those of its next hop and of the device. `None` where that is not its way, or the next hop
    /// is not known at the moment.
    #[inline(always)]
    pub(super) fn macs(self, protocol: u8, source: u32, destination: u32) -> Option<[u8; 12]> {
        let ifindex = self.ifindex();
        let mut route = Route::new(ifindex, protocol, source, destination);
        let length = const { size_of::<Route>() as i32 };
        let answer = unsafe {
            helpers::bpf_fib_lookup(self.0.cast(), (&raw mut route).cast(), length, BPF_FIB_LOOKUP_OUTPUT)
        };
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (route.destination_mac, route.source_mac);
        // Before 6.6 neighbours that are still asked for count as known: their MAC is zero, or was
        // right until lately.
        if answer != 0 || route.ifindex != ifindex || d0 | d1 | d2 | d3 | d4 | d5 == 0 {
            return None;
        }
        Some([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5])
    }
}
