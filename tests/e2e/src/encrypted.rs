//! Words for scenarios with encrypted networks.

use mesh_harness::capture::Captured;
use mesh_harness::{Container, Encapsulation, Lab, Result};

use crate::lab_with_app;

/// What must never be seen on the underlay.
pub const CANARY: &[u8] = b"canary-of-an-encrypted-network";
/// WireGuard's UDP port.
pub const WIREGUARD: u16 = 51820;
/// VNIs of liveness probes, which are no network's.
pub const PROBES: [u32; 2] = [0x00FF_FFFE, 0x00FF_FFFF];

/// A lab with an encrypted network `app` and a container of it on each host.
pub fn encrypted_lab(hosts: u8) -> Result<(Lab, Vec<Container>)> {
    lab_with_app(hosts, Encapsulation::Direct, &["--encrypted"])
}

/// Nothing of the network crossed the underlay but inside WireGuard, and that did.
#[track_caller]
pub fn is_only_wireguard(captured: &Captured) {
    assert_eq!(captured.lost, 0, "every frame was looked at");
    assert_eq!(captured.containing(CANARY).count(), 0, "the canary never crosses the underlay");
    let clear: Vec<u32> =
        captured.vxlan().map(|packet| packet.vni).filter(|vni| !PROBES.contains(vni)).collect();
    assert_eq!(clear, [0_u32; 0], "VXLAN is liveness probes only");
    let inside =
        captured.frames.iter().filter(|frame| frame.udp().is_some_and(|udp| udp.dst_port == WIREGUARD));
    assert!(inside.count() > 0, "and the rest went through WireGuard");
}
