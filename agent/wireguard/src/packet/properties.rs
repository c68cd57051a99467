//! Property tests of segmentation and coalescing, with arbitrary and malformed input.

use std::net::Ipv4Addr;

use proptest::{collection::vec, prelude::*};

use super::{
    NotOurs::{Address, Fragment, NotVxlan},
    checksum,
    join::Joiner,
    layers::{ETHERNET, Layers, TCP, UDP},
    segment::Cut,
    tag::FrameTag,
    virtio::{self, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader},
    vxlan::{self, Encapsulation},
};

const FROM: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const TO: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PORT: u16 = 4789;
const PEER: u16 = 3;

/// A packet as a container's stack sends it: with an incomplete checksum, possibly larger than any
/// MTU.
#[derive(Debug, Clone)]
struct Super {
    v6: bool,
    tcp: bool,
    flags: u8,
    options: usize,
    extension: bool,
    size: usize,
    payload: Vec<u8>,
    sequence: u32,
}

impl Super {
    fn strategy() -> impl Strategy<Value = Self> {
        let payload = prop_oneof![
            vec(any::<u8>(), 1..3000),
            (1usize..64_000, any::<u8>()).prop_map(|(len, seed)| {
                (0..len).map(|i| (i * 7 + usize::from(seed)).to_le_bytes()[0]).collect()
            })
        ];
        let bits = (any::<bool>(), any::<bool>(), 0u8..=255, 0usize..10, any::<bool>());
        (bits, 1usize..1400, payload, any::<u32>()).prop_map(
            |((v6, tcp, flags, options, extension), size, payload, sequence)| {
                // Super-packets have no SYN, RST or URG; UDP has at most 64 segments in one.
                let flags = flags & !0x26 | 0x10;
                let size = if tcp { size.max(16) } else { size.max(payload.len().div_ceil(64)) };
                Self {
                    v6,
                    tcp,
                    flags,
                    options: options * 4,
                    extension: extension && v6,
                    size,
                    payload,
                    sequence,
                }
            },
        )
    }

    fn is_super(&self) -> bool {
        self.payload.len() > self.size
    }

    fn header(&self) -> usize {
        let ip = if self.v6 { 40 } else { 20 };
        ETHERNET + ip + if self.extension { 8 } else { 0 } + if self.tcp { 20 + self.options } else { 8 }
    }

    /// Returns the frame with an incomplete checksum, and its description.
    fn frame(&self) -> (VnetHeader, Vec<u8>) {
        let mut f = FrameTag { vni: 77, peer: PEER }.mac().to_vec();
        f.splice(0..0, [2, 0x42, 10, 0, 0, 2]);
        let l4_len = self.header() - ETHERNET - if self.v6 { 40 } else { 20 } + self.payload.len();
        let protocol = if self.tcp { TCP } else { UDP };
        if self.v6 {
            f.extend([0x86, 0xdd, 0x60, 1, 2, 3]);
            f.extend(u16::try_from(l4_len).unwrap().to_be_bytes());
            f.extend([if self.extension { 60 } else { protocol }, 64]);
            f.extend([
                0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0, 2,
            ]);
            if self.extension {
                f.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
            }
        } else {
            f.extend([0x08, 0, 0x45, 0]);
            f.extend(u16::try_from(l4_len + 20).unwrap().to_be_bytes());
            f.extend([0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            checksum::set_ipv4(&mut f[ETHERNET..ETHERNET + 20]);
        }
        let l4 = f.len();
        f.extend([0x12, 0x34, 0x56, 0x78]);
        if self.tcp {
            f.extend(self.sequence.to_be_bytes());
            f.extend([
                0,
                0,
                0,
                9,
                u8::try_from(((20 + self.options) / 4) << 4).unwrap(),
                self.flags,
                1,
                0,
                0,
                0,
                0,
                0,
            ]);
            f.extend((0..self.options).map(|_| 1));
        } else {
            f.extend(u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes());
            f.extend([0, 0]);
        }
        f.extend(&self.payload);
        let layers = Layers::of(&f).unwrap();
        let len = u16::try_from(f.len() - l4).unwrap();
        let sum = checksum::fold(checksum::pseudo_header(&f[layers.addresses()], protocol, len));
        let offset = layers.checksum_offset();
        f[l4 + offset..l4 + offset + 2].copy_from_slice(&sum.to_ne_bytes());
        let gso_type = match (self.is_super(), self.tcp, self.v6) {
            (false, ..) => GSO_NONE,
            (_, true, false) => GSO_TCPV4,
            (_, true, true) => GSO_TCPV6,
            (_, false, _) => GSO_UDP_L4,
        };
        let vnet = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            // An allowed wrong value.
            hdr_len: 1,
            gso_size: if self.is_super() { u16::try_from(self.size).unwrap() } else { 0 },
            csum_start: u16::try_from(l4).unwrap(),
            csum_offset: u16::try_from(offset).unwrap(),
        };
        (vnet, f)
    }
}

fn cut_all(vnet: &VnetHeader, frame: &[u8]) -> Vec<Vec<u8>> {
    let cut = Cut::new(vnet, frame).unwrap();
    let mut out = vec![0; cut.longest()];
    (0..cut.count())
        .map(|i| {
            let len = cut.write(i, &mut out).unwrap();
            out[..len].to_vec()
        })
        .collect()
}

/// Passes frames through VXLAN and the joiner; returns the writes to the device.
fn join_all(frames: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut joiner = Joiner::new(1 << 20, true);
    for frame in frames {
        let headers = Encapsulation::new(FROM, TO, PORT, 77, 1);
        let len = vxlan::HEADERS + frame.len();
        let room = joiner.room();
        room[vxlan::HEADERS..len].copy_from_slice(frame);
        headers.write(&mut room[..len], len, 5).unwrap();
        joiner.push(len, PEER, FROM, TO, PORT).unwrap();
    }
    let mut written = Vec::new();
    joiner.drain(|frame| {
        let bytes: Vec<u8> = frame.slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let (vnet, frame) = VnetHeader::split(&bytes).unwrap();
        written.push((vnet, frame.to_vec()));
    });
    written
}

fn l4_checksum_is_right(frame: &[u8]) -> bool {
    let layers = Layers::of(frame).unwrap();
    let l4 = &frame[layers.l4..];
    let len = u16::try_from(l4.len()).unwrap();
    let pseudo = checksum::pseudo_header(&frame[layers.addresses()], layers.protocol, len);
    checksum::fold(pseudo + checksum::sum(l4)) == 0xffff
}

proptest! {
    #[test]
    fn segments_are_complete_packets_with_valid_checksums_within_the_limit(packet in Super::strategy()) {
        let (vnet, frame) = packet.frame();
        let cut = Cut::new(&vnet, &frame).unwrap();
        let segments = cut_all(&vnet, &frame);
        prop_assert_eq!(segments.len(), if packet.is_super() { packet.payload.len().div_ceil(packet.size) } else { 1 });
        let mut payload: Vec<u8> = Vec::new();
        for (i, segment) in segments.iter().enumerate() {
            let layers = Layers::of(segment).unwrap();
            prop_assert_eq!(layers.stated_len(segment), segment.len());
            prop_assert!(segment.len() <= cut.longest());
            prop_assert!(l4_checksum_is_right(segment));
            if !packet.v6 {
                prop_assert_eq!(checksum::fold(checksum::sum(&segment[ETHERNET..ETHERNET + 20])), 0xffff);
            }
            if packet.tcp {
                let l4 = &segment[layers.l4..];
                let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
                prop_assert_eq!(sequence, packet.sequence.wrapping_add(u32::try_from(payload.len()).unwrap()));
                let (first, last) = (i == 0, i + 1 == segments.len());
                prop_assert_eq!(l4[13] & 0x80 != 0, packet.flags & 0x80 != 0 && first);
                prop_assert_eq!(l4[13] & 0x09, if last { packet.flags & 0x09 } else { 0 });
            }
            payload.extend(&segment[layers.payload..]);
        }
        prop_assert_eq!(payload, packet.payload);
    }

    #[test]
    fn coalescing_segments_restores_the_original_packets(packet in Super::strategy()) {
        // CWR on the first segment only makes it different from the others, so it is not coalesced.
        let packet = Super { flags: packet.flags & 0x7f, ..packet };
        let (vnet, frame) = packet.frame();
        let joined = join_all(&cut_all(&vnet, &frame));
        let mut payload: Vec<u8> = Vec::new();
        for (vnet, part) in &joined {
            prop_assert!(part.len() <= ETHERNET + 65535);
            prop_assert_eq!(vnet.flags, NEEDS_CSUM);
            let again = cut_all(vnet, part);
            prop_assert!(again.iter().all(|segment| l4_checksum_is_right(segment)));
            payload.extend(&part[Layers::of(part).unwrap().payload..]);
        }
        prop_assert_eq!(payload, packet.payload.clone());
        let segments = packet.payload.len().div_ceil(packet.size);
        let at_least = segments.div_ceil(64);
        if packet.header() + packet.payload.len() <= 65535 && segments <= 64 {
            prop_assert_eq!(joined.len(), 1);
            prop_assert_eq!(joined[0].1.len(), frame.len());
            prop_assert_eq!(joined[0].0.gso_type, vnet.gso_type);
            prop_assert_eq!(joined[0].0.gso_size, vnet.gso_size);
            // Compare all but the MACs and the checksum field, which holds the same sum.
            prop_assert_eq!(&joined[0].1[12..], &frame[12..]);
        } else {
            prop_assert!(joined.len() >= at_least);
        }
    }

    #[test]
    fn packets_of_a_flow_keep_their_order_among_other_packets(
        order in vec((0u8..3, 1usize..200, any::<bool>()), 1..80),
    ) {
        let mut sequences = [0u32; 3];
        let mut sent: [Vec<u8>; 3] = Default::default();
        let frames: Vec<Vec<u8>> = order
            .iter()
            .map(|(flow, len, push)| {
                let i = usize::from(*flow);
                let payload: Vec<u8> = (0..*len).map(|b| b.to_le_bytes()[0] ^ *flow).collect();
                let packet = Super {
                    v6: false, tcp: true, flags: 0x10 | if *push { 8 } else { 0 }, options: 0, extension: false,
                    size: 1400, payload: payload.clone(), sequence: sequences[i],
                };
                sequences[i] += u32::try_from(*len).unwrap();
                sent[i].extend(payload);
                let (vnet, mut frame) = packet.frame();
                frame = cut_all(&vnet, &frame).remove(0);
                // Give each flow its own destination port, and adjust the checksum.
                let l4 = ETHERNET + 20;
                frame[l4 + 3] = *flow;
                frame[l4 + 16..l4 + 18].fill(0);
                let len = u16::try_from(frame.len() - l4).unwrap();
                let sum = checksum::pseudo_header(&frame[ETHERNET + 12..ETHERNET + 20], TCP, len);
                let sum = !checksum::fold(sum + checksum::sum(&frame[l4..]));
                frame[l4 + 16..l4 + 18].copy_from_slice(&sum.to_ne_bytes());
                frame
            })
            .collect();
        let mut got: [Vec<u8>; 3] = Default::default();
        for (_, frame) in join_all(&frames) {
            let layers = Layers::of(&frame).unwrap();
            let flow = usize::from(frame[layers.l4 + 3]);
            let l4 = &frame[layers.l4..];
            let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            prop_assert_eq!(sequence, u32::try_from(got[flow].len()).unwrap());
            got[flow].extend(&frame[layers.payload..]);
        }
        prop_assert_eq!(got, sent);
    }

    #[test]
    fn a_wrong_checksum_is_never_marked_as_verified(
        packet in Super::strategy(),
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
    ) {
        let (vnet, frame) = packet.frame();
        let mut segments = cut_all(&vnet, &frame);
        let which = which.index(segments.len());
        let broken = &mut segments[which];
        let payload = broken.len() - packet.header();
        let at = broken.len() - 1 - at.index(payload);
        broken[at] ^= 0x55;
        let broken = broken.clone();
        let joined = join_all(&segments);
        let alone = joined.iter().find(|(_, frame)| frame[12..] == broken[12..]);
        prop_assert_eq!(alone.map(|(vnet, _)| *vnet), Some(VnetHeader::default()));
    }

    #[test]
    fn arbitrary_input_from_the_device_is_refused_or_segmented(
        bytes in vec(any::<u8>(), 0..400),
        flip in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        packet in Super::strategy(),
        truncate in any::<prop::sample::Index>(),
    ) {
        let (vnet, frame) = packet.frame();
        let mut real = vnet.bytes().to_vec();
        real.extend(frame);
        for (at, value) in flip {
            let at = at.index(real.len().min(80));
            real[at] = value;
        }
        real.truncate(truncate.index(real.len() + 1));
        for bytes in [bytes, real] {
            let Some((vnet, frame)) = VnetHeader::split(&bytes) else { continue };
            let Some(cut) = Cut::new(&vnet, frame) else { continue };
            let mut out = vec![0; 70_000];
            for i in 0..cut.count().min(200) {
                if let Some(len) = cut.write(i, &mut out) {
                    prop_assert!(len <= cut.longest());
                }
            }
            prop_assert_eq!(cut.write(cut.count(), &mut out), None);
        }
    }

    #[test]
    fn arbitrary_input_from_a_peer_is_refused_or_passed_on(
        bytes in vec(any::<u8>(), 0..300),
        flip in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        packets in vec(Super::strategy(), 1..4),
        truncate in any::<prop::sample::Index>(),
    ) {
        let mut joiner = Joiner::new(1 << 20, true);
        let mut length = 0;
        for (i, packet) in packets.iter().enumerate() {
            let (vnet, frame) = packet.frame();
            for mut frame in cut_all(&vnet, &frame).into_iter().take(10) {
                let headers = Encapsulation::new(FROM, TO, PORT, 77, 1);
                if i == 0 {
                    for (at, value) in &flip {
                        let at = at.index(frame.len().min(100));
                        frame[at] = *value;
                    }
                    frame.truncate(truncate.index(frame.len() + 1));
                }
                let len = vxlan::HEADERS + frame.len();
                let room = joiner.room();
                room[vxlan::HEADERS..len].copy_from_slice(&frame);
                headers.write(&mut room[..len], len, 5).unwrap();
                if joiner.push(len, PEER, FROM, TO, PORT).is_ok() {
                    length += frame.len();
                }
            }
        }
        joiner.room()[..bytes.len()].copy_from_slice(&bytes);
        prop_assert!(joiner.push(bytes.len(), PEER, FROM, TO, PORT).is_err());
        let mut written = 0;
        joiner.drain(|frame| {
            let len = frame.slices.iter().map(|slice| slice.len()).sum::<usize>() - virtio::LEN;
            assert!(len <= ETHERNET + 65535);
            written += len;
        });
        prop_assert!(written <= length);
    }
}

#[test]
fn only_the_peers_own_tunnel_address_is_accepted() {
    let mut joiner = Joiner::new(4096, true);
    let mut put = |from: Ipv4Addr, to: Ipv4Addr, port: u16, change: fn(&mut [u8])| {
        let len = vxlan::HEADERS + 60;
        let room = joiner.room();
        room[..len].fill(0);
        Encapsulation::new(from, to, port, 77, 1).write(&mut room[..len], len, 1).unwrap();
        change(room);
        joiner.push(len, PEER, FROM, TO, PORT)
    };
    let other = Ipv4Addr::new(10, 9, 0, 3);
    assert_eq!(put(FROM, TO, PORT, |_| ()), Ok(()));
    assert_eq!(put(other, TO, PORT, |_| ()), Err(Address));
    assert_eq!(put(FROM, other, PORT, |_| ()), Err(Address));
    assert_eq!(put(FROM, TO, 53, |_| ()), Err(NotVxlan));
    assert_eq!(put(FROM, TO, PORT, |p| p[28] = 0), Err(NotVxlan));
    assert_eq!(put(FROM, TO, PORT, |p| p[6] |= 0x20), Err(Fragment));
    assert_eq!(put(FROM, TO, PORT, |p| p[9] = 6), Err(NotVxlan));
}

#[test]
fn frames_from_a_peer_have_its_index_and_network_in_the_source_mac() {
    let packet = Super {
        v6: false,
        tcp: false,
        flags: 0,
        options: 0,
        extension: false,
        size: 1400,
        payload: vec![1; 50],
        sequence: 0,
    };
    let (vnet, frame) = packet.frame();
    let joined = join_all(&cut_all(&vnet, &frame));
    assert_eq!(FrameTag::of(&joined[0].1), Some(FrameTag { vni: 77, peer: PEER }));
    assert_eq!(joined[0].1[..6], frame[..6], "the destination is left as it was");
}

/// Recomputes the checksums of a TCP segment over IPv4.
fn repair(frame: &mut [u8]) {
    let l4 = ETHERNET + usize::from(frame[ETHERNET] & 15) * 4;
    checksum::set_ipv4(&mut frame[ETHERNET..l4]);
    frame[l4 + 16..l4 + 18].fill(0);
    let len = u16::try_from(frame.len() - l4).unwrap();
    let pseudo = checksum::pseudo_header(&frame[ETHERNET + 12..ETHERNET + 20], frame[ETHERNET + 9], len);
    let sum = !checksum::fold(pseudo + checksum::sum(&frame[l4..]));
    frame[l4 + 16..l4 + 18].copy_from_slice(&sum.to_ne_bytes());
}

#[test]
fn segments_with_different_headers_are_not_coalesced() {
    let packet = Super {
        v6: false,
        tcp: true,
        flags: 0x10,
        options: 12,
        extension: false,
        size: 100,
        payload: vec![7; 200],
        sequence: u32::MAX - 50,
    };
    let (vnet, frame) = packet.frame();
    let segments = cut_all(&vnet, &frame);
    assert_eq!(join_all(&segments).len(), 1, "as they are, they are joined");
    let l4 = ETHERNET + 20;
    // Lengths, identification and checksums differ anyway, or are rewritten.
    let free = [2, 3, 4, 5, 10, 11].map(|at| ETHERNET + at).into_iter().chain([l4 + 16, l4 + 17]);
    // The source MAC is the tag; version and header lengths locate the other fields.
    let structure = (6..14).chain([ETHERNET, ETHERNET + 9, l4 + 12]);
    let skip: Vec<usize> = free.chain(structure).collect();
    for at in (0..packet.header()).filter(|at| !skip.contains(at)) {
        for bit in [0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01] {
            let closing = at == l4 + 13 && bit & 0x09 != 0;
            if closing {
                continue;
            }
            let mut changed = segments.clone();
            changed[1][at] ^= bit;
            repair(&mut changed[1]);
            let joined = join_all(&changed);
            assert_eq!(joined.len(), 2, "byte {at}, bit {bit:#x}");
            assert_eq!(joined[1].1[20..l4 + 16], changed[1][20..l4 + 16], "byte {at} is passed on");
        }
    }
}

#[test]
fn a_pushed_segment_closes_its_super_packet() {
    let segment = |sequence: u32, flags: u8| {
        let packet = Super {
            v6: true,
            tcp: true,
            flags,
            options: 0,
            extension: false,
            size: 1400,
            payload: vec![1; 10],
            sequence,
        };
        let (vnet, frame) = packet.frame();
        cut_all(&vnet, &frame).remove(0)
    };
    let joined = join_all(&[segment(0, 0x10), segment(10, 0x18), segment(20, 0x10), segment(30, 0x11)]);
    assert_eq!(joined.len(), 2);
    let flags = |frame: &[u8]| frame[Layers::of(frame).unwrap().l4 + 13];
    assert_eq!((flags(&joined[0].1), flags(&joined[1].1)), (0x18, 0x11));
}
