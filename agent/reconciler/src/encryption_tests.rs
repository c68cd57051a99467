use std::path::Path;

use mesh_model::{Network, Node};
use mesh_state::ClusterView;
use mesh_state::fake::{self, cluster, lease, numbered_node, subnet};
use mesh_wireguard::{Error, PrivateKey};

use super::*;
use crate::fake::TestEngines;
use crate::peer_keys;

fn id(number: u8) -> NodeId {
    format!("{number:024x}").parse().unwrap()
}

/// A node whose announced key is of the given number; 0: it has announced none.
fn node(number: u8, key: u8) -> Node {
    let keys = BTreeMap::from([(1, public(key))]);
    let wireguard = (key != 0).then_some(Wireguard { port: 51820 + u16::from(number), keys });
    Node { wireguard, ..numbered_node(number) }
}

fn public(key: u8) -> String {
    let text = format!("{}A=", char::from(b'A' + key).to_string().repeat(42));
    text.parse::<PrivateKey>().unwrap().public().to_string()
}

/// Nodes 1 to 3 hold leases in an encrypted network, 4 in a clear one only.
fn view(nodes: impl IntoIterator<Item = Node>) -> ClusterView {
    let network = |number: u8, encrypted| Network {
        id: format!("{number:024x}").parse().unwrap(),
        name: format!("n{number}").parse().unwrap(),
        vni: (4096 + u32::from(number)).try_into().unwrap(),
        subnets: vec![subnet(number)],
        encrypted,
        ..fake::network()
    };
    let mut view = ClusterView::new(cluster(), node(1, 1), vec![]);
    view.nodes = nodes.into_iter().map(|node| (node.id.clone(), node)).collect();
    for (network, holders) in [(network(0, true), [1, 2, 3]), (network(1, false), [1, 2, 4])] {
        for holder in holders {
            let prefix = format!("10.{}.0.{}/26", network.vni.get() - 4096, u16::from(holder) * 64 % 256);
            let lease = lease(&network, &prefix, id(holder));
            view.leases.insert((network.id.clone(), lease.prefix), lease);
        }
        view.networks.insert(network.id.clone(), network);
    }
    view
}

fn everyone() -> ClusterView {
    view((1..=4).map(|number| node(number, number)))
}

fn encryption(folder: &Path) -> (TestEngines, Encryption) {
    let engines = TestEngines::default();
    let encryption = Encryption::new(Arc::new(engines.clone()), folder.join("wireguard.keys"));
    (engines, encryption)
}

#[test]
fn peers_are_the_nodes_that_share_an_encrypted_network_and_have_a_key() {
    let desired = DesiredTunnels::of(&everyone(), &id(1)).unwrap();
    assert_eq!(desired.indexes().keys().cloned().collect::<Vec<_>>(), [id(2), id(3)]);
    let second = &desired.peers[&desired.indexes()[&id(2)]];
    assert_eq!(second.endpoint, Some(([192, 0, 2, 2], 51822).into()));
    assert_eq!(second.keys[&1].to_string(), public(2));
    let without = view([node(1, 1), node(2, 2), node(3, 0), node(4, 4)]);
    assert_eq!(
        DesiredTunnels::of(&without, &id(1)).unwrap().indexes().keys().cloned().collect::<Vec<_>>(),
        [id(2)]
    );
    assert_eq!(DesiredTunnels::of(&everyone(), &id(4)), None, "it has no part in an encrypted network");
}

#[test]
fn both_ends_agree_on_tunnel_addresses() {
    let (first, second) =
        (DesiredTunnels::of(&everyone(), &id(1)).unwrap(), DesiredTunnels::of(&everyone(), &id(2)).unwrap());
    assert_eq!(first.peers[&first.indexes()[&id(2)]].tunnel_address, tunnel_address(second.number));
    assert_eq!(second.peers[&second.indexes()[&id(1)]].tunnel_address, tunnel_address(first.number));
    assert_eq!(first.peers[&first.indexes()[&id(2)]].sources, sources(second.number));
    assert_eq!(second.peers[&second.indexes()[&id(1)]].sources, sources(first.number));
}

#[test]
fn a_node_that_announces_anothers_key_gets_nothing_and_keeps_nobody_else_from_it() {
    let thief = view([node(1, 1), node(2, 2), node(3, 2), node(4, 4)]);
    let desired = DesiredTunnels::of(&thief, &id(1)).unwrap();
    assert_eq!(desired.indexes().keys().cloned().collect::<Vec<_>>(), [id(2)]);
    let folder = tempfile::tempdir().unwrap();
    let (engines, encryption) = encryption(folder.path());
    let own = encryption.announcement(false).unwrap().keys[&1].clone();
    let mut copied = everyone();
    let thief = copied.nodes.get_mut(&id(3)).unwrap();
    thief.wireguard.as_mut().unwrap().keys = BTreeMap::from([(1, own)]);
    encryption.apply(DesiredTunnels::of(&copied, &id(1)).as_ref(), 1390).unwrap();
    let peers = engines.inner.lock().unwrap().config().unwrap().peers.clone();
    assert_eq!(peers.len(), 1);
}

#[test]
fn an_engine_is_asked_again_only_when_something_differs_or_its_device_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (engines, encryption) = encryption(folder.path());
    encryption.apply(None, 1390).unwrap();
    assert!(engines.inner.lock().unwrap().config().is_none(), "nothing needs it");
    let desired = DesiredTunnels::of(&everyone(), &id(1));
    encryption.apply(desired.as_ref(), 1390).unwrap();
    encryption.apply(desired.as_ref(), 1390).unwrap();
    assert_eq!(engines.inner.lock().unwrap().changes(), 1);
    encryption.apply(desired.as_ref(), 1290).unwrap();
    assert_eq!(engines.inner.lock().unwrap().config().unwrap().inner_mtu, 1290);
    engines.inner.lock().unwrap().remove().unwrap();
    encryption.apply(desired.as_ref(), 1290).unwrap();
    assert!(engines.inner.lock().unwrap().config().is_some());
}

#[test]
fn a_key_is_replaced_step_by_step() {
    let folder = tempfile::tempdir().unwrap();
    let (engines, encryption) = encryption(folder.path());
    encryption.apply(DesiredTunnels::of(&everyone(), &id(1)).as_ref(), 1390).unwrap();
    let keys = || {
        let engine = engines.inner.lock().unwrap();
        engine.config().unwrap().keys.iter().map(|key| (key.generation, key.active)).collect::<Vec<_>>()
    };
    let announced = |alone| encryption.announcement(alone).unwrap().keys.into_keys().collect::<Vec<_>>();
    assert_eq!((encryption.stage().unwrap(), announced(false)), (KeyStage::One(1), vec![1]));
    encryption.announce_new(5).unwrap();
    // One of two is odd.
    assert_eq!((encryption.stage().unwrap(), keys()), (KeyStage::Announced, vec![(1, true), (6, false)]));
    assert_eq!((announced(false), announced(true)), (vec![1, 6], vec![6]));
    assert!(encryption.has_turn(5).unwrap(), "this engine can use both at a time");
    assert!(!encryption.activate_new().unwrap());
    assert_eq!((encryption.stage().unwrap(), keys()), (KeyStage::Active, vec![(1, true), (6, true)]));
    assert!(encryption.all_use_the_newest().unwrap());
    encryption.retire_old().unwrap();
    assert_eq!((encryption.stage().unwrap(), keys()), (KeyStage::One(6), vec![(6, true)]));
}

#[test]
fn the_kernels_engine_uses_a_new_key_only_when_the_datapath_is_ready_for_either() {
    let folder = tempfile::tempdir().unwrap();
    let engines = TestEngines { of_kernel: true, ..TestEngines::default() };
    let encryption = Encryption::new(Arc::new(engines.clone()), folder.path().join("wireguard.keys"));
    let desired = DesiredTunnels::of(&everyone(), &id(1));
    encryption.apply(desired.as_ref(), 1390).unwrap();
    encryption.announce_new(2).unwrap();
    let keys = || {
        let engine = engines.inner.lock().unwrap();
        engine.config().unwrap().keys.iter().map(|key| (key.generation, key.active)).collect::<Vec<_>>()
    };
    assert_eq!(encryption.generations(), [1].into());
    assert!(encryption.activate_new().unwrap());
    assert_eq!((encryption.generations(), keys()), ([1, 2].into(), vec![(1, true), (2, false)]));
    encryption.apply(desired.as_ref(), 1390).unwrap();
    assert_eq!(keys(), [(1, true), (2, false)]);
    encryption.switch_key().unwrap();
    assert_eq!((encryption.generations(), keys()), ([2].into(), vec![(1, true), (2, true)]));
}

#[test]
fn nodes_with_the_kernels_engine_begin_to_use_new_keys_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let engines = TestEngines { of_kernel: true, ..TestEngines::default() };
    let mut waiting = 0;
    for own in 1..=3 {
        let key_file = folder.path().join(format!("{own}.keys"));
        let encryption = Encryption::new(Arc::new(engines.clone()), key_file);
        let mut view = everyone();
        let desired = DesiredTunnels::of(&view, &id(own)).unwrap();
        encryption.apply(Some(&desired), 1390).unwrap();
        encryption.announce_new(2).unwrap();
        let before: Vec<_> = desired.nodes.range(..desired.number).map(|(_, node)| node.clone()).collect();
        waiting += before.len();
        assert_eq!(encryption.has_turn(2).unwrap(), before.is_empty());
        for node in before {
            let keys = &mut view.nodes.get_mut(&node).unwrap().wireguard.as_mut().unwrap().keys;
            assert!(!encryption.has_turn(2).unwrap());
            keys.insert(2, PrivateKey::generate().unwrap().public().to_string());
            encryption.apply(DesiredTunnels::of(&view, &id(own)).as_ref(), 1390).unwrap();
        }
        assert!(encryption.has_turn(2).unwrap());
    }
    assert_eq!(waiting, 1 + 2);
}

#[test]
fn of_a_nodes_keys_the_newest_two_count_of_which_one_is_odd() {
    let mut view = everyone();
    let keys = &mut view.nodes.get_mut(&id(2)).unwrap().wireguard.as_mut().unwrap().keys;
    *keys = [(1, 5), (2, 6), (4, 7)].into_iter().map(|(generation, key)| (generation, public(key))).collect();
    let desired = DesiredTunnels::of(&view, &id(1)).unwrap();
    assert_eq!(desired.peers[&desired.indexes()[&id(2)]].keys.keys().copied().collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn each_engines_device_has_an_index_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    for (of_kernel, index) in
        [(false, naming::WIREGUARD_USERSPACE_INDEX), (true, naming::WIREGUARD_KERNEL_INDEX)]
    {
        let engines = TestEngines { of_kernel, ..TestEngines::default() };
        let encryption = Encryption::new(Arc::new(engines.clone()), folder.path().join("wireguard.keys"));
        encryption.apply(DesiredTunnels::of(&everyone(), &id(1)).as_ref(), 1390).unwrap();
        assert_eq!(engines.inner.lock().unwrap().config().unwrap().device_index, Some(index));
        assert_eq!(encryption.status().unwrap().unwrap().reason, "as the test wants it");
    }
}

#[tokio::test]
async fn the_kernels_engine_looks_which_key_a_node_uses_while_one_has_two() {
    let folder = tempfile::tempdir().unwrap();
    let engines = TestEngines { of_kernel: true, ..TestEngines::default() };
    let encryption =
        Arc::new(Encryption::new(Arc::new(engines.clone()), folder.path().join("wireguard.keys")));
    let following = tokio::spawn(peer_keys::run(encryption.clone()));
    let looks = || *engines.looks.lock().unwrap();
    let apply =
        |view: &ClusterView| encryption.apply(DesiredTunnels::of(view, &id(1)).as_ref(), 1390).unwrap();
    apply(&everyone());
    assert_eq!(*encryption.replacing().borrow(), None);
    let mut replacing = everyone();
    let keys = &mut replacing.nodes.get_mut(&id(2)).unwrap().wireguard.as_mut().unwrap().keys;
    keys.insert(2, public(9));
    apply(&replacing);
    tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while looks() < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it looks again and again");
    apply(&everyone());
    assert_eq!(*encryption.replacing().borrow(), None);
    following.abort();
}

#[test]
fn an_engine_that_is_not_to_be_had_is_a_clear_error_with_what_to_do() {
    for error in [Error::NoKernelWireguard, Error::Trial(Box::new(Error::NoKernelWireguard))] {
        let problem = tunnel_problem(&error);
        assert!(problem.message.contains("kernel has no WireGuard"), "{problem}");
        assert!(problem.hint.is_some_and(|hint| hint.contains("wireguard_engine")));
    }
}

#[test]
fn a_port_that_is_taken_and_a_damaged_key_file_are_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let (engines, encryption) = encryption(folder.path());
    let desired = DesiredTunnels::of(&everyone(), &id(1));
    *engines.refused.lock().unwrap() = Some(51820);
    let problem = encryption.apply(desired.as_ref(), 1390).unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Conflict);
    assert!(problem.message.contains("51820 for WireGuard is taken"), "{problem}");
    *engines.refused.lock().unwrap() = None;
    encryption.apply(desired.as_ref(), 1390).unwrap();

    let (engines, fresh) = self::encryption(folder.path());
    std::fs::write(folder.path().join("wireguard.keys"), "garbage").unwrap();
    let problem = fresh.apply(desired.as_ref(), 1390).unwrap_err();
    assert!(problem.message.contains("is damaged"), "{problem}");
    assert!(engines.inner.lock().unwrap().config().is_none());
}
