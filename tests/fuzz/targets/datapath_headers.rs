//! Parses a frame as the eBPF programs do, and builds the answers that they send.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_ebpf::headers::{Buffer, Headers, V6};
use mesh_ebpf::ndp::ANSWER;
use mesh_ebpf::refusal::{self, TCP_HEADER};
use mesh_ebpf::vxlan::{OUTER, Outer};
use mesh_ebpf::{ip, transport};
use mesh_ebpf_types::Mac;

/// The first `N` bytes of a frame, padded with zeroes as the programs' buffers are.
fn first<const N: usize>(frame: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let length = frame.len().min(N);
    bytes[..length].copy_from_slice(&frame[..length]);
    bytes
}

fuzz_target!(|frame: &[u8]| {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    for gso in [false, true] {
        let outer = first::<OUTER>(frame);
        if let Some(outer) = Outer::parse(&outer, [10, 0, 0, 1], 4789_u16.to_be_bytes(), length, gso) {
            assert!(outer.vni.number() < 1 << 24);
        }
        let mut headers = Headers::new();
        headers.bytes = first::<V6>(frame);
        let sound = match headers.is_v6() {
            true => headers.check_v6(length.saturating_sub(14), gso),
            false => headers.check_v4(length.saturating_sub(14), gso),
        };
        if sound.is_ok() {
            follow(&headers, frame);
        }
    }
    let mut solicitation = Buffer::<ANSWER>::new();
    solicitation.bytes = first::<ANSWER>(frame);
    if solicitation.is_solicitation() {
        solicitation.answer(Mac([2, 0, 0, 0, 0, 1]), true);
    }
});

/// Follows the extension headers, and answers the transport header.
fn follow(headers: &Headers, frame: &[u8]) {
    let (mut protocol, mut offset) = (headers.next(), 14 + headers.header_length() as usize);
    for _ in 0..8 {
        let Some(rest) = frame.get(offset..) else { return };
        match ip::step(protocol, first(rest)) {
            ip::Next::Header { next, skip } if headers.is_v6() => {
                (protocol, offset) = (next, offset + skip as usize);
            }
            ip::Next::LaterFragment => return,
            _ => break,
        }
    }
    let rest = frame.get(offset..).unwrap_or_default();
    let header = first::<16>(rest);
    let _ = transport::role(protocol, header);
    let ports = transport::ports(protocol, header);
    assert_eq!(transport::swapped(transport::swapped(ports)), ports);
    let payload = u32::try_from(rest.len()).unwrap_or(0).saturating_sub(20);
    if let Some(reset) = refusal::reset(first::<TCP_HEADER>(rest), payload) {
        assert_eq!(refusal::reset(reset, 0), None, "a reset is never answered");
    }
}
