//! Helpers for scenarios with encrypted networks.

use std::net::Ipv4Addr;

use mesh_harness::capture::Captured;
use mesh_harness::{Container, Encapsulation, Host, Lab, ProcessId, Result, wireguard_engine};

use crate::lab_with_app;

/// Payload that must never be visible on the underlay.
pub const CANARY: &[u8] = b"canary-of-an-encrypted-network";
/// WireGuard's UDP port.
pub const WIREGUARD: u16 = 51820;
/// VNIs of liveness probes, which belong to no network.
pub const PROBES: [u32; 2] = [0x00FF_FFFE, 0x00FF_FFFF];

/// Starts a lab with an encrypted network `app` and a container of it on each host.
pub fn encrypted_lab(hosts: u8) -> Result<(Lab, Vec<Container>)> {
    lab_with_app(hosts, Encapsulation::Direct, &["--encrypted"])
}

/// Asserts that all of the network's traffic crossed the underlay inside WireGuard, and that there
/// was some.
#[track_caller]
pub fn is_only_wireguard(captured: &Captured) {
    assert_eq!(captured.lost, 0, "every frame was looked at");
    assert_eq!(captured.containing(CANARY).count(), 0, "the canary never crosses the underlay");
    let clear: Vec<u32> =
        captured.vxlan().map(|packet| packet.vni).filter(|vni| !PROBES.contains(vni)).collect();
    assert_eq!(clear, [0_u32; 0], "VXLAN is liveness probes only");
    // Probes of the path are shorter than any WireGuard message (its whitepaper, section 5.4).
    let is_inside = |frame: &&mesh_harness::capture::Frame| {
        frame.udp().is_some_and(|udp| udp.dst_port == WIREGUARD && udp.payload.len() >= 32)
    };
    let inside = captured.frames.iter().filter(is_inside);
    assert!(inside.count() > 0, "and the rest went through WireGuard");
}

/// Returns the engine processes of a host.
pub fn engines(host: &Host) -> Vec<ProcessId> {
    let run_dir = host.path().join("run");
    let of_host = |pid: &i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&arguments).into_owned();
        text.contains("mesh-wireguard-engine") && text.contains(&*run_dir.to_string_lossy())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(of_host).filter_map(ProcessId::of).filter(|process| process.is_alive()).collect()
}

/// Returns whether exactly one engine runs on a host.
pub fn runs_engine(host: &Host) -> bool {
    match &*wireguard_engine() {
        "kernel" => {
            host.run(["ip", "link", "show", "type", "wireguard"]).is_ok_and(|o| o.stdout.contains("meshwg0"))
        }
        _ => engines(host).len() == 1,
    }
}

/// Returns whether an address answers a container's pings.
pub fn answers(from: &Container, to: Ipv4Addr) -> bool {
    from.ping(to).is_ok_and(|report| report.received > 0)
}
