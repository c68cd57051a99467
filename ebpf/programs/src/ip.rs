//! IPv4 and IPv6 headers, as far as forwarding needs them.

use mesh_ebpf_types::Address;

/// Length of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Length of an IPv6 header.
pub const IPV6_HEADER: usize = 40;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMP for IPv6.
pub const ICMPV6: u8 = 58;

/// How many IPv6 extension headers are followed.
pub const MAX_EXTENSIONS: usize = 6;

/// The header contradicts itself or the frame that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// An IP packet, of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Length of the IPv4 header with options, or 40.
    pub header_length: u32,
    /// What follows the header: a protocol, or for IPv6 perhaps an extension header.
    pub next: u8,
    /// Time to live, hop limit.
    pub hop_limit: u8,
    /// Type of service, traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// Whether routers must not fragment it: IPv4 with DF set, every IPv6.
    pub dont_fragment: bool,
    /// Whether this is IPv6.
    pub v6: bool,
}

impl Packet {
    /// Reads an IPv4 header. `available` is how many bytes the frame holds from the header's start; super-packets
    /// (`gso`) may be longer than the header can say.
    #[inline(always)]
    pub fn parse_v4(bytes: &[u8; IPV4_HEADER], available: u32, gso: bool) -> Result<Self, Malformed> {
        let [
            version_ihl,
            tos,
            l0,
            l1,
            _,
            _,
            fragment,
            _,
            ttl,
            protocol,
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
        ] = *bytes;
        let header_length = u32::from(version_ihl & 0x0f) * 4;
        let total = u32::from(u16::from_be_bytes([l0, l1]));
        if version_ihl >> 4 != 4 || header_length < 20 || available < header_length {
            return Err(Malformed);
        }
        if !gso && (total < header_length || total > available) {
            return Err(Malformed);
        }
        Ok(Self {
            source: Address::from_v4([s0, s1, s2, s3]),
            destination: Address::from_v4([d0, d1, d2, d3]),
            header_length,
            next: protocol,
            hop_limit: ttl,
            traffic_class: tos,
            dont_fragment: fragment & 0x40 != 0,
            v6: false,
        })
    }

    /// Reads an IPv6 header; parameters as in [`Packet::parse_v4`].
    #[inline(always)]
    pub fn parse_v6(bytes: &[u8; IPV6_HEADER], available: u32, gso: bool) -> Result<Self, Malformed> {
        let [v0, v1, _, _, l0, l1, next, hop_limit, addresses @ ..] = *bytes;
        let payload = u32::from(u16::from_be_bytes([l0, l1]));
        if v0 >> 4 != 6 || (!gso && payload + 40 > available) {
            return Err(Malformed);
        }
        let (halves, _) = addresses.as_chunks::<16>();
        let [source, destination] = halves else { return Err(Malformed) };
        Ok(Self {
            source: Address(*source),
            destination: Address(*destination),
            header_length: 40,
            next,
            hop_limit,
            traffic_class: (v0 << 4) | (v1 >> 4),
            dont_fragment: true,
            v6: true,
        })
    }

    /// Whether the destination is a multicast or the limited broadcast address, or not one at all.
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        match self.destination.to_v4() {
            Some([first, ..]) => first >= 224,
            None => self.destination.0[0] == 0xff,
        }
    }

    /// Whether an address has link scope: `fe80::/10`.
    #[inline(always)]
    pub const fn is_link_local(address: Address) -> bool {
        address.0[0] == 0xfe && address.0[1] & 0xc0 == 0x80
    }
}

/// What follows an IPv6 extension header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// `protocol` is no extension header that can be followed: it is the upper layer.
    Upper,
    /// Another header of the given kind, so many bytes further.
    Header {
        /// Its kind.
        next: u8,
        /// How far.
        skip: u32,
    },
    /// The payload of a fragment that is not the first: there is no upper-layer header in it.
    LaterFragment,
}

/// Steps over one header (RFC 8200, 4): `protocol` is its kind, `bytes` its first four bytes.
#[inline(always)]
pub const fn step(protocol: u8, bytes: [u8; 4]) -> Next {
    let [next, length, o0, o1] = bytes;
    match protocol {
        // Hop-by-hop options, routing, destination options; mobility, HIP and shim6 have the same shape.
        0 | 43 | 60 | 135 | 139 | 140 => Next::Header { next, skip: (length as u32 + 1) * 8 },
        44 => {
            if u16::from_be_bytes([o0, o1]) & 0xfff8 != 0 {
                Next::LaterFragment
            } else {
                Next::Header { next, skip: 8 }
            }
        }
        // Authentication: in units of four bytes, less two.
        51 => Next::Header { next, skip: (length as u32 + 2) * 4 },
        _ => Next::Upper,
    }
}
