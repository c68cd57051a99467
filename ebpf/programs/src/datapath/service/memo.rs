//! What the slow path records about a flow for the fast path.

use mesh_ebpf_types::{Mac, Vni};

/// Facts about the current packet's flow. Words and halfwords are as in packets.
#[repr(C)]
pub(in crate::datapath) struct Memo {
    pub(super) generation: u64,
    pub(super) epoch: u64,
    /// As in [`super::flows::FlowKey`]; 0 if the flow must not be cached.
    pub(super) from: u32,
    pub(super) vni: u32,
    pub(super) mac: [u32; 2],
    /// The flow's hash if it was computed, else 0.
    pub(super) hash: u32,
    /// As in [`super::flows::Flow`].
    pub(super) outcome: u32,
    pub(super) end: u32,
    pub(super) to_port: u32,
    pub(super) to_ifindex: u32,
    pub(super) mtu: u32,
    pub(super) counted: Vni,
    pub(super) reason: u32,
    /// Destination MAC of the frame inside the outer headers, or as the endpoint receives it.
    pub(super) destination_mac: Mac,
    pub(super) source_mac: Mac,
}

impl Memo {
    /// Prevents caching of the current packet's flow.
    #[inline(always)]
    pub(super) const fn forget(&mut self) {
        self.from = 0;
    }
}
