//! Results of probes of the paths to other nodes.

use crate::Address;

/// [`PathKey::kind`]: through the UDP port of WireGuard instead of VXLAN.
pub const PROBED_BY_WIREGUARD: u32 = 1;

/// [`PathKey::kind`]: a probe that the member sent, not its answer to a probe of this node.
pub const PROBE_REQUEST: u32 = 2;

/// [`PathKey::kind`], with [`PROBE_REQUEST`]: the member reports that its probes are not answered.
pub const PROBE_UNANSWERED: u32 = 4;

/// Key of `PATHS`, a hash. The value is when a probe of this kind last arrived, in nanoseconds of
/// `CLOCK_MONOTONIC`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathKey {
    /// Data-path address of the other node.
    pub member: Address,
    /// Bits: [`PROBED_BY_WIREGUARD`], [`PROBE_REQUEST`], [`PROBE_UNANSWERED`].
    pub kind: u32,
}
