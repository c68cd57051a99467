//! What probes say about the paths to other nodes.

use crate::Address;

/// [`PathKey::kind`]: by the UDP port of WireGuard, not by that of VXLAN.
pub const PROBED_BY_WIREGUARD: u32 = 1;

/// [`PathKey::kind`]: the member's own probes, not its answers to this node's.
pub const PROBE_ASKED: u32 = 2;

/// [`PathKey::kind`], with [`PROBE_ASKED`]: the member says that its probes are not answered.
pub const PROBE_UNANSWERED: u32 = 4;

/// Key of `PATHS`, a hash: the value is when a probe of this kind last arrived, in nanoseconds of
/// `CLOCK_MONOTONIC`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathKey {
    /// Data-path address of the other node.
    pub member: Address,
    /// Bits: [`PROBED_BY_WIREGUARD`], [`PROBE_ASKED`], [`PROBE_UNANSWERED`].
    pub kind: u32,
}
