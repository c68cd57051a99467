use std::{collections::BTreeSet, time::Duration};

use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_wireguard::{WireguardPeer, WireguardPeerAttribute, WireguardTimeSpec};

use super::{messages::changes, *};
use crate::{OwnKey, PeerConfig, PrivateKey, TunnelSources};

fn sources(number: u8) -> TunnelSources {
    TunnelSources { even: [10, 9, 2, number].into(), odd: [10, 9, 1, number].into() }
}

fn config() -> EngineConfig {
    let key = || PrivateKey::generate().unwrap();
    let peer = |number: u8| PeerConfig {
        endpoint: Some(([192, 0, 2, number], 51820).into()),
        tunnel_address: [10, 9, 0, number].into(),
        sources: sources(number),
        keys: BTreeMap::from([(1, key().public())]),
    };
    EngineConfig {
        device: "meshwg0".to_owned(),
        device_index: None,
        listen_port: 51820,
        vxlan_port: 4789,
        inner_mtu: 1390,
        tunnel_address: [10, 9, 0, 1].into(),
        sources: sources(1),
        keys: vec![OwnKey { generation: 1, private: key(), active: true }],
        peers: (2..5).map(|number| (u16::from(number), peer(number))).collect(),
    }
}

/// The bytes of a request that sets the device up.
fn serialized(attributes: Vec<WireguardAttribute>) -> Vec<u8> {
    let request = GenlMessage::from_payload(WireguardMessage { cmd: WireguardCmd::SetDevice, attributes });
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// What the kernel would have after these changes, by way of the bytes that it would get.
fn apply(device: &mut Device, messages: Vec<Vec<WireguardAttribute>>) {
    for attributes in messages {
        let read: GenlMessage<WireguardMessage> = parse(&serialized(attributes)).unwrap();
        for attribute in &read.payload.attributes {
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
                            device.peers.entry(PublicKey(key)).or_default().allowed.clear();
                        }
                        if !gone {
                            let one = [WireguardAttribute::Peers(vec![WireguardPeer(attributes.clone())])];
                            let mut said = Device::default();
                            messages::read(&one, SystemTime::now(), &mut said);
                            // An address has one owner.
                            for address in said.peers.values().flat_map(|peer| &peer.allowed) {
                                for peer in device.peers.values_mut() {
                                    peer.allowed.remove(address);
                                }
                            }
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

/// Returns the kernel's device after this configuration.
fn device_of(config: &EngineConfig) -> Device {
    let mut device = Device::default();
    let messages = changes(config, &BTreeMap::new(), &device);
    apply(&mut device, messages);
    device
}

/// Makes peer 2 rotate its key; returns the old and the new key.
fn replace_key(config: &mut EngineConfig) -> (PublicKey, PublicKey) {
    let keys = &mut config.peers.get_mut(&2).unwrap().keys;
    let (old, new) = (keys[&1], PrivateKey::generate().unwrap().public());
    keys.insert(2, new);
    (old, new)
}

#[test]
fn applying_leads_to_the_desired_device_and_applying_again_changes_nothing() {
    let config = config();
    let device = device_of(&config);
    assert_eq!(device.public, Some(config.keys[0].private.public()));
    assert_eq!(device.listen_port, 51820);
    assert_eq!(device.mark, mesh_ebpf_types::MARK);
    assert_eq!(device.peers.len(), 3);
    for peer in config.peers.values() {
        let found = &device.peers[&peer.keys[&1]];
        let addresses = BTreeSet::from([peer.tunnel_address, peer.sources.odd]);
        assert_eq!((found.endpoint, &found.allowed), (peer.endpoint, &addresses));
    }
    let configured = device.peers.iter().map(|(key, peer)| (*key, peer.endpoint)).collect();
    assert_eq!(changes(&config, &configured, &device), Vec::<Vec<WireguardAttribute>>::new());
}

#[test]
fn a_removed_peer_is_deleted_and_one_that_moved_keeps_its_endpoint() {
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
    let address = config.peers[&2].tunnel_address;
    let has = |device: &Device, key| device.peers[&key].allowed.contains(&address);
    assert_eq!((has(&device, old), has(&device, new)), (true, false));
    device.peers.get_mut(&new).unwrap().last_handshake = Some(Duration::from_secs(1));
    let messages = changes(&config, &BTreeMap::new(), &device);
    apply(&mut device, messages);
    assert_eq!((has(&device, old), has(&device, new)), (false, true));
    assert_eq!(messages::status(&config, &device, None)[&2].generations, Some((1, 2)));
}

#[test]
fn each_of_a_peers_keys_may_send_from_its_own_address_all_the_time() {
    let mut config = config();
    let mut device = device_of(&config);
    let (old, new) = replace_key(&mut config);
    let sources = config.peers[&2].sources;
    let step = |config: &EngineConfig, device: &mut Device| {
        for message in changes(config, &BTreeMap::new(), device) {
            apply(device, vec![message.clone()]);
            // The address must not be missing even between two messages, or two peers of one
            // message.
            assert!(!format!("{message:?}").contains("ReplaceAllowedIps"));
        }
        assert!(device.peers[&new].allowed.contains(&sources.even));
    };
    for handshake in [None, Some(Duration::ZERO)] {
        device.peers.entry(new).or_default().last_handshake = handshake;
        step(&config, &mut device);
        assert!(device.peers[&old].allowed.contains(&sources.odd));
        assert!(!device.peers[&new].allowed.contains(&sources.odd));
    }
    config.peers.get_mut(&2).unwrap().keys.remove(&1);
    step(&config, &mut device);
    assert!(!device.peers.contains_key(&old));
    assert_eq!(device.peers[&new].allowed, [config.peers[&2].tunnel_address, sources.even].into());
}

#[test]
fn the_tunnel_address_always_has_an_owner_while_a_key_is_removed() {
    let mut config = config();
    let (old, new) = replace_key(&mut config);
    let mut device = device_of(&config);
    let configured = device.peers.iter().map(|(key, peer)| (*key, peer.endpoint)).collect();
    config.peers.get_mut(&2).unwrap().keys.remove(&1);
    let messages = changes(&config, &configured, &device);
    let [message] = messages.as_slice() else { panic!("{messages:?}") };
    let peers = message.iter().find_map(|attribute| match attribute {
        WireguardAttribute::Peers(peers) => Some(peers.iter().map(|peer| peer.0[0].clone())),
        _ => None,
    });
    let keys: Vec<_> = peers.unwrap().collect();
    assert_eq!(keys, [new, old].map(|key| WireguardPeerAttribute::PublicKey(key.0)), "taken, then removed");
    apply(&mut device, messages);
    assert!(device.peers[&new].allowed.contains(&config.peers[&2].tunnel_address));
}

#[test]
fn an_address_without_an_owner_is_removed() {
    let mut config = config();
    let mut device = device_of(&config);
    let peer = config.peers.get_mut(&2).unwrap();
    (peer.tunnel_address, peer.sources) = ([10, 9, 0, 9].into(), sources(9));
    let key = peer.keys[&1];
    let messages = changes(&config, &BTreeMap::new(), &device);
    apply(&mut device, messages);
    assert_eq!(device.peers[&key].allowed, [[10, 9, 0, 9].into(), sources(9).odd].into());
}

#[test]
fn a_session_counts_for_the_own_key_that_made_it_until_it_expires() {
    let mut config = config();
    let mut device = device_of(&config);
    let theirs = config.peers[&2].keys[&1];
    let own = OwnKey { generation: 2, private: PrivateKey::generate().unwrap(), active: true };
    config.keys.push(own);
    let mut replaced = messages::replaced(&config, &device).unwrap();
    assert_eq!(replaced.before, Some(1));
    replaced.at = replaced.at.checked_sub(Duration::from_secs(30)).unwrap();
    let mut generations = |age: Option<u64>| {
        device.peers.get_mut(&theirs).unwrap().last_handshake = age.map(Duration::from_secs);
        let silent = messages::others_of_silent(&config, &device, &replaced);
        assert!(silent.is_empty(), "it has no other key");
        messages::status(&config, &device, Some(&replaced))[&2].generations
    };
    let seen = [None, Some(40), Some(20), Some(200)].map(&mut generations);
    assert_eq!(seen, [None, Some((1, 1)), Some((2, 1)), None]);
    let messages = changes(&config, &BTreeMap::new(), &device);
    apply(&mut device, messages);
    assert!(messages::replaced(&config, &device).is_none());
}

#[test]
fn peers_are_contacted_with_the_key_in_use_and_silent_ones_with_others() {
    let mut config = config();
    let (old, new) = replace_key(&mut config);
    let mut device = device_of(&config);
    let age = |device: &mut Device, key, seconds| {
        device.peers.get_mut(&key).unwrap().last_handshake = Some(Duration::from_secs(seconds));
    };
    age(&mut device, old, 50);
    config.keys.push(OwnKey { generation: 2, private: PrivateKey::generate().unwrap(), active: true });
    let mut replaced = messages::replaced(&config, &device).unwrap();
    replaced.at = replaced.at.checked_sub(Duration::from_secs(30)).unwrap();
    let in_use = messages::in_use(&config, &device);
    assert_eq!((in_use.len(), in_use.contains(&old), in_use.contains(&new)), (3, true, false));
    assert_eq!(messages::others_of_silent(&config, &device, &replaced), [new]);
    age(&mut device, old, 10);
    assert!(messages::others_of_silent(&config, &device, &replaced).is_empty());
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
    assert!(messages::desired(&config, &device)[&new].allowed.contains(&config.peers[&2].tunnel_address));
}

#[test]
fn following_moves_the_tunnel_address_and_nothing_else() {
    let mut config = config();
    let (old, new) = replace_key(&mut config);
    let mut device = device_of(&config);
    assert_eq!(messages::moves(&config, &device), Vec::<Vec<WireguardAttribute>>::new());
    device.peers.get_mut(&new).unwrap().last_handshake = Some(Duration::ZERO);
    // Removed peers do not concern this function.
    config.peers.remove(&4);
    let messages = messages::moves(&config, &device);
    assert_eq!(messages.len(), 1);
    apply(&mut device, messages);
    assert_eq!(device.peers.len(), 4);
    let peer = &config.peers[&2];
    assert_eq!(device.peers[&new].allowed, [peer.tunnel_address, peer.sources.even].into());
    assert_eq!(device.peers[&old].allowed, [peer.sources.odd].into());
    assert_eq!(messages::moves(&config, &device), Vec::<Vec<WireguardAttribute>>::new());
}

#[test]
fn every_key_of_every_peer_is_contacted_and_keepalives_are_disabled_again() {
    let mut config = config();
    replace_key(&mut config);
    let mut kept_alive = BTreeMap::new();
    let mut greeted = 0;
    let keys = config.peers.values().flat_map(|peer| peer.keys.values());
    for attribute in messages::greetings(keys, &config).iter().flatten() {
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
fn many_peers_are_split_into_messages_that_fit() {
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
        assert!(serialized(attributes).len() < 60_000);
    }
}

#[test]
fn the_trial_agrees_with_what_the_kernel_allows_and_leaves_nothing() {
    // If the kernel has WireGuard, other tests cover it; if not, every entry point must report
    // that.
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
