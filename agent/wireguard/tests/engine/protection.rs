//! Invalid packets are dropped and counted.

use std::{net::Ipv4Addr, time::Duration};

use mesh_harness::{
    Capture, eventually,
    traffic::{Ping, UdpEcho, tcp_transfer},
};
use mesh_wireguard::{DropReason, FrameTag, PrivateKey, TunnelSources, WireguardEngine};

use crate::pair::{PEER, Pair, SOON, Setup, VNI, ask, inner, mac};
use crate::relay::Relay;

/// Long enough for an answer that would arrive within a millisecond.
const BRIEF: Duration = Duration::from_millis(500);

fn relayed() -> Pair {
    Pair::with(Setup { relay: true, ..Setup::default() })
}

#[test]
fn packets_of_a_peer_with_another_key_are_dropped() {
    let mut pair = Pair::without_engines(Setup::default());
    let stranger = PrivateKey::generate().unwrap();
    pair.b.peer().keys.insert(1, stranger.public());
    let mut pair = pair.start();
    let echo = UdpEcho::start(&pair.b.netns, (inner(2), 7000).into()).unwrap();
    assert!(!ask(&pair.a.netns, echo.address(), b"hello", BRIEF));
    pair.b.wait_for_drop(DropReason::HandshakeRefused);
    assert_eq!(pair.b.engine.status().unwrap().peers[&PEER].last_handshake, None);
}

#[test]
fn a_peer_cannot_send_from_another_nodes_tunnel_address() {
    let mut pair = Pair::new();
    let echo = UdpEcho::start(&pair.b.netns, (inner(2), 7000).into()).unwrap();
    assert!(ask(&pair.a.netns, echo.address(), b"hello", SOON));
    let own = pair.a.config.sources;
    // The address of another node, and the peer's own address for its other key.
    for odd in [Ipv4Addr::new(10, 9, 0, 99), own.even] {
        let before = pair.b.drops(DropReason::WrongAddress);
        pair.a.config.sources = TunnelSources { odd, even: Ipv4Addr::new(10, 9, 0, 98) };
        pair.a.apply();
        assert!(!ask(&pair.a.netns, echo.address(), b"hello", BRIEF));
        assert!(pair.b.drops(DropReason::WrongAddress) > before);
    }
    pair.a.config.sources = own;
    pair.a.apply();
    assert!(ask(&pair.a.netns, echo.address(), b"hello", SOON));
}

#[test]
fn a_repeated_datagram_is_delivered_once() {
    let mut pair = relayed();
    let echo = UdpEcho::start(&pair.b.netns, (inner(2), 7000).into()).unwrap();
    assert!(ask(&pair.a.netns, echo.address(), b"hello", SOON));
    let relay = pair.relay.as_ref().unwrap();
    relay.record();
    assert!(ask(&pair.a.netns, echo.address(), b"again", SOON));
    let recorded = relay.recorded();
    assert!(!recorded.is_empty());
    for datagram in &recorded {
        relay.inject(datagram);
        relay.inject_from_elsewhere(datagram);
    }
    let replayed = 2 * recorded.len() as u64;
    eventually("count of replays", SOON, || pair.b.drops(DropReason::Replayed) >= replayed).unwrap();
    assert_eq!(pair.b.endpoint(), Some(Relay::endpoints().1), "a replay from elsewhere moves nobody");
}

#[test]
fn a_replayed_handshake_changes_nothing_and_is_answered_by_our_own() {
    let mut pair = Pair::without_engines(Setup { relay: true, ..Setup::default() });
    pair.relay.as_ref().unwrap().record();
    // B does not know A's endpoint, so it is A whose handshake succeeds.
    pair.b.peer().endpoint = None;
    pair.b.apply();
    pair = pair.start();
    let echo = UdpEcho::start(&pair.b.netns, (inner(2), 7000).into()).unwrap();
    assert!(ask(&pair.a.netns, echo.address(), b"hello", SOON));
    let relay = pair.relay.as_ref().unwrap();
    let initiations: Vec<Vec<u8>> = relay.recorded().into_iter().filter(|d| d.first() == Some(&1)).collect();
    assert!(!initiations.is_empty());
    let before = pair.a.engine.status().unwrap().peers[&PEER].rx_bytes;
    for _ in 0..5 {
        relay.inject_from_elsewhere(&initiations[0]);
    }
    eventually("count of replays", SOON, || pair.b.drops(DropReason::Replayed) >= 5).unwrap();
    // B starts one handshake with the A that it knows; a restarted A whose clock was set back needs
    // this.
    eventually("handshake from B", SOON, || pair.a.engine.status().unwrap().peers[&PEER].rx_bytes > before)
        .unwrap();
    assert_eq!(pair.b.endpoint(), Some(Relay::endpoints().1));
    assert!(ask(&pair.a.netns, echo.address(), b"hello", SOON));
}

#[test]
fn arbitrary_and_altered_datagrams_are_counted_and_do_no_harm() {
    let mut pair = relayed();
    let echo = UdpEcho::start(&pair.b.netns, (inner(2), 7000).into()).unwrap();
    assert!(ask(&pair.a.netns, echo.address(), b"hello", SOON));
    let relay = pair.relay.as_ref().unwrap();
    relay.record();
    assert!(ask(&pair.a.netns, echo.address(), b"again", SOON));
    let mut altered = relay.recorded();
    // An unused number, so that it is not treated as a replay.
    for datagram in &mut altered {
        datagram[14] = 0x55;
        relay.inject(datagram);
        for len in [0, 1, 3, 4, 15, 31, 32, datagram.len() - 1] {
            relay.inject(&datagram[..len]);
        }
        datagram[4..8].fill(0xee);
        relay.inject(datagram);
    }
    for kind in 0..=255u8 {
        for len in [1, 4, 64, 92, 148, 1500] {
            let mut datagram = vec![kind; len];
            if let Some(reserved) = datagram.get_mut(1..4) {
                reserved.fill(0);
            }
            relay.inject(&datagram);
        }
    }
    for reason in [DropReason::NotAuthentic, DropReason::UnknownSession, DropReason::NotWireguard] {
        pair.b.wait_for_drop(reason);
    }
    assert!(ask(&pair.a.netns, echo.address(), b"still", SOON));
}

#[test]
fn a_flood_of_handshakes_is_limited_and_traffic_continues() {
    let mut pair = Pair::without_engines(Setup { relay: true, ..Setup::default() });
    pair.relay.as_ref().unwrap().record();
    pair.b.peer().endpoint = None;
    pair.b.apply();
    pair = pair.start();
    let echo = UdpEcho::start(&pair.b.netns, (inner(2), 7000).into()).unwrap();
    assert!(ask(&pair.a.netns, echo.address(), b"hello", SOON));
    let relay = pair.relay.as_ref().unwrap();
    let initiation = relay.recorded().into_iter().find(|d| d.first() == Some(&1)).unwrap();
    for _ in 0..2000 {
        relay.inject_from_elsewhere(&initiation);
    }
    pair.b.wait_for_drop(DropReason::HandshakeLimited);
    assert!(ask(&pair.a.netns, echo.address(), b"hello", SOON));
    let refused = pair.b.drops(DropReason::Replayed);
    assert!(refused <= 200, "{refused} handshakes cost a key agreement");
}

#[test]
fn a_frame_for_an_unknown_peer_is_dropped() {
    let mut pair = Pair::new();
    assert!(Ping::new(inner(2).into()).count(1).run(&pair.a.netns).unwrap().all_answered().is_ok());
    let other = mac(FrameTag { vni: VNI, peer: PEER + 1 });
    pair.a.netns.run(["ip", "link", "set", "meshwg0", "address", &other]).unwrap().ok().unwrap();
    let ping = Ping::new(inner(2).into()).count(1).wait(BRIEF);
    ping.run(&pair.a.netns).unwrap().none_answered().unwrap();
    pair.a.wait_for_drop(DropReason::UnknownPeer);
}

#[test]
fn a_frame_larger_than_the_mtu_is_dropped() {
    let mut pair = Pair::new();
    pair.a.netns.run(["ip", "link", "set", "meshwg0", "mtu", "1500"]).unwrap().ok().unwrap();
    let ping = Ping::new(inner(2).into()).count(1).size(1450).wait(BRIEF);
    ping.run(&pair.a.netns).unwrap().none_answered().unwrap();
    pair.a.wait_for_drop(DropReason::TooBig);
}

#[test]
fn a_packet_larger_than_the_mtu_that_may_be_fragmented_arrives_in_fragments() {
    let pair = Pair::with(Setup { offload_b: false, offload_underlay: false, ..Setup::default() });
    for netns in [&pair.a.netns, &pair.b.netns] {
        // New sockets do not set DF.
        netns.sysctl("net.ipv4.ip_no_pmtu_disc", "1").unwrap();
        netns.run(["ip", "link", "set", "meshwg0", "mtu", "9000"]).unwrap().ok().unwrap();
    }
    let capture = Capture::options().device("u0").start(&pair.b.netns).unwrap();
    for size in [1391, 1450, 3000, 8972] {
        Ping::new(inner(2).into()).count(2).size(size).run(&pair.a.netns).unwrap().all_answered().unwrap();
    }
    let captured = capture.stop().unwrap();
    assert!(captured.frames.iter().all(|frame| !frame.is_fragment() && frame.len <= 1514));
}

#[test]
fn a_peer_that_moves_is_followed_without_losing_the_connection() {
    let mut pair = relayed();
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
    let moved = pair.relay.as_mut().unwrap().move_a();
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
    assert_eq!(pair.b.endpoint(), Some(moved));
    // In this direction nothing would arrive if B still sent to A's old endpoint.
    tcp_transfer(&pair.b.netns, &pair.a.netns, inner(1).into(), 1 << 20).unwrap();
}
