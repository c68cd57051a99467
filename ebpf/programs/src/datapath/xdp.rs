//! A packet in the driver, before the kernel allocates a socket buffer: XDP.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{BPF_FIB_LOOKUP_OUTPUT, xdp_md};
use aya_ebpf::helpers::generated as helpers;

use super::route::Route;
use super::skb::Refused;
use super::start::Start;

/// The action for the packet, as a code of the kernel.
pub(super) type Action = u32;

/// Continues as if there were no program.
pub(super) const PASS: Action = XDP_PASS;
/// Drops the packet.
pub(super) const DROP: Action = XDP_DROP;
/// Sends the packet out of the device where it arrived.
pub(super) const SEND_BACK: Action = XDP_TX;

/// The packet that the program was called for. It is contiguous: the program does not declare
/// support for multiple buffers, so the kernel passes none.
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

    /// Returns the length of the frame in bytes.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        let (data, end) = self.bounds();
        (end - data) as u32
    }

    /// Returns the interface index of the device where the program is attached.
    #[inline(always)]
    pub(super) fn ifindex(self) -> u32 {
        unsafe { (*self.0).ingress_ifindex }
    }

    /// Returns the first `N` bytes of the frame in place, if it is long enough. They become invalid
    /// when the frame's start moves.
    #[inline(always)]
    pub(super) fn start<const N: usize>(self) -> Option<Start<N>> {
        let (data, end) = self.bounds();
        Start::between(data, end)
    }

    /// Moves the start of the frame this many bytes forward, or back if negative. The caller must
    /// write new bytes.
    #[inline(always)]
    pub(super) fn extend(self, bytes: i32) -> Result<(), Refused> {
        // The kernel's argument is the number of bytes to remove at the start.
        if unsafe { helpers::bpf_xdp_adjust_head(self.0, -bytes) } == 0 { Ok(()) } else { Err(Refused) }
    }

    /// Returns the MACs (destination first) with which an IPv4 packet leaves through the device
    /// where it arrived: those of its next hop and of the device. Returns `None` if its route is
    /// another, or the next hop is not resolved.
    #[inline(always)]
    pub(super) fn macs(self, protocol: u8, source: u32, destination: u32) -> Option<[u8; 12]> {
        let ifindex = self.ifindex();
        let mut route = Route::new(ifindex, protocol, source, destination);
        let length = const { size_of::<Route>() as i32 };
        let answer = unsafe {
            helpers::bpf_fib_lookup(self.0.cast(), (&raw mut route).cast(), length, BPF_FIB_LOOKUP_OUTPUT)
        };
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (route.destination_mac, route.source_mac);
        // Before 6.6, unresolved neighbours count as resolved: their MAC is zero, or was right
        // until recently.
        if answer != 0 || route.ifindex != ifindex || d0 | d1 | d2 | d3 | d4 | d5 == 0 {
            return None;
        }
        Some([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5])
    }
}
