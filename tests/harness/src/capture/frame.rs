//! Frames, and what they are as far as tests ask.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

/// UDP port of VXLAN (RFC 7348).
pub const VXLAN_PORT: u16 = 4789;
const ETH_LEN: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
/// Flag of the VXLAN header that says that the VNI is valid.
const VNI_VALID: u8 = 0x08;

/// One captured frame, from its Ethernet header on.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When it was read.
    pub at: Instant,
    /// Device that it was seen on.
    pub ifindex: u32,
    /// Whether the namespace sent it rather than received it.
    pub outgoing: bool,
    /// Its whole length in bytes.
    pub len: usize,
    /// Its bytes, as many as were kept.
    pub bytes: Vec<u8>,
}

/// A UDP datagram with its addresses.
#[derive(Debug, Clone, Copy)]
pub struct Udp<'a> {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// What follows the UDP header.
    pub payload: &'a [u8],
}

/// A VXLAN packet (RFC 7348).
#[derive(Debug, Clone, Copy)]
pub struct Vxlan<'a> {
    /// The outer datagram; its payload starts with the VXLAN header.
    pub outer: Udp<'a>,
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// The inner Ethernet frame.
    pub inner: &'a [u8],
}

impl Frame {
    /// Whether its bytes hold `needle`, wherever.
    pub fn contains(&self, needle: &[u8]) -> bool {
        !needle.is_empty() && self.bytes.windows(needle.len()).any(|window| window == needle)
    }

    /// Its `EtherType`.
    pub fn ethertype(&self) -> Option<u16> {
        be16(&self.bytes, 12)
    }

    /// Whether it is an IP packet from or to an address.
    pub fn is_of(&self, address: IpAddr) -> bool {
        let (ethertype, at, octets) = match address {
            IpAddr::V4(v4) => (ETHERTYPE_IPV4, ETH_LEN + 12, v4.octets().to_vec()),
            IpAddr::V6(v6) => (ETHERTYPE_IPV6, ETH_LEN + 8, v6.octets().to_vec()),
        };
        let mut both = self.bytes.get(at..).unwrap_or_default().chunks_exact(octets.len()).take(2);
        self.ethertype() == Some(ethertype) && both.any(|address| address == octets)
    }

    /// Whether it is an IPv4 or IPv6 fragment.
    pub fn is_fragment(&self) -> bool {
        match self.ethertype() {
            // More-fragments flag or an offset.
            Some(ETHERTYPE_IPV4) => be16(&self.bytes, ETH_LEN + 6).is_some_and(|field| field & 0x3fff != 0),
            // Next header 44 is the fragment header.
            Some(ETHERTYPE_IPV6) => self.bytes.get(ETH_LEN + 6) == Some(&44),
            _ => false,
        }
    }

    /// Its UDP datagram, if it is an unfragmented one without extension headers.
    pub fn udp(&self) -> Option<Udp<'_>> {
        let ip = self.bytes.get(ETH_LEN..)?;
        let (src, dst, protocol, header): (IpAddr, IpAddr, u8, usize) = match self.ethertype()? {
            ETHERTYPE_IPV4 if !self.is_fragment() => {
                let address =
                    |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?).into());
                (address(12)?, address(16)?, *ip.get(9)?, usize::from(ip.first()? & 0x0f) * 4)
            }
            ETHERTYPE_IPV6 => {
                let address =
                    |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?).into());
                (address(8)?, address(24)?, *ip.get(6)?, 40)
            }
            _ => return None,
        };
        let datagram = ip.get(header..)?;
        (protocol == UDP).then_some(Udp {
            src,
            dst,
            src_port: be16(datagram, 0)?,
            dst_port: be16(datagram, 2)?,
            payload: datagram.get(8..)?,
        })
    }

    /// Its VXLAN packet, if it is one to port 4789.
    pub fn vxlan(&self) -> Option<Vxlan<'_>> {
        let outer = self.udp().filter(|udp| udp.dst_port == VXLAN_PORT)?;
        let (header, inner) = outer.payload.split_at_checked(8)?;
        (header[0] & VNI_VALID != 0).then(|| Vxlan {
            outer,
            vni: u32::from_be_bytes([0, header[4], header[5], header[6]]),
            inner,
        })
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: Vec<u8>) -> Frame {
        Frame { at: Instant::now(), ifindex: 1, outgoing: false, len: bytes.len(), bytes }
    }

    /// 192.168.77.11:49152 -> 192.168.77.12:4789, VNI 4096, inner frame `inner`.
    fn vxlan_packet(inner: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00]);
        bytes.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 168, 77, 11, 192, 168, 77, 12]);
        bytes.extend([0xc0, 0x00, 0x12, 0xb5, 0, 0, 0, 0]);
        bytes.extend([0x08, 0, 0, 0, 0x00, 0x10, 0x00, 0]);
        bytes.extend(inner);
        bytes
    }

    #[test]
    fn a_vxlan_packet_is_taken_apart() {
        let frame = frame(vxlan_packet(b"inner frame"));
        let vxlan = frame.vxlan().expect("VXLAN");
        assert_eq!((vxlan.vni, vxlan.inner), (4096, &b"inner frame"[..]));
        assert_eq!((vxlan.outer.src.to_string(), vxlan.outer.src_port), ("192.168.77.11".to_owned(), 49152));
        assert!(frame.contains(b"r fra") && !frame.contains(b"canary") && !frame.is_fragment());
    }

    #[test]
    fn a_packet_is_of_its_two_addresses_and_no_other() {
        let frame = frame(vxlan_packet(b"10.0.0.1"));
        let is_of = |address: &str| frame.is_of(address.parse().expect("an address"));
        assert!(is_of("192.168.77.11") && is_of("192.168.77.12"));
        assert!(!is_of("192.168.77.13") && !is_of("77.11.192.168") && !is_of("::"));
    }

    #[test]
    fn no_truncated_packet_is_taken_for_vxlan_or_panics() {
        let whole = vxlan_packet(b"");
        for len in 0..whole.len() {
            assert!(frame(whole[..len].to_vec()).vxlan().is_none(), "{len} bytes");
        }
        assert!(frame(whole).vxlan().is_some());
    }

    #[test]
    fn a_fragment_is_seen_as_one() {
        let mut bytes = vxlan_packet(b"");
        bytes[ETH_LEN + 6] = 0x20;
        assert!(frame(bytes.clone()).is_fragment() && frame(bytes).udp().is_none());
    }
}
