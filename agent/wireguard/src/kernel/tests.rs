use std::time::Duration;

use netlink_packet_wireguard::{WireguardPeer, WireguardPeerAttribute, WireguardTimeSpec};

use super::{messages::changes, *};
use crate::{OwnKey, PeerConfig, PrivateKey};

fn config() -> EngineConfig {
    let key = || PrivateKey::generate().unwrap();
    let peer = |number: u8| PeerConfig {
        endpoint: Some(([192, 0, 2, number], 51820).into()),
        tunnel_address: [10, 9, 0, number].into(),
        keys: BTreeMap::from([(1, key().public())]),
    };
    EngineConfig {
        device: "meshwg0".to_owned(),
        device_index: None,
        listen_port: 51820,
        vxlan_port: 4789,
        inner_mtu: 1390,
        tunnel_address: [10, 9, 0, 1].into(),
        keys: vec![OwnKey { generation: 1, private: key(), active: true }],
        peers: (2..5).map(|number| (u16::from(number), peer(number))).collect(),
    }
}

/// What the kernel would have after these changes, by way of the bytes that it would get.
fn apply(device: &mut Device, messages: Vec<Vec<WireguardAttribute>>) {
    for attributes in messages {
        let request =
            GenlMessage::from_payload(WireguardMessage { cmd: WireguardCmd::SetDevice, attributes });
        let bytes = serialize(request, NLM_F_REQUEST);
        let read: WireguardMessage = deserialize(&bytes).unwrap();
        for attribute in &read.attributes {
            match attribute {
                WireguardAttribute::PrivateKey(key) => {
                    device.public = Some(PublicKey(x25519_public(*key)));
                }
                WireguardAttribute::Peers(peers) => {
                    for WireguardPeer(attributes) in peers {
                        let gone = format!("{attributes:?}").contains("RemoveMe");
                        if gone {
                            let WireguardPeerAttribute::PublicKey(key) = attributes[0] else { panic!() };
                            device.peers.remove(&PublicKey(key));
                        } else if format!("{attributes:?}").contains("ReplaceAllowedIps") {
                            let WireguardPeerAttribute::PublicKey(key) = attributes[0] else { panic!() };
                            device.peers.entry(PublicKey(key)).or_default().allowed = None;
                        }
                        if !gone {
                            let one = [WireguardAttribute::Peers(vec![WireguardPeer(attributes.clone())])];
                            messages::read(&one, SystemTime::now(), device);
                        }
                    }
                }
                other => messages::read(std::slice::from_ref(other), SystemTime::now(), device),
            }
        }
    }
}

fn x25519_public(key: [u8; 32]) -> [u8; 32] {
    boringtun::x25519::PublicKey::from(&boringtun::x25519::StaticSecret::from(key)).to_bytes()
}

/// What the kernel has once it was given that.
fn device_of(config: &EngineConfig) -> Device {
    let mut device = Device::default();
    let messages = changes(config, &BTreeMap::new(), &device);
    apply(&mut device, messages);
    device
}

/// Lets peer 2 be in the middle of replacing its key: the old one and the new one.
fn replace_key(config: &mut EngineConfig) -> (PublicKey, PublicKey) {
    let keys = &mut config.peers.get_mut(&2).unwrap().keys;
    let (old, new) = (keys[&1], PrivateKey::generate().unwrap().public());
    keys.insert(2, new);
    (old, new)
}

#[test]
fn applying_leads_to_the_wanted_device_and_applying_again_changes_nothing() {
    let config = config();
    let device = device_of(&config);
    assert_eq!(device.public, Some(config.keys[0].private.public()));
    assert_eq!(device.listen_port, 51820);
    assert_eq!(device.peers.len(), 3);
    for peer in config.peers.values() {
        let found = &device.peers[&peer.keys[&1]];
        assert_eq!((found.endpoint, found.allowed), (peer.endpoint, Some(peer.tunnel_address)));
    }
    let configured = device.peers.iter().map(|(key, peer)| (*key, peer.endpoint)).collect();
    assert_eq!(changes(&config, &configured, &device), Vec::<Vec<WireguardAttribute>>::new());
}

#[test]
fn a_removed_peer_goes_and_one_that_moved_stays_where_it_is() {
    let mut config = config();
    let mut device = device_of(&config);
    let configured: BTreeMap<_, _> = device.peers.iter().map(|(key, peer)| (*key, peer.endpoint)).collect();
    let moved = config.peers[&3].keys[&1];
    device.peers.get_mut(&moved).unwrap().endpoint = Some(([203, 0, 113, 9], 1234).into());
    config.peers.remove(&2);
    let messages = changes(&config, &configured, &device);
    assert_eq!(messages.len(), 1, "{messages:?}");
    apply(&mut device, messages);
    assert_eq!(device.peers.len(), 2);
    assert_eq!(device.peers[&moved].endpoint, Some(([203, 0, 113, 9], 1234).into()));
}

#[test]
fn the_tunnel_address_follows_the_key_with_the_latest_handshake() {
    let mut config = config();
    let mut device = device_of(&config);
    let (old, new) = replace_key(&mut config);
    device.peers.get_mut(&old).unwrap().last_handshake = Some(Duration::from_secs(50));
    let messages = changes(&config, &BTreeMap::new(), &device);
    apply(&mut device, messages);
    assert_eq!((device.peers[&old].allowed.is_some(), device.peers[&new].allowed.is_some()), (true, false));
    device.peers.get_mut(&new).unwrap().last_handshake = Some(Duration::from_secs(1));
    let messages = changes(&config, &BTreeMap::new(), &device);
    apply(&mut device, messages);
    assert_eq!((device.peers[&old].allowed.is_some(), device.peers[&new].allowed.is_some()), (false, true));
    assert_eq!(messages::status(&config, &device)[&2].generations, Some((1, 2)));
}

#[test]
fn of_two_handshakes_in_one_second_the_later_counts() {
    let mut config = config();
    let (old, new) = replace_key(&mut config);
    let mut device = device_of(&config);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    for (key, nano_seconds) in [(old, 100), (new, 200)] {
        let time = WireguardTimeSpec { seconds: 999, nano_seconds };
        let attributes =
            vec![WireguardPeerAttribute::PublicKey(key.0), WireguardPeerAttribute::LastHandshake(time)];
        let peers = [WireguardAttribute::Peers(vec![WireguardPeer(attributes)])];
        messages::read(&peers, now, &mut device);
    }
    assert_eq!(messages::desired(&config, &device)[&new].allowed, Some(config.peers[&2].tunnel_address));
}

#[test]
fn following_moves_the_tunnel_address_and_nothing_else() {
    let mut config = config();
    let (old, new) = replace_key(&mut config);
    let mut device = device_of(&config);
    assert_eq!(messages::moves(&config, &device), Vec::<Vec<WireguardAttribute>>::new());
    device.peers.get_mut(&new).unwrap().last_handshake = Some(Duration::ZERO);
    // One peer less is not its business.
    config.peers.remove(&4);
    let messages = messages::moves(&config, &device);
    assert_eq!(messages.len(), 1);
    apply(&mut device, messages);
    assert_eq!(device.peers.len(), 4);
    assert_eq!(device.peers[&new].allowed, Some(config.peers[&2].tunnel_address));
    // The kernel takes it from the other key, as an address has one owner.
    device.peers.get_mut(&old).unwrap().allowed = None;
    assert_eq!(messages::moves(&config, &device), Vec::<Vec<WireguardAttribute>>::new());
}

#[test]
fn every_key_of_every_peer_is_greeted_and_none_is_kept_alive_for_long() {
    let mut config = config();
    replace_key(&mut config);
    let mut kept_alive = BTreeMap::new();
    let mut greeted = 0;
    for attribute in messages::greetings(&config).iter().flatten() {
        let WireguardAttribute::Peers(peers) = attribute else { continue };
        for WireguardPeer(attributes) in peers {
            let [
                WireguardPeerAttribute::PublicKey(key),
                _,
                WireguardPeerAttribute::PersistentKeepalive(seconds),
            ] = attributes.as_slice()
            else {
                panic!("{attributes:?}")
            };
            greeted += usize::from(*seconds > 0);
            kept_alive.insert(*key, *seconds);
        }
    }
    assert_eq!((kept_alive.len(), greeted), (4, 4));
    assert!(kept_alive.values().all(|seconds| *seconds == 0));
}

#[test]
fn many_peers_are_sent_in_messages_that_fit() {
    let mut config = config();
    let peer = config.peers[&2].clone();
    config.peers = (0..1000u16)
        .map(|index| {
            let mut key = [7; 32];
            key[..2].copy_from_slice(&index.to_le_bytes());
            (index, PeerConfig { keys: BTreeMap::from([(1, PublicKey(key))]), ..peer.clone() })
        })
        .collect();
    for attributes in changes(&config, &BTreeMap::new(), &Device::default()) {
        let request =
            GenlMessage::from_payload(WireguardMessage { cmd: WireguardCmd::SetDevice, attributes });
        assert!(serialize(request, NLM_F_REQUEST).len() < 60_000);
    }
}

#[test]
fn the_trial_agrees_with_what_the_kernel_lets_us_make_and_leaves_nothing() {
    // A kernel with WireGuard is tested by what uses it; without, everything must say so.
    match try_kernel_wireguard() {
        Ok(()) => assert!(KernelEngine::new().is_ok()),
        Err(error) => {
            println!(
                "this kernel's WireGuard does not work, its engine is tested up to the messages: {error}"
            );
            assert!(matches!(error, Error::NoKernelWireguard), "{error}");
            assert!(matches!(KernelEngine::new(), Err(Error::NoKernelWireguard)));
            assert!(matches!(link::create("mwgprobe0", None), Err(Error::NoKernelWireguard)));
        }
    }
    assert!(if_nametoindex(sample().unwrap().device.as_str()).is_err());
    sample().unwrap().validate().unwrap();
}
