//! Interoperability with another implementation: wireguard-go, with the kernel's VXLAN device on
//! it.

use std::{path::Path, process::Command};

use mesh_harness::{
    Process, ip_batch_in, poll_until,
    traffic::{GsoTransfer, Ping, tcp_transfer},
};
use mesh_wireguard::WireguardEngine;

use crate::pair::{Pair, SOON, Setup, VNI, address, inner, mac, tag};

/// Side B with wireguard-go. The process ends when this value is dropped.
struct Foreign {
    _process: Process,
}

impl Foreign {
    fn start(pair: &mut Pair, folder: &Path, endpoint: bool) -> Self {
        let log = folder.join("log");
        let device = format!("wg{}", std::process::id());
        let netns = &pair.b.netns;
        let process = netns
            .cmd(["wireguard-go", "-f", &device])
            .env("LOG_LEVEL", "error")
            .env("WG_PROCESS_FOREGROUND", "1")
            .spawn(&log)
            .unwrap();
        let key = folder.join("key");
        let private = serde_json::to_string(&pair.b.config.keys[0].private).unwrap();
        std::fs::write(&key, private.trim_matches('"')).unwrap();
        let config = pair.b.config.clone();
        let peer = config.peers.values().next().unwrap();
        let mut set = vec!["wg".to_owned(), "set".to_owned(), device.clone()];
        set.extend(["listen-port".to_owned(), config.listen_port.to_string()]);
        set.extend(["private-key".to_owned(), key.display().to_string()]);
        set.extend(["peer".to_owned(), peer.keys[&1].to_string()]);
        set.extend(["allowed-ips".to_owned(), format!("{}/32,{}/32", peer.tunnel_address, peer.sources.odd)]);
        if endpoint {
            set.extend(["endpoint".to_owned(), peer.endpoint.unwrap().to_string()]);
        }
        poll_until(SOON, || netns.run(set.clone()).unwrap().success().then_some(()))
            .unwrap_or_else(|| panic!("wireguard-go: {}", process.log()));
        let mtu = config.inner_mtu;
        ip_batch_in(
            netns,
            &[
                format!("addr add {}/32 dev {device}", config.tunnel_address),
                format!("addr add {}/32 dev {device}", config.sources.odd),
                format!("link set {device} mtu {} up", mtu + 50),
                format!("route add {}/32 dev {device}", peer.tunnel_address),
                format!(
                    "link add meshwg0 type vxlan id {VNI} local {} remote {} dstport 4789 nolearning dev {device}",
                    config.sources.odd, peer.tunnel_address
                ),
                format!("link set meshwg0 mtu {mtu} address {} up", mac(tag())),
            ],
        )
        .unwrap();
        address(netns, 2);
        Self { _process: process }
    }
}

fn with_foreign_b(setup: Setup, endpoint: bool, test: impl FnOnce(&mut Pair)) {
    assert!(
        Command::new("wireguard-go").arg("--version").output().is_ok(),
        "this test needs wireguard-go and wg (packages wireguard-go, wireguard-tools)"
    );
    let folder = tempfile::tempdir().unwrap();
    let mut pair = Pair::without_engines(setup);
    let foreign = Foreign::start(&mut pair, folder.path(), endpoint);
    pair.a.apply();
    address(&pair.a.netns, 1);
    test(&mut pair);
    drop(foreign);
}

fn transfer_everything(pair: &mut Pair) {
    Ping::new(inner(2).into()).count(2).run(&pair.a.netns).unwrap().all_answered().unwrap();
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 16 << 20).unwrap();
    tcp_transfer(&pair.b.netns, &pair.a.netns, inner(1).into(), 16 << 20).unwrap();
    for (from, to, side) in [(&pair.a, &pair.b, 2), (&pair.b, &pair.a, 1)] {
        let bursts = GsoTransfer::new(1200, 10).bursts(10);
        bursts.run(&from.netns, &to.netns, inner(side).into()).unwrap().all_arrived().unwrap();
    }
    let status = pair.a.engine.status().unwrap();
    assert!(status.peers.values().all(|peer| peer.last_handshake.is_some()), "{status:?}");
}

#[test]
fn our_handshake_establishes_a_tunnel_to_wireguard_go() {
    // wireguard-go does not know our endpoint, so it cannot have started the handshake.
    with_foreign_b(Setup::default(), false, transfer_everything);
}

#[test]
fn a_handshake_of_wireguard_go_establishes_a_tunnel_to_us() {
    with_foreign_b(Setup::default(), true, |pair| {
        pair.a.peer().endpoint = None;
        pair.a.apply();
        Ping::new(inner(1).into()).count(2).run(&pair.b.netns).unwrap().all_answered().unwrap();
        transfer_everything(pair);
    });
}

#[test]
fn wireguard_go_interoperates_over_ipv6() {
    with_foreign_b(Setup { v6: true, ..Setup::default() }, true, transfer_everything);
}
