//! Property tests: parsing and building with arbitrary bytes.

use mesh_ebpf::headers::{Buffer, Carries, Headers};
use mesh_ebpf::ip::{self, Next, step};
use mesh_ebpf::vxlan::{self, Encapsulation, OUTER, Outer, Template};
use mesh_ebpf::{arp, checksum, ndp, too_big};
use mesh_ebpf_types::{Address, Mac, Vni};
use proptest::prelude::*;

/// The algorithm as written in RFC 1071, for comparison.
fn reference(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("folded")).to_be_bytes()
}

fn headers(bytes: &[u8]) -> Headers {
    let mut headers = Headers::new();
    headers.bytes.copy_from_slice(bytes);
    headers
}

proptest! {
    #[test]
    fn the_checksum_is_that_of_rfc_1071(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..100) {
        prop_assert_eq!(checksum::finish(checksum::add(0, &bytes)), reference(&bytes));
        // In two parts, the first of even length.
        let (head, tail) = bytes.split_at((cut * 2).min(bytes.len() / 2 * 2));
        prop_assert_eq!(checksum::finish(checksum::add(checksum::add(0, head), tail)), reference(&bytes));
    }

    #[test]
    fn a_sum_in_native_order_gives_the_same_checksum(words in prop::collection::vec(any::<[u8; 2]>(), 1..50)) {
        let native: u32 = words.iter().map(|word| u32::from(u16::from_ne_bytes(*word))).sum();
        prop_assert_eq!(checksum::finish(checksum::from_native(native)), reference(&words.concat()));
    }

    #[test]
    fn a_header_that_passes_its_check_lies_within_the_frame(
        bytes in prop::collection::vec(any::<u8>(), 54), available in 0_u32..2000, version in 0_u8..16,
    ) {
        let mut headers = headers(&bytes);
        headers.bytes[14] = version << 4 | headers.bytes[14] & 0x0f;
        if headers.check_v4(available, false).is_ok() {
            headers.bytes[12..14].copy_from_slice(&[8, 0]);
            prop_assert_eq!(version, 4);
            prop_assert!((20..=available).contains(&headers.header_length()));
            let total = u32::from(u16::from_be_bytes([bytes[16], bytes[17]]));
            prop_assert!((headers.header_length()..=available).contains(&total));
        }
        if headers.check_v6(available, false).is_ok() {
            prop_assert_eq!(version, 6);
            prop_assert!(u32::from(u16::from_be_bytes([bytes[18], bytes[19]])) + 40 <= available);
        }
    }

    #[test]
    fn what_is_encapsulated_is_read_back(
        source in any::<[u8; 4]>(), destination in any::<[u8; 4]>(), port in any::<[u8; 2]>(), number in 0_u32..1 << 24,
        hash in any::<u32>(), traffic_class in any::<u8>(), length in 34_u32..60000,
    ) {
        let vni = Vni::new(number);
        let mut frame = [0; OUTER];
        Encapsulation { source, destination, port, vni, hash, traffic_class, length }.write(&mut frame);
        prop_assert_eq!(reference(&frame[14..34]), [0, 0]);
        let outer = Outer::parse(&frame, destination, port, length + 50, false);
        prop_assert_eq!(outer, Some(Outer { source, vni, plain: true }));
        prop_assert!((32768..61000).contains(&mesh_ebpf_types::source_port(hash)));
        // One byte less than it says.
        prop_assert_eq!(Outer::parse(&frame, destination, port, length + 49, false), None);
    }

    #[test]
    fn an_updated_template_equals_newly_written_headers(
        source in any::<[u8; 4]>(), destination in any::<[u8; 4]>(), port in any::<[u8; 2]>(), number in 0_u32..1 << 24,
        packets in prop::collection::vec((any::<u32>(), any::<u8>(), 34_u32..65000), 1..4),
    ) {
        let outer = Encapsulation {
            source, destination, port, vni: Vni::new(number), hash: 0, traffic_class: 0, length: 0,
        };
        let mut template = Template::new();
        template.set_outer(outer);
        for (hash, traffic_class, length) in packets {
            template.fit(hash, traffic_class, length);
            let mut frame = [0; OUTER];
            Encapsulation { hash, traffic_class, length, ..outer }.write(&mut frame);
            prop_assert_eq!(&template.frame[..OUTER], &frame);
        }
    }

    #[test]
    fn any_outer_header_is_read_without_fault(bytes in any::<[u8; 32]>(), tail in any::<[u8; 18]>(), gso in any::<bool>()) {
        let mut frame = [0; OUTER];
        frame[..32].copy_from_slice(&bytes);
        frame[32..].copy_from_slice(&tail);
        if let Some(outer) = Outer::parse(&frame, [10, 0, 0, 1], [0x12, 0xb5], 200, gso) {
            prop_assert!(outer.vni.number() < 1 << 24);
        }
    }

    #[test]
    fn every_extension_header_advances_the_offset(protocol in any::<u8>(), bytes in any::<[u8; 4]>()) {
        if let Next::Header { skip, .. } = step(protocol, bytes) {
            prop_assert!((8..=2048).contains(&skip) && skip % 4 == 0);
        }
        prop_assert!(![ip::TCP, ip::UDP, ip::ICMPV6].contains(&protocol) || step(protocol, bytes) == Next::Upper);
    }

    #[test]
    fn arp_answers_go_to_the_sender_of_the_request(bytes in prop::collection::vec(any::<u8>(), 42), mac in any::<[u8; 6]>()) {
        let mut frame: arp::Request = Buffer::new();
        frame.bytes.copy_from_slice(&bytes);
        frame.bytes[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        prop_assert!(frame.is_request());
        let target = frame.target();
        frame.answer(Mac(mac));
        prop_assert!(!frame.is_request());
        prop_assert_eq!(frame.mac(0), Mac([bytes[6], bytes[7], bytes[8], bytes[9], bytes[10], bytes[11]]));
        prop_assert_eq!((frame.mac(6), frame.mac(22)), (Mac(mac), Mac(mac)));
        prop_assert_eq!(Address::from_v4(frame.word(28)), target);
    }

    #[test]
    fn advertisements_have_a_valid_checksum(
        bytes in prop::collection::vec(any::<u8>(), 86), mac in any::<[u8; 6]>(), router in any::<bool>(),
        duplicate in any::<bool>(),
    ) {
        let mut frame: ndp::Solicitation = Buffer::new();
        frame.bytes.copy_from_slice(&bytes);
        if duplicate {
            frame.bytes[22..38].fill(0);
        }
        let target = frame.target();
        frame.answer(Mac(mac), router);
        let pseudo = [&frame.bytes[22..54], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
        prop_assert_eq!(reference(&[&pseudo[..], &frame.bytes[54..]].concat()), [0, 0]);
        prop_assert_eq!(frame.target(), target);
        prop_assert_eq!(frame.bytes[58] & 0x40 != 0, !duplicate || bytes[22..38] == [0; 16]);
    }

    #[test]
    fn too_big_messages_have_valid_checksums(quote in prop::collection::vec(any::<u8>(), too_big::QUOTE), mtu in any::<u16>()) {
        let sum = checksum::add(0, &quote);
        let v4 = too_big::v4([10, 0, 0, 5, 10, 0, 0, 6], mtu, sum);
        prop_assert_eq!(reference(&v4[..20]), [0, 0]);
        prop_assert_eq!(reference(&[&v4[20..], &quote].concat()), [0, 0]);
        let mut v6 = [0; too_big::V6_HEADERS];
        too_big::v6(&[7; 32], mtu, sum, &mut v6);
        let pseudo = [&v6[8..40], &[0, 0, 0, 104, 0, 0, 0, 58]].concat();
        prop_assert_eq!(reference(&[&pseudo[..], &v6[40..], &quote].concat()), [0, 0]);
    }
}

#[test]
fn the_ethertype_determines_what_a_frame_carries() {
    let mut headers = Headers::new();
    for (ethertype, carries) in [
        ([8, 0], Carries::V4),
        ([8, 6], Carries::Arp),
        ([0x86, 0xdd], Carries::V6),
        ([0x81, 0], Carries::Other),
    ] {
        headers.bytes[12..14].copy_from_slice(&ethertype);
        assert_eq!(headers.carries(), carries);
    }
}

#[test]
fn ecn_is_copied_according_to_rfc_6040() {
    assert_eq!([0, 1, 2, 3].map(vxlan::outer_ecn), [0, 1, 2, 2]);
    assert_eq!(vxlan::outer_ecn(0b1011_1001), 1);
}

#[test]
fn only_whole_extension_headers_are_followed() {
    assert_eq!(step(0, [17, 0, 0, 0]), Next::Header { next: 17, skip: 8 });
    assert_eq!(step(51, [17, 4, 0, 0]), Next::Header { next: 17, skip: 24 });
    assert_eq!(step(44, [17, 0, 0, 1]), Next::Header { next: 17, skip: 8 });
    assert_eq!(step(44, [17, 0, 0, 8]), Next::LaterFragment);
}
