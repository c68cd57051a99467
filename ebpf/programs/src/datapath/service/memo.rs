//! What the slow path notes of a flow, for the fast path.

use mesh_ebpf_types::{Mac, Vni};

/// What is known of the flow of the packet at hand. Words and halves as they lie in packets.
#[repr(C)]
pub(in crate::datapath) struct Memo {
    pub(super) generation: u64,
    pub(super) epoch: u64,
    /// As in [`super::flows::FlowKey`]; 0 where nothing is to be remembered.
    pub(super) from: u32,
    pub(super) vni: u32,
    pub(super) mac: [u32; 2],
    /// The flow's hash, as far as somebody has computed it, else 0.
    pub(super) hash: u32,
    /// As in [`super::flows::Flow`].
    pub(super) way: u32,
    pub(super) end: u32,
    pub(super) to_port: u32,
    pub(super) to_ifindex: u32,
    pub(super) mtu: u32,
    pub(super) counted: Vni,
    pub(super) reason: u32,
    /// Of the frame inside the outer headers, or as an endpoint gets it.
    pub(super) destination_mac: Mac,
    pub(super) source_mac: Mac,
}

impl Memo {
    /// Nothing is to be remembered of the packet at hand.
    #[inline(always)]
    pub(super) const fn forget(&mut self) {
        self.from = 0;
    }
}
