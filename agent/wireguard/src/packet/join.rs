//! Coalesces segments of a flow into super-packets before they are written to the device, like GRO.
//!
//! Decrypted packets stay in an arena, one after another; a super-packet is a list of ranges.
//! Packets that are not coalesced are in the same list, so every flow's packets leave in order.

use std::{io::IoSlice, net::Ipv4Addr};

use super::{
    checksum,
    layers::{ETHERNET, Layers, TCP, UDP},
    tag::FrameTag,
    virtio::{self, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader},
    vxlan::{self, NotOurs},
};

/// Most segments in one super-packet: the kernel's limit for UDP, and enough for 64 KiB of TCP.
const MAX_SEGMENTS: usize = 64;
/// Largest inner packet.
const MAX_PACKET: usize = 65535;
/// Number of most recent super-packets that are searched for a flow's.
const LOOK_BACK: usize = 32;
/// SYN, RST and URG are never coalesced.
const NEVER: u8 = 0x26;
/// FIN and PSH close the super-packet that they join.
const CLOSING: u8 = 0x09;

/// Holds the decrypted packets of one round of receiving.
#[derive(Debug)]
pub(crate) struct Joiner {
    arena: Vec<u8>,
    used: usize,
    frames: Vec<Joined>,
    live: usize,
    /// Whether the device accepts UDP super-packets.
    udp: bool,
}

/// A frame, perhaps of many segments, to be written to the device.
#[derive(Debug)]
struct Joined {
    /// Start of the first segment's Ethernet header in the arena.
    start: usize,
    /// Length of its headers; of the whole frame if it cannot be coalesced.
    header: usize,
    /// Payload ranges in the arena: start and length.
    parts: Vec<(usize, usize)>,
    payload: usize,
    tag: FrameTag,
    layers: Option<Layers>,
    /// TCP or UDP whose checksum was right.
    verified: bool,
    /// Whether another segment may still be added.
    open: bool,
    next_sequence: u32,
}

/// The data of one write to the device.
#[derive(Debug)]
pub(crate) struct SuperFrame<'j> {
    /// virtio header, frame header, payloads.
    pub(crate) slices: &'j [IoSlice<'j>],
}

impl Joiner {
    /// Creates a joiner whose arena holds `capacity` bytes. `udp`: whether to coalesce UDP
    /// datagrams too.
    pub(crate) fn new(capacity: usize, udp: bool) -> Self {
        Self { arena: vec![0; capacity], used: 0, frames: Vec::new(), live: 0, udp }
    }

    /// Returns the free part of the arena, for the next decrypted packet.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    /// Adds the packet of `len` bytes at the start of [`Joiner::room`]. It must be VXLAN from
    /// address `from`, the source of peer `peer` for its key, to tunnel address `to`.
    pub(crate) fn push(
        &mut self,
        len: usize,
        peer: u16,
        from: Ipv4Addr,
        to: Ipv4Addr,
        port: u16,
    ) -> Result<(), NotOurs> {
        let packet = self.arena.get_mut(self.used..self.used + len).ok_or(NotOurs::NotVxlan)?;
        let tag = FrameTag { vni: vxlan::decapsulate(packet, from, to, port)?, peer };
        let frame = &mut packet[vxlan::HEADERS..];
        frame[6..12].copy_from_slice(&tag.mac());
        let start = self.used + vxlan::HEADERS;
        self.used += len;
        self.add(start, len - vxlan::HEADERS, tag);
        Ok(())
    }

    fn add(&mut self, start: usize, len: usize, tag: FrameTag) {
        let frame = &self.arena[start..start + len];
        let layers = Layers::of(frame).filter(|layers| layers.stated_len(frame) == len);
        let verified = layers.is_some_and(|layers| checksum_is_right(frame, layers));
        let header = layers.map_or(len, |layers| layers.payload);
        let data = (start + header, len - header);
        let flags = layers.filter(|l| l.protocol == TCP).map_or(0, |l| frame[l.l4 + 13]);
        let sequence = layers.filter(|l| l.protocol == TCP).map_or(0, |l| {
            let l4 = &frame[l.l4..];
            u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]])
        });
        let kind = layers.is_some_and(|l| l.protocol == TCP || self.udp);
        let joinable = verified && kind && data.1 > 0 && flags & NEVER == 0;
        if let Some(layers) = layers.filter(|_| joinable)
            && self.join(start, layers, data, tag, sequence, flags)
        {
            return;
        }
        if self.live == self.frames.len() {
            self.frames.push(Joined::empty());
        }
        let joined = &mut self.frames[self.live];
        self.live += 1;
        let mut parts = std::mem::take(&mut joined.parts);
        parts.clear();
        if data.1 > 0 {
            parts.push(data);
        }
        *joined = Joined {
            start,
            header,
            parts,
            payload: data.1,
            tag,
            layers,
            verified,
            open: joinable && flags & CLOSING == 0,
            next_sequence: sequence.wrapping_add(low32(data.1)),
        };
    }

    /// Adds a segment to the newest frame of its flow if that is lossless.
    fn join(
        &mut self,
        start: usize,
        layers: Layers,
        data: (usize, usize),
        tag: FrameTag,
        sequence: u32,
        flags: u8,
    ) -> bool {
        let header = layers.payload;
        let oldest = self.live.saturating_sub(LOOK_BACK);
        let arena = &mut self.arena;
        for joined in self.frames[oldest..self.live].iter_mut().rev() {
            let Some(theirs) = joined.layers else { continue };
            if joined.tag != tag
                || (theirs.v6, theirs.protocol, theirs.l4) != (layers.v6, layers.protocol, layers.l4)
            {
                continue;
            }
            // The older frame is before the newer one in the arena.
            let (before, after) = arena.split_at_mut(start);
            let old = &mut before[joined.start..joined.start + joined.header];
            let new = &after[..header];
            if !same_flow(old, new, layers) {
                continue;
            }
            let size = joined.parts.first().map_or(0, |part| part.1);
            let fits = joined.open
                && joined.header == header
                && same_header(old, new, layers)
                && (layers.protocol == UDP || sequence == joined.next_sequence)
                && data.1 <= size
                && joined.parts.len() < MAX_SEGMENTS
                && joined.header - ETHERNET + joined.payload + data.1 <= MAX_PACKET;
            if fits {
                joined.parts.push(data);
                joined.payload += data.1;
                joined.next_sequence = sequence.wrapping_add(low32(data.1));
                joined.open = data.1 == size && flags & CLOSING == 0;
                if layers.protocol == TCP {
                    old[layers.l4 + 13] |= flags & CLOSING;
                }
            }
            return fits;
        }
        false
    }

    /// Passes all frames to `write`, oldest first, and clears them.
    pub(crate) fn drain(&mut self, mut write: impl FnMut(&SuperFrame<'_>)) {
        for joined in &self.frames[..self.live] {
            let header = &mut self.arena[joined.start..joined.start + joined.header];
            let vnet = joined.finish(header).bytes();
            let header = &self.arena[joined.start..joined.start + joined.header];
            let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS + 2];
            slices[0] = IoSlice::new(&vnet);
            slices[1] = IoSlice::new(header);
            for (slice, (start, len)) in slices[2..].iter_mut().zip(&joined.parts) {
                *slice = IoSlice::new(&self.arena[*start..start + len]);
            }
            write(&SuperFrame { slices: &slices[..2 + joined.parts.len()] });
        }
        self.live = 0;
        self.used = 0;
    }
}

impl Joined {
    fn empty() -> Self {
        Self {
            start: 0,
            header: 0,
            parts: Vec::new(),
            payload: 0,
            tag: FrameTag { vni: 0, peer: 0 },
            layers: None,
            verified: false,
            open: false,
            next_sequence: 0,
        }
    }

    /// Completes the first segment's header for the whole super-packet, and returns its description
    /// for the kernel.
    fn finish(&self, header: &mut [u8]) -> VnetHeader {
        let Some(layers) = self.layers.filter(|_| self.verified) else { return VnetHeader::default() };
        let l4_len = self.header - layers.l4 + self.payload;
        // `join` keeps the whole within 65535 bytes, so all conversions here succeed.
        let (Ok(l4_len), Ok(start), Ok(offset), Ok(hdr_len)) = (
            u16::try_from(l4_len),
            u16::try_from(layers.l4),
            u16::try_from(layers.checksum_offset()),
            u16::try_from(self.header),
        ) else {
            return VnetHeader::default();
        };
        let mut vnet = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_NONE,
            hdr_len,
            gso_size: 0,
            csum_start: start,
            csum_offset: offset,
        };
        if self.parts.len() > 1 {
            vnet.gso_type = match (layers.protocol, layers.v6) {
                (UDP, _) => GSO_UDP_L4,
                (_, false) => GSO_TCPV4,
                (_, true) => GSO_TCPV6,
            };
            vnet.gso_size = self.parts.first().and_then(|part| u16::try_from(part.1).ok()).unwrap_or(0);
            if layers.set_len(header, self.header + self.payload).is_none() {
                return VnetHeader::default();
            }
            if !layers.v6 {
                checksum::set_ipv4(&mut header[ETHERNET..layers.l4]);
            }
            if layers.protocol == UDP {
                header[layers.l4 + 4..layers.l4 + 6].copy_from_slice(&l4_len.to_be_bytes());
            }
        }
        // The checksum was verified, so the kernel need not compute it. With the pseudo-header's
        // sum in the field it counts as incomplete, which a receiver on this machine accepts as
        // valid.
        let sum = checksum::pseudo_header(&header[layers.addresses()], layers.protocol, l4_len);
        let at = layers.l4 + layers.checksum_offset();
        header[at..at + 2].copy_from_slice(&checksum::fold(sum).to_ne_bytes());
        vnet
    }
}

/// Returns the low 32 bits of a length.
fn low32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn checksum_is_right(frame: &[u8], layers: Layers) -> bool {
    // A coalesced IPv4 header gets a new checksum, which must not hide a wrong one.
    if !layers.v6 && checksum::fold(checksum::sum(&frame[ETHERNET..layers.l4])) != 0xffff {
        return false;
    }
    let l4 = &frame[layers.l4..];
    // A UDP checksum of zero verifies nothing (RFC 768). The checksum is meaningful only if the
    // length agrees.
    if layers.protocol == UDP
        && (l4[6..8] == [0, 0] || usize::from(u16::from_be_bytes([l4[4], l4[5]])) != l4.len())
    {
        return false;
    }
    let Ok(len) = u16::try_from(l4.len()) else { return false };
    let pseudo = checksum::pseudo_header(&frame[layers.addresses()], layers.protocol, len);
    checksum::fold(pseudo + checksum::sum(l4)) == 0xffff
}

/// Returns whether addresses and ports are equal. Both headers have the same protocol and layer-4
/// offset.
fn same_flow(old: &[u8], new: &[u8], layers: Layers) -> bool {
    let ports = layers.l4..layers.l4 + 4;
    old[..6] == new[..6]
        && old[layers.addresses()] == new[layers.addresses()]
        && old[ports.clone()] == new[ports]
}

/// Compares the other header fields that must not differ. Both headers have the same length.
fn same_header(old: &[u8], new: &[u8], layers: Layers) -> bool {
    let same = |range: std::ops::Range<usize>| old[range.clone()] == new[range];
    let (ip, l4) = (ETHERNET, layers.l4);
    let ip_same = if layers.v6 {
        // Version, class and label; next header and hop limit; extension headers.
        same(ip..ip + 4) && same(ip + 6..ip + 8) && same(ip + 40..l4)
    } else {
        // Version, header length and class; flags, time to live and protocol; options.
        same(ip..ip + 2) && same(ip + 6..ip + 10) && same(ip + 20..l4)
    };
    // Acknowledgement and data offset; flags but FIN and PSH; window; urgent pointer and options.
    let tcp_same = || {
        same(l4 + 8..l4 + 13)
            && (old[l4 + 13] ^ new[l4 + 13]) & !CLOSING == 0
            && same(l4 + 14..l4 + 16)
            && same(l4 + 18..layers.payload)
    };
    ip_same && (layers.protocol == UDP || tcp_same())
}

const _: () = assert!(virtio::LEN == 10);
