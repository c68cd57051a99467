//! Definitions that all senders of VXLAN share.

/// The range of UDP source ports, over which ECMP and RSS spread flows: 32768 to 60999, as in
/// Linux.
const FIRST_PORT: u16 = 32768;
const PORTS: u64 = 61000 - FIRST_PORT as u64;

/// Returns the UDP source port of a flow, chosen by the upper bits of its hash (RFC 7348, section
/// 5).
#[expect(clippy::inline_always, reason = "an eBPF function call costs a frame of the 512-byte stack")]
#[expect(clippy::cast_possible_truncation, reason = "the product's upper half is below the number of ports")]
#[inline(always)]
pub const fn source_port(hash: u32) -> u16 {
    FIRST_PORT + ((hash as u64 * PORTS) >> 32) as u16
}
