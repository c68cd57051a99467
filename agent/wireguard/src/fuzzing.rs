//! Entry points for the fuzz targets in `tests/fuzz`.

use std::net::Ipv4Addr;

use crate::packet::virtio::VnetHeader;
use crate::packet::{Cut, Fragments, FrameTag, Joiner, flow_hash};

const LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 64, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(169, 254, 64, 2);
const PORT: u16 = 4789;

/// Segments a frame from the TAP device, and fragments the results.
pub fn frame(bytes: &[u8]) {
    let Some((vnet, frame)) = VnetHeader::split(bytes) else { return };
    let _ = (FrameTag::of(frame), flow_hash(frame));
    let Some(cut) = Cut::new(&vnet, frame) else { return };
    let mut segment = vec![0; cut.longest()];
    for index in 0..cut.count().min(128) {
        let Some(length) = cut.write(index, &mut segment) else { continue };
        assert!(length <= cut.longest(), "a segment is longer than announced");
        fragment(&segment[..length]);
    }
}

fn fragment(frame: &[u8]) {
    let Some(fragments) = Fragments::new(frame, 1414) else { return };
    let mut out = vec![0; 1414];
    for index in 0..fragments.count().min(64) {
        if let Some(length) = fragments.write(index, &mut out) {
            assert!(length <= 1414, "a fragment exceeds the MTU");
        }
    }
}

/// Coalesces decrypted packets of one peer. The first two bytes of each are its length.
pub fn packets(mut bytes: &[u8]) {
    let mut joiner = Joiner::new(1 << 17, true);
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len()).min(joiner.room().len());
        joiner.room()[..length].copy_from_slice(&rest[..length]);
        let _ = joiner.push(length, 7, PEER, LOCAL, PORT);
        bytes = &rest[length..];
    }
    joiner.drain(|frame| assert!(frame.slices.len() >= 2, "a frame has a virtio header and headers"));
}
