//! VXLAN over UDP over IPv4 (RFC 7348): the outer headers.

use mesh_ebpf_types::{Vni, source_port};

use crate::checksum;
use crate::headers::ETHERNET;
use crate::ip::UDP;

/// Length of the outer headers: Ethernet, IPv4, UDP, VXLAN.
pub const OUTER: usize = ETHERNET + 20 + 8 + 8;
/// Offset of the UDP checksum in the frame.
pub const UDP_CHECKSUM_OFFSET: usize = ETHERNET + 20 + 6;
/// Offset of the VNI (and a reserved byte after it) in the frame.
pub const VNI_OFFSET: usize = OUTER - 4;

/// The contents of a received frame's outer headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// The sending node.
    pub source: [u8; 4],
    /// The VXLAN network.
    pub vni: Vni,
    /// Whether the headers are as Mesh sends them. Other valid packets are left to the kernel's
    /// VXLAN: with a UDP checksum to verify, extension flags, or a congestion mark to copy (RFC
    /// 6040).
    pub plain: bool,
}

impl Outer {
    /// Reads the headers of a frame of `length` bytes. Returns `None` unless it is an unfragmented
    /// UDP datagram over IPv4 without options, to this address and port, with consistent lengths.
    /// Super-packets (`gso`) do not contain their length.
    #[inline(always)]
    pub fn parse(frame: &[u8; OUTER], to: [u8; 4], port: [u8; 2], length: u32, gso: bool) -> Option<Self> {
        let [
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            0x08,
            0x00,
            0x45,
            tos,
            t0,
            t1,
            _,
            _,
            f0,
            f1,
            _,
            UDP,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
            _,
            _,
            p0,
            p1,
            l0,
            l1,
            c0,
            c1,
            flags,
            r0,
            r1,
            r2,
            v0,
            v1,
            v2,
            r3,
        ] = *frame
        else {
            return None;
        };
        if [d0, d1, d2, d3] != to || [p0, p1] != port {
            return None;
        }
        // More fragments, or an offset.
        if f0 & 0x3f != 0 || f1 != 0 {
            return None;
        }
        let total = u32::from(u16::from_be_bytes([t0, t1]));
        let udp = u32::from(u16::from_be_bytes([l0, l1]));
        if !gso && (udp < 16 || total != udp + 20 || total + 14 > length) {
            return None;
        }
        Some(Self {
            source: [s0, s1, s2, s3],
            vni: Vni([0, v0, v1, v2]),
            plain: [flags, r0, r1, r2, r3, c0, c1] == [0x08, 0, 0, 0, 0, 0, 0] && tos & 3 != 3,
        })
    }
}

/// The fields of the outer headers of a frame.
#[derive(Debug, Clone, Copy)]
pub struct Encapsulation {
    /// This node.
    pub source: [u8; 4],
    /// The other node.
    pub destination: [u8; 4],
    /// The UDP port of VXLAN, network order.
    pub port: [u8; 2],
    /// The VXLAN network.
    pub vni: Vni,
    /// The flow's hash, which chooses the UDP source port.
    pub hash: u32,
    /// Traffic class of the inner packet.
    pub traffic_class: u8,
    /// Length of the inner frame, Ethernet header included.
    pub length: u32,
}

impl Encapsulation {
    /// Writes the headers with DF set and UDP checksum zero (RFC 7348, 5). Leaves the Ethernet
    /// addresses: the part that resolves the neighbour writes them.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a super-packet's length is rewritten for each segment"
    )]
    pub fn write(self, frame: &mut [u8]) {
        let Some(frame) = frame.first_chunk_mut::<OUTER>() else { return };
        let [_, v0, v1, v2] = self.vni.0;
        let ip_length = (self.length + 36) as u16;
        let tos = outer_ecn(self.traffic_class);
        let sum = checksum::add(u32::from(u16::from_be_bytes([0x45, tos])), &ip_length.to_be_bytes());
        let sum = checksum::add(sum, &[0x40, 0, 64, UDP]);
        let sum = checksum::add(checksum::add(sum, &self.source), &self.destination);
        frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, tos]);
        frame[16..18].copy_from_slice(&ip_length.to_be_bytes());
        frame[18..24].copy_from_slice(&[0, 0, 0x40, 0, 64, UDP]);
        frame[24..26].copy_from_slice(&checksum::finish(sum));
        frame[26..30].copy_from_slice(&self.source);
        frame[30..34].copy_from_slice(&self.destination);
        frame[34..36].copy_from_slice(&source_port(self.hash).to_be_bytes());
        frame[36..38].copy_from_slice(&self.port);
        frame[38..40].copy_from_slice(&((self.length + 16) as u16).to_be_bytes());
        frame[40..50].copy_from_slice(&[0, 0, 0x08, 0, 0, 0, v0, v1, v2, 0]);
    }
}

/// The start of a flow's packets on output: outer headers, Ethernet, IPv4 without options, ports.
/// All but a few fields are the same in every packet.
#[repr(C, align(4))]
pub struct Template {
    /// The bytes of the last packet sent.
    pub frame: [u8; TEMPLATE],
    /// The sum of the constant fields of the outer IP header.
    sum: u32,
}

/// Length of [`Template::frame`].
pub const TEMPLATE: usize = OUTER + ETHERNET + 24;

impl Default for Template {
    fn default() -> Self {
        Self::new()
    }
}

impl Template {
    /// Returns a template of zeroes.
    pub const fn new() -> Self {
        Self { frame: [0; TEMPLATE], sum: 0 }
    }

    /// Writes the outer headers of one of the flow's packets.
    #[inline(always)]
    pub fn set_outer(&mut self, outer: Encapsulation) {
        let sum = checksum::add(0x4500 + 0x4000 + 0x4000 + u32::from(UDP), &outer.source);
        self.sum = checksum::add(sum, &outer.destination);
        outer.write(&mut self.frame);
    }

    /// Updates the outer headers for another of the flow's packets.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a super-packet's length is rewritten for each segment"
    )]
    pub fn fit(&mut self, hash: u32, traffic_class: u8, length: u32) {
        let (total, tos) = ((length + 36) as u16, outer_ecn(traffic_class));
        let sum = checksum::finish(self.sum + u32::from(tos) + u32::from(total));
        self.frame[15] = tos;
        self.frame[16..18].copy_from_slice(&total.to_be_bytes());
        self.frame[24..26].copy_from_slice(&sum);
        self.frame[34..36].copy_from_slice(&source_port(hash).to_be_bytes());
        self.frame[38..40].copy_from_slice(&((length + 16) as u16).to_be_bytes());
    }
}

/// Returns the outer ECN field for an inner traffic class (RFC 6040, 4.1, in the compatible form
/// that Linux sends): a copy, except that "congestion experienced" becomes ECT(0). DSCP is not
/// copied: the underlay has its own.
#[inline(always)]
pub const fn outer_ecn(traffic_class: u8) -> u8 {
    let ecn = traffic_class & 3;
    if ecn == 3 { 2 } else { ecn }
}
