//! Ethernet frames.

use mesh_ebpf_types::Mac;

/// Length of an Ethernet header without VLAN tag.
pub const HEADER: usize = 14;
/// Ethertype of IPv4.
pub const IPV4: u16 = 0x0800;
/// Ethertype of ARP.
pub const ARP: u16 = 0x0806;
/// Ethertype of IPv6.
pub const IPV6: u16 = 0x86dd;

/// An Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination.
    pub destination: Mac,
    /// Source.
    pub source: Mac,
    /// What the frame carries.
    pub ethertype: u16,
}

impl Ethernet {
    /// Reads a header.
    #[inline(always)]
    pub const fn parse(bytes: &[u8; HEADER]) -> Self {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *bytes;
        Self {
            destination: Mac([d0, d1, d2, d3, d4, d5]),
            source: Mac([s0, s1, s2, s3, s4, s5]),
            ethertype: u16::from_be_bytes([t0, t1]),
        }
    }

    /// The header as bytes.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; HEADER] {
        let [d0, d1, d2, d3, d4, d5] = self.destination.0;
        let [s0, s1, s2, s3, s4, s5] = self.source.0;
        let [t0, t1] = self.ethertype.to_be_bytes();
        [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
    }
}
