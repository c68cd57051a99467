//! The headers before each inner frame inside WireGuard: IPv4, UDP, VXLAN (RFC 7348), as a kernel
//! VXLAN device on a WireGuard device writes them.

use std::net::Ipv4Addr;

use mesh_ebpf_types::source_port;

use super::{checksum, layers::ETHERNET};

/// Bytes of IPv4, UDP and VXLAN headers.
pub(crate) const HEADERS: usize = 20 + 8 + 8;
/// Flag: the VNI is valid.
const FLAG_VNI: u8 = 0x08;
const DONT_FRAGMENT: u8 = 0x40;

/// Headers for the frames of one flow to one peer.
#[derive(Debug, Clone)]
pub(crate) struct Encapsulation {
    template: [u8; HEADERS],
    /// Sum of the IPv4 header without length, identification and checksum.
    sum: u64,
}

impl Encapsulation {
    /// Prepares headers from source address `from` to tunnel address `to`, in network `vni`; `flow`
    /// determines the source port.
    pub(crate) fn new(from: Ipv4Addr, to: Ipv4Addr, port: u16, vni: u32, flow: u32) -> Self {
        let mut h = [0; HEADERS];
        h[0] = 0x45;
        h[6] = DONT_FRAGMENT;
        h[8] = 64;
        h[9] = super::layers::UDP;
        h[12..16].copy_from_slice(&from.octets());
        h[16..20].copy_from_slice(&to.octets());
        h[20..22].copy_from_slice(&source_port(flow).to_be_bytes());
        h[22..24].copy_from_slice(&port.to_be_bytes());
        h[28] = FLAG_VNI;
        h[32..36].copy_from_slice(&(vni << 8).to_be_bytes());
        Self { sum: checksum::sum(&h[..20]), template: h }
    }

    /// Writes the headers into the first [`HEADERS`] bytes of a packet of `len` bytes in total. UDP
    /// has no checksum, as VXLAN over IPv4 prefers. Returns `None` if `len` does not fit an IPv4
    /// packet.
    pub(crate) fn write(&self, packet: &mut [u8], len: usize, identification: u16) -> Option<()> {
        let total = u16::try_from(len).ok()?;
        let udp = total.checked_sub(20)?;
        let header = packet.first_chunk_mut::<HEADERS>()?;
        *header = self.template;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        let sum = self.sum + u64::from(total.to_be()) + u64::from(identification.to_be());
        header[10..12].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
        header[24..26].copy_from_slice(&udp.to_be_bytes());
        Some(())
    }
}

/// Why a decrypted packet is not a valid frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotOurs {
    /// Its source is not the sending peer's address, or its destination not this node's.
    Address,
    /// Not VXLAN, or malformed.
    NotVxlan,
    /// A fragment: the sender's MTU is wrong.
    Fragment,
}

/// Checks a decrypted packet (without padding) and returns its VNI; the inner frame begins at
/// [`HEADERS`].
pub(crate) fn decapsulate(packet: &[u8], from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Result<u32, NotOurs> {
    let Some(h) = packet.first_chunk::<{ HEADERS + ETHERNET }>() else { return Err(NotOurs::NotVxlan) };
    if h[0] != 0x45 {
        return Err(NotOurs::NotVxlan);
    }
    if h[12..16] != from.octets() || h[16..20] != to.octets() {
        return Err(NotOurs::Address);
    }
    if h[6] & 0x3f != 0 || h[7] != 0 {
        return Err(NotOurs::Fragment);
    }
    let len = |at: usize| usize::from(u16::from_be_bytes([h[at], h[at + 1]]));
    let whole = len(2) == packet.len() && len(24) + 20 == packet.len();
    let vxlan = h[9] == super::layers::UDP && h[22..24] == port.to_be_bytes() && h[28] == FLAG_VNI;
    if !whole || !vxlan {
        return Err(NotOurs::NotVxlan);
    }
    Ok(u32::from_be_bytes([0, h[32], h[33], h[34]]))
}
