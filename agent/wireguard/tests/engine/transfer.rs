//! Data arrives unchanged, however it is segmented on the path.

use std::{net::IpAddr, time::Duration};

use mesh_harness::{
    Capture,
    capture::Frame,
    traffic::{GsoTransfer, Ping, UdpEcho, tcp_transfer},
};
use mesh_wireguard::WireguardEngine;

use crate::pair::{Pair, SOON, Setup, ask, inner, inner6};

const MEBIBYTE: u64 = 1 << 20;
/// First byte of WireGuard's messages that carry packets.
const DATA: u8 = 4;

fn transfer_everything(pair: &Pair, bytes: u64) {
    for (from, to, number) in [(&pair.a, &pair.b, 2), (&pair.b, &pair.a, 1)] {
        for address in [IpAddr::V4(inner(number)), inner6(number)] {
            tcp_transfer(&from.netns, &to.netns, address, bytes).unwrap();
            GsoTransfer::new(1200, 20)
                .bursts(20)
                .run(&from.netns, &to.netns, address)
                .unwrap()
                .all_arrived()
                .unwrap();
        }
    }
}

#[test]
fn tcp_and_udp_bursts_arrive_unchanged_both_ways_over_ipv4() {
    transfer_everything(&Pair::new(), 64 * MEBIBYTE);
}

#[test]
fn tcp_and_udp_bursts_arrive_unchanged_both_ways_over_ipv6() {
    transfer_everything(&Pair::with(Setup { v6: true, ..Setup::default() }), 32 * MEBIBYTE);
}

#[test]
fn devices_without_offloads_transfer_data_unchanged() {
    transfer_everything(
        &Pair::with(Setup { offload_a: false, offload_b: false, ..Setup::default() }),
        8 * MEBIBYTE,
    );
}

#[test]
fn a_device_with_offloads_interoperates_with_one_without() {
    transfer_everything(&Pair::with(Setup { offload_b: false, ..Setup::default() }), 8 * MEBIBYTE);
}

#[test]
fn an_underlay_without_offloads_transfers_data_unchanged() {
    transfer_everything(&Pair::with(Setup { offload_underlay: false, ..Setup::default() }), 16 * MEBIBYTE);
}

#[test]
fn a_transfer_survives_loss_repetition_and_reordering() {
    let pair = Pair::with(Setup { relay: true, ..Setup::default() });
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), MEBIBYTE).unwrap();
    pair.relay.as_ref().unwrap().disturb(3, 20, 40);
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 16 * MEBIBYTE).unwrap();
    tcp_transfer(&pair.b.netns, &pair.a.netns, inner6(1), 16 * MEBIBYTE).unwrap();
}

#[test]
fn packets_of_every_size_up_to_the_mtu_pass_without_fragmentation() {
    for v6 in [false, true] {
        // Without offloads the capture sees each packet: frames that waited for the session leave
        // in one call.
        let pair = Pair::with(Setup { v6, offload_underlay: false, ..Setup::default() });
        let capture = Capture::options().device("u0").start(&pair.b.netns).unwrap();
        let most = pair.a.config.inner_mtu - 28;
        for size in [0, 1, 16, 555, most - 20, most - 1, most] {
            let ping = Ping::new(inner(2).into()).count(2).size(size).dont_fragment();
            ping.run(&pair.a.netns).unwrap().all_answered().unwrap();
        }
        let captured = capture.stop().unwrap();
        assert!(captured.frames.iter().all(|frame| !frame.is_fragment() && frame.len <= 1514));
    }
}

#[test]
fn no_payload_is_readable_on_the_underlay() {
    let canary = b"canary-0123456789";
    let mut pair = Pair::new();
    let capture = Capture::options().device("u0").with_outgoing().start(&pair.b.netns).unwrap();
    let echo = UdpEcho::start(&pair.b.netns, (inner(2), 7000).into()).unwrap();
    assert!(ask(&pair.a.netns, echo.address(), canary, SOON));
    // Repeat without a peer for encryption, and without a device.
    pair.b.engine.remove().unwrap();
    assert!(!ask(&pair.a.netns, echo.address(), canary, Duration::from_millis(300)));
    pair.a.engine.remove().unwrap();
    let gone = Ping::new(inner(2).into()).count(1).wait(Duration::from_millis(300)).run(&pair.a.netns);
    assert!(gone.is_err() || gone.unwrap().none_answered().is_ok());
    let captured = capture.stop().unwrap();
    let is_data = |frame: &&Frame| frame.udp().is_some_and(|udp| udp.payload.first() == Some(&DATA));
    assert!(captured.frames.iter().filter(is_data).count() >= 2, "the exchange was seen");
    assert_eq!(captured.containing(canary).count(), 0);
    assert_eq!(captured.vxlan().count(), 0);
}
