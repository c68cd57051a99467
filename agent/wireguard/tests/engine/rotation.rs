//! Keys are rotated while traffic flows.

use std::{collections::BTreeMap, time::Duration};

use mesh_harness::{
    eventually,
    traffic::{LossMeter, tcp_transfer},
};
use mesh_wireguard::{Generation, OwnKey, PrivateKey, Userspace, WireguardEngine};

use crate::pair::{PEER, Pair, SOON, address, inner};

impl Pair {
    fn wait_for_generations(&mut self, a: (Generation, Generation)) {
        eventually("use of the new keys", SOON, || {
            let of = |side: &mut crate::pair::Side| side.engine.status().unwrap().peers[&PEER].generations;
            of(&mut self.a) == Some(a) && of(&mut self.b) == Some((a.1, a.0))
        })
        .unwrap();
    }
}

#[test]
fn rotating_the_keys_of_a_node_under_load_loses_nothing() {
    let mut pair = Pair::new();
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
    let interval = Duration::from_micros(500);
    let there = LossMeter::start(&pair.a.netns, &pair.b.netns, inner(2).into(), interval).unwrap();
    let back = LossMeter::start(&pair.b.netns, &pair.a.netns, inner(1).into(), interval).unwrap();
    let pass = || {
        there.wait_for_more(200, SOON).unwrap();
        back.wait_for_more(200, SOON).unwrap();
    };
    for round in 1..4u32 {
        let new = PrivateKey::generate().unwrap();
        // Announced: A accepts it, then B knows it. B uses it immediately, since A has it.
        pair.a.config.keys.push(OwnKey { generation: round + 1, private: new.clone(), active: false });
        pair.a.apply();
        pass();
        pair.b.peer().keys.insert(round + 1, new.public());
        pair.b.apply();
        pass();
        // Active: A may start handshakes with it.
        pair.a.config.keys[1].active = true;
        pair.a.apply();
        pair.wait_for_generations((round + 1, 1));
        pass();
        // Retired, first on the node that sends with it.
        pair.b.peer().keys.remove(&round);
        pair.b.apply();
        pass();
        pair.a.config.keys.remove(0);
        pair.a.apply();
        pass();
    }
    for meter in [there, back] {
        let report = meter.stop().unwrap().nothing_lost().unwrap();
        assert!(report.sent > 1000);
    }
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
}

#[test]
fn both_nodes_can_rotate_their_keys_at_the_same_time() {
    let mut pair = Pair::new();
    let meter =
        LossMeter::start(&pair.a.netns, &pair.b.netns, inner(2).into(), Duration::from_millis(1)).unwrap();
    let new = [PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap()];
    for (side, key) in [&mut pair.a, &mut pair.b].into_iter().zip(&new) {
        side.config.keys.push(OwnKey { generation: 2, private: key.clone(), active: false });
        side.apply();
    }
    for (side, key) in [&mut pair.b, &mut pair.a].into_iter().zip(&new) {
        side.peer().keys.insert(2, key.public());
        side.apply();
    }
    for side in [&mut pair.a, &mut pair.b] {
        side.config.keys[1].active = true;
        side.apply();
    }
    pair.wait_for_generations((2, 2));
    for side in [&mut pair.a, &mut pair.b] {
        side.peer().keys = BTreeMap::from([(2, side.peer().keys[&2])]);
        side.apply();
    }
    for side in [&mut pair.a, &mut pair.b] {
        side.config.keys.remove(0);
        side.apply();
    }
    meter.wait_for_more(300, SOON).unwrap();
    meter.stop().unwrap().nothing_lost().unwrap();
}

#[test]
fn a_peer_that_can_use_only_one_of_its_keys_is_reached_with_that_one() {
    let mut pair = Pair::new();
    let meter =
        LossMeter::start(&pair.a.netns, &pair.b.netns, inner(2).into(), Duration::from_millis(1)).unwrap();
    // B announces another key. Like the kernel's WireGuard, B does nothing with it before it drops
    // the first.
    let (new, theirs) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    pair.a.config.keys.push(OwnKey { generation: 2, private: new.clone(), active: false });
    pair.a.peer().keys.insert(2, theirs.public());
    pair.a.apply();
    pair.b.peer().keys.insert(2, new.public());
    pair.b.apply();
    pair.a.config.keys[1].active = true;
    pair.a.apply();
    pair.wait_for_generations((2, 1));
    meter.wait_for_more(300, SOON).unwrap();
    meter.stop().unwrap().nothing_lost().unwrap();
    pair.a.config.keys.remove(0);
    pair.a.apply();
    // A new engine reaches it too.
    pair.a.engine.remove().unwrap();
    pair.a.engine = Userspace::new();
    pair.a.apply();
    address(&pair.a.netns, 1);
    pair.wait_for_generations((2, 1));
    tcp_transfer(&pair.a.netns, &pair.b.netns, inner(2).into(), 1 << 20).unwrap();
}
