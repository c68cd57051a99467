//! Named cases of leases and assignment.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_ipam::{
    CedeAnswer, Decision, Delays, Lease, LeaseChange, LeaseState, Leases, LocalPool, LocalState, Prefix,
    Reports, Reserved, StaticDecision, StaticError, SubnetLayout, SubnetSpec, lease_static, next_block,
};

type Pool = LocalPool<&'static str, u32>;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn layout(subnet: &str) -> SubnetLayout {
    SubnetLayout::new(SubnetSpec::new(prefix(subnet))).unwrap()
}

fn active(text: &str, node: &'static str, revision: u64) -> Lease<&'static str> {
    Lease { revision, ..Lease::active(prefix(text), node) }
}

fn leases<const N: usize>(leases: [Lease<&'static str>; N]) -> Leases<&'static str> {
    leases.into_iter().collect()
}

fn decide(
    layout: &SubnetLayout,
    leases: &Leases<&'static str>,
    node: &'static str,
) -> Decision<&'static str> {
    next_block(layout, leases, &node, &Reports::default())
}

/// A pool of node "a" with these leases, at revision 10 and time 0.
fn pool<const N: usize>(subnet: &str, held: [Lease<&'static str>; N]) -> Pool {
    let mut pool = Pool::new(layout(subnet), "a", Delays { reuse: 100, idle: 1000 });
    assert!(pool.replace(10, leases(held), 0));
    pool
}

fn report(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| ip(address)).collect()
}

#[test]
fn a_28_gives_every_assignable_address_then_fails_and_after_a_detach_gives_again() {
    let layout = layout("10.0.0.0/28");
    let mut store = Leases::default();
    let mut pool = Pool::new(layout.clone(), "a", Delays::default());
    let mut given = BTreeSet::new();
    let mut revision = 0;
    loop {
        match pool.assign(1) {
            Ok(address) => assert!(given.insert(address), "{address} was given twice"),
            Err(_) => match decide(&layout, &store, "a") {
                Decision::Lease(prefix) => {
                    revision += 1;
                    let change = LeaseChange::Put(Lease::active(prefix, "a"));
                    store.apply(change.clone(), revision);
                    assert!(pool.apply(revision, &[change], 0));
                }
                exhausted => {
                    let none = Decision::Exhausted { free_on_unreachable: BTreeMap::new(), pending: 0 };
                    assert_eq!(exhausted, none);
                    break;
                }
            },
        }
    }
    assert_eq!(given.len() as u128, layout.assignable_count());
    assert_eq!(given, (2..12).map(|index| layout.subnet().nth(index).unwrap()).collect());
    assert_eq!(
        pool.assign(2).unwrap_err().to_string(),
        "this node has no free address left in subnet 10.0.0.0/28"
    );
    pool.release(ip("10.0.0.7"), 5).unwrap();
    pool.release(ip("10.0.0.4"), 6).unwrap();
    assert_eq!(pool.assign(2), Ok(ip("10.0.0.7")), "released longest ago first");
    assert_eq!(pool.assign(3), Ok(ip("10.0.0.4")));
}

#[test]
fn nodes_get_whole_blocks_in_order_then_pieces_then_single_addresses_of_others() {
    let layout = layout("10.0.0.0/28");
    let mut store = leases([active("10.0.0.0/30", "a", 1), active("10.0.0.5/32", "b", 2)]);
    assert_eq!(decide(&layout, &store, "c"), Decision::Lease(prefix("10.0.0.8/30")));
    store.insert(active("10.0.0.8/30", "c", 3));
    for expected in ["10.0.0.6/31", "10.0.0.4/32"] {
        assert_eq!(decide(&layout, &store, "d"), Decision::Lease(prefix(expected)));
        store.insert(active(expected, "d", 4));
    }
    // Node c has most to spare.
    let candidates = ["10.0.0.11", "10.0.0.10", "10.0.0.9", "10.0.0.8"].map(ip).to_vec();
    assert_eq!(decide(&layout, &store, "e"), Decision::Borrow { from: "c", candidates });
}

#[test]
fn a_block_of_nothing_but_reserved_addresses_is_not_leased() {
    // The first /31 is the network address and the gateway.
    assert_eq!(
        decide(&layout("10.0.0.0/29"), &Leases::default(), "a"),
        Decision::Lease(prefix("10.0.0.2/31"))
    );
}

#[test]
fn what_was_just_given_back_is_leased_last() {
    let layout = layout("10.0.0.0/24");
    let reports = Reports { recently_released: vec![prefix("10.0.0.0/28")], ..Reports::default() };
    let mut store = Leases::default();
    for index in 1..15 {
        let block = layout.subnet().subnets(28).unwrap().nth(index).unwrap();
        assert_eq!(next_block(&layout, &store, &"a", &reports), Decision::Lease(block));
        store.insert(Lease::active(block, "a"));
    }
    assert_eq!(next_block(&layout, &store, &"a", &reports), Decision::Lease(prefix("10.0.0.0/28")));
}

#[test]
fn borrowing_avoids_what_is_reported_in_use_and_who_cannot_be_asked() {
    let layout = layout("10.0.0.0/29");
    let store = leases([active("10.0.0.2/31", "a", 1), active("10.0.0.4/31", "b", 2)]);
    let mut reports = Reports::default();
    reports.in_use.insert("a", report(&["10.0.0.3"]));
    reports.unreachable.insert("b");
    let decision = next_block(&layout, &store, &"c", &reports);
    assert_eq!(decision, Decision::Borrow { from: "a", candidates: vec![ip("10.0.0.2")] });
    reports.in_use.insert("a", report(&["10.0.0.2", "10.0.0.3"]));
    reports.in_use.insert("b", report(&["10.0.0.4"]));
    let decision = next_block(&layout, &store, &"c", &reports);
    assert_eq!(decision, Decision::Exhausted { free_on_unreachable: BTreeMap::from([("b", 1)]), pending: 0 });
}

#[test]
fn an_address_that_is_being_borrowed_is_counted_as_pending_not_lent_again() {
    let layout = layout("10.0.0.0/30");
    let store = leases([
        active("10.0.0.2/31", "a", 1),
        Lease { revision: 2, ..Lease::borrow(ip("10.0.0.2"), "b", &active("10.0.0.2/31", "a", 1)) },
    ]);
    let exhausted = Decision::Exhausted { free_on_unreachable: BTreeMap::new(), pending: 1 };
    assert_eq!(decide(&layout, &store, "c"), exhausted);
}

#[test]
fn a_static_address_is_leased_borrowed_or_refused() {
    let layout = layout("10.0.0.0/28");
    let mut store = leases([active("10.0.0.4/30", "a", 1), active("10.0.0.6/32", "b", 2)]);
    let ask = |store: &Leases<_>, node, address| lease_static(&layout, store, &node, ip(address));
    assert_eq!(ask(&store, "b", "10.0.0.9"), StaticDecision::Lease(prefix("10.0.0.9/32")));
    assert_eq!(ask(&store, "b", "10.0.0.5"), StaticDecision::Borrow { from: "a" });
    assert_eq!(ask(&store, "b", "10.0.0.6"), StaticDecision::Held);
    assert_eq!(ask(&store, "a", "10.0.0.6"), StaticDecision::Borrow { from: "b" });
    store.insert(Lease::borrow(ip("10.0.0.5"), "b", &active("10.0.0.4/30", "a", 1)));
    assert_eq!(ask(&store, "c", "10.0.0.5"), StaticDecision::Undecided { node: "b", from: "a" });
    let subnet = layout.subnet();
    let reserved = [
        ("10.0.0.0", Reserved::Network { subnet }),
        ("10.0.0.1", Reserved::Gateway { subnet }),
        ("10.0.0.13", Reserved::VipBlock { block: prefix("10.0.0.12/30") }),
        ("10.0.0.15", Reserved::Broadcast { subnet }),
        ("10.0.1.1", Reserved::Outside { subnet }),
    ];
    for (address, why) in reserved {
        assert_eq!(ask(&store, "a", address), StaticDecision::Reserved(why));
    }
}

#[test]
fn a_confirmed_borrow_becomes_active_and_a_refused_one_leaves_the_address_to_its_owner() {
    let single = prefix("10.0.0.5/32");
    let block = active("10.0.0.4/30", "a", 1);
    let borrow = |held: &Lease<_>| Lease { revision: 7, ..Lease::borrow(ip("10.0.0.5"), "b", held) };
    let inside_a_block = leases([block.clone(), borrow(&block)]);
    let settle = |store: &Leases<_>, answer| store.settle(&single, 7, answer);
    let granted = Some(LeaseChange::Put(Lease::active(single, "b")));
    assert_eq!(settle(&inside_a_block, CedeAnswer::Ceded), granted);
    assert_eq!(settle(&inside_a_block, CedeAnswer::Refused), Some(LeaseChange::Remove(single)));
    // The owner held the single address, which the borrow replaced; inside its own block too, which
    // it may have given back.
    let (of_c, of_a) = (borrow(&active("10.0.0.5/32", "c", 1)), borrow(&active("10.0.0.5/32", "a", 1)));
    for (others, owner) in [
        (leases([of_c.clone()]), "c"),
        (leases([block.clone(), of_c]), "c"),
        (leases([block.clone(), of_a]), "a"),
        // The block around it was given back meanwhile.
        (leases([borrow(&block)]), "a"),
    ] {
        assert_eq!(
            settle(&others, CedeAnswer::Refused),
            Some(LeaseChange::Put(Lease::active(single, owner)))
        );
    }
    assert_eq!(
        inside_a_block.settle(&single, 6, CedeAnswer::Ceded),
        None,
        "an answer about an earlier borrow"
    );
}

#[test]
fn packets_go_to_the_owner_until_a_borrow_is_confirmed() {
    let mut lease = Lease::borrow(ip("10.0.0.5"), "b", &active("10.0.0.4/30", "a", 1));
    assert_eq!((*lease.route_to(), lease.is_active()), ("a", false));
    lease.state = LeaseState::Active;
    assert_eq!((*lease.route_to(), lease.is_active()), ("b", true));
}

#[test]
fn a_lease_is_given_back_only_by_its_node_and_only_the_one_that_was_meant() {
    let store = leases([active("10.0.0.4/30", "a", 5)]);
    let block = prefix("10.0.0.4/30");
    assert_eq!(store.give_back(&"b", &block, 5), None);
    assert_eq!(store.give_back(&"a", &block, 4), None, "a late message about an earlier lease");
    assert_eq!(store.give_back(&"a", &block, 5), Some(LeaseChange::Remove(block)));
}

#[test]
fn a_lease_is_stored_without_its_revision() {
    let held = Lease::active(prefix("fd00::/120"), "a".to_owned());
    let lease = Lease { revision: 9, ..Lease::borrow(ip("fd00::5"), "b".to_owned(), &held) };
    let json = serde_json::to_string(&lease).unwrap();
    assert_eq!(json, r#"{"prefix":"fd00::5/128","node":"b","state":"pending","from":"a","replaced":false}"#);
    assert_eq!(serde_json::from_str::<Lease<String>>(&json).unwrap(), Lease { revision: 0, ..lease });
}

#[test]
fn the_most_specific_lease_decides() {
    let mut pool = pool("10.0.0.0/28", [active("10.0.0.4/30", "a", 1), active("10.0.0.5/32", "b", 2)]);
    let given: Vec<_> = std::iter::from_fn(|| pool.assign(1).ok()).collect();
    assert_eq!(given, ["10.0.0.4", "10.0.0.6", "10.0.0.7"].map(ip));
    // What b gave back is a's again.
    assert!(pool.apply(11, &[LeaseChange::Remove(prefix("10.0.0.5/32"))], 0));
    assert_eq!(pool.assign(1), Ok(ip("10.0.0.5")));
}

#[test]
fn a_pending_borrow_is_nobodys_to_hand_out() {
    let block = active("10.0.0.4/30", "a", 1);
    let pending = Lease { revision: 2, ..Lease::borrow(ip("10.0.0.5"), "b", &block) };
    let mut owner = pool("10.0.0.0/28", [block, pending]);
    assert_eq!(
        owner.assign_static(ip("10.0.0.5"), 1),
        Err(StaticError::NotLeased { address: ip("10.0.0.5") })
    );
    let block = active("10.0.0.4/30", "b", 1);
    let pending = Lease { revision: 2, ..Lease::borrow(ip("10.0.0.5"), "a", &block) };
    let mut borrower = pool("10.0.0.0/28", [block, pending]);
    assert_eq!(borrower.free(), 0);
    assert!(borrower.apply(11, &[LeaseChange::Put(Lease::active(prefix("10.0.0.5/32"), "a"))], 0));
    assert_eq!(borrower.assign(1), Ok(ip("10.0.0.5")));
}

#[test]
fn static_addresses_are_refused_with_the_reason() {
    let mut pool = pool("10.0.0.0/28", [active("10.0.0.0/29", "a", 1)]);
    assert_eq!(pool.assign_static(ip("10.0.0.5"), 7), Ok(()));
    let refusal = |pool: &mut Pool, address| pool.assign_static(ip(address), 8).unwrap_err().to_string();
    assert_eq!(refusal(&mut pool, "10.0.0.5"), "address 10.0.0.5 is in use by 7");
    assert_eq!(refusal(&mut pool, "10.0.0.9"), "address 10.0.0.9 is not leased to this node");
    assert_eq!(
        refusal(&mut pool, "10.0.0.1"),
        "address 10.0.0.1 cannot be assigned: it is the gateway of 10.0.0.0/28"
    );
    assert_eq!(
        refusal(&mut pool, "10.0.0.13"),
        "address 10.0.0.13 cannot be assigned: it is in 10.0.0.12/30, which is kept for the virtual addresses of services"
    );
}

#[test]
fn addresses_outside_the_range_are_given_only_when_asked_for() {
    let spec =
        SubnetSpec { ip_range: Some(prefix("10.0.0.128/25")), ..SubnetSpec::new(prefix("10.0.0.0/24")) };
    let mut pool = Pool::new(SubnetLayout::new(spec).unwrap(), "a", Delays::default());
    assert!(pool.replace(1, leases([active("10.0.0.9/32", "a", 1)]), 0));
    assert!(pool.assign(1).is_err());
    assert_eq!(pool.assign_static(ip("10.0.0.9"), 1), Ok(()));
    assert_eq!(pool.release(ip("10.0.0.9"), 5), Some(1));
    assert!(pool.assign(1).is_err());
    assert_eq!(pool.assign_static(ip("10.0.0.9"), 2), Ok(()));
}

#[test]
fn the_queue_of_released_addresses_survives_a_restart() {
    let held = || leases([active("10.0.0.4/30", "a", 1)]);
    let mut before = pool("10.0.0.0/28", [active("10.0.0.4/30", "a", 1)]);
    while before.assign(1).is_ok() {}
    for (address, now) in [("10.0.0.6", 20), ("10.0.0.4", 30), ("10.0.0.5", 40)] {
        before.release(ip(address), now).unwrap();
    }
    let json = serde_json::to_string(&before.state()).unwrap();
    let state: LocalState = serde_json::from_str(&json).unwrap();
    let in_use = before.in_use().clone();
    let mut after =
        Pool::restore(layout("10.0.0.0/28"), "a", Delays::default(), state, in_use, (10, held()), 50);
    let given: Vec<_> = std::iter::from_fn(|| after.assign(2).ok()).collect();
    assert_eq!(given, ["10.0.0.6", "10.0.0.4", "10.0.0.5"].map(ip));
}

#[test]
fn a_pool_restored_with_leases_older_than_its_state_assigns_nothing_until_it_has_newer_ones() {
    let before = pool("10.0.0.0/28", [active("10.0.0.4/30", "a", 1)]);
    let old = (9, leases([active("10.0.0.4/30", "a", 1), active("10.0.0.8/30", "a", 2)]));
    let delays = Delays::default();
    let mut after =
        Pool::restore(layout("10.0.0.0/28"), "a", delays, before.state(), BTreeMap::new(), old, 0);
    assert_eq!((after.free(), after.revision()), (0, 10));
    assert!(!after.apply(11, &[], 0), "a change says nothing about the rest");
    assert!(after.replace(10, leases([active("10.0.0.4/30", "a", 1)]), 0));
    assert_eq!(after.free(), 4);
}

#[test]
fn low_water_counts_only_what_was_not_released_just_now() {
    // Blocks of 16; a quarter is 4.
    let mut pool = pool("10.0.0.0/24", [active("10.0.0.16/28", "a", 1)]);
    assert!(!pool.low_water(0), "nothing is in use");
    let given: Vec<_> = (0..12).map(|endpoint| pool.assign(endpoint).unwrap()).collect();
    assert!(!pool.low_water(0));
    let last = pool.assign(12).unwrap();
    assert!(pool.low_water(0));
    pool.release(last, 50).unwrap();
    assert!(pool.low_water(149) && !pool.low_water(150), "the reuse delay is 100");
    for endpoint in 20..23 {
        pool.assign(endpoint).unwrap();
    }
    assert!(pool.would_reuse_early(149) && !pool.would_reuse_early(150));
    assert_eq!(given.len(), 12);
}

#[test]
fn idle_blocks_are_given_back_but_for_a_reserve() {
    let held = ["10.0.0.16/28", "10.0.0.32/28", "10.0.0.48/28"].map(|block| active(block, "a", 1));
    let mut pool = pool("10.0.0.0/24", held);
    let address = pool.assign(1).unwrap();
    assert_eq!(pool.idle_blocks(999), [], "new leases are not idle yet");
    assert_eq!(pool.idle_blocks(1000), [prefix("10.0.0.48/28"), prefix("10.0.0.32/28")]);
    assert_eq!(pool.give_back(&prefix("10.0.0.16/28")), None, "in use");
    assert_eq!(pool.give_back(&prefix("10.0.0.48/28")), Some(1));
    assert_eq!(pool.free(), 15 + 16);
    assert_eq!(pool.giving_back(), &BTreeMap::from([(prefix("10.0.0.48/28"), 1)]));
    assert_eq!(pool.idle_blocks(1000), [prefix("10.0.0.32/28")]);
    pool.release(address, 1500).unwrap();
    assert_eq!(pool.idle_blocks(2499), [prefix("10.0.0.32/28")]);
    assert_eq!(pool.idle_blocks(2500).len(), 2, "with nothing in use, nothing is kept");
    // Once the store shows that it is gone, a new lease of the same block can be used.
    assert!(pool.apply(11, &[LeaseChange::Remove(prefix("10.0.0.48/28"))], 2500));
    assert!(pool.giving_back().is_empty());
    assert!(pool.apply(12, &[LeaseChange::Put(Lease::active(prefix("10.0.0.48/28"), "a"))], 2500));
    assert_eq!(pool.free(), 48);
}

#[test]
fn a_late_message_of_an_earlier_give_back_does_not_take_the_lease_of_today() {
    let block = prefix("10.0.0.16/28");
    let mut store = leases([active("10.0.0.16/28", "a", 5)]);
    let mut pool = pool("10.0.0.0/24", [active("10.0.0.16/28", "a", 5)]);
    let revision = pool.give_back(&block).unwrap();
    let change = store.give_back(&"a", &block, revision).unwrap();
    store.apply(change.clone(), 11);
    assert!(pool.apply(11, &[change], 0));
    let again = LeaseChange::Put(Lease::active(block, "a"));
    store.apply(again.clone(), 12);
    assert!(pool.apply(12, &[again], 0));
    pool.assign(1).unwrap();
    assert_eq!(store.give_back(&"a", &block, revision), None);
}

#[test]
fn a_ceded_address_is_not_handed_out_before_the_node_hears_of_the_borrow() {
    let block = active("10.0.0.4/30", "a", 1);
    let mut pool = pool("10.0.0.0/28", [block.clone()]);
    pool.assign_static(ip("10.0.0.4"), 9).unwrap();
    assert_eq!(pool.cede(ip("10.0.0.4"), 14).unwrap_err().to_string(), "address 10.0.0.4 is in use by 9");
    assert_eq!(pool.cede(ip("10.0.0.5"), 14), Ok(()));
    assert!(pool.assign_static(ip("10.0.0.5"), 1).is_err());
    assert!(pool.apply(13, &[], 0), "an earlier revision tells nothing about it");
    assert!(pool.assign_static(ip("10.0.0.5"), 1).is_err());
    assert!(pool.apply(14, &[LeaseChange::Put(Lease::borrow(ip("10.0.0.5"), "b", &block))], 0));
    assert!(pool.assign_static(ip("10.0.0.5"), 1).is_err());
    assert!(pool.apply(15, &[LeaseChange::Remove(prefix("10.0.0.5/32"))], 0));
    assert_eq!(pool.assign_static(ip("10.0.0.5"), 1), Ok(()));
}

#[test]
fn an_ipv6_64_is_assigned_from_without_making_lists() {
    let layout = layout("fd00:1::/64");
    assert_eq!(decide(&layout, &Leases::default(), "a"), Decision::Lease(prefix("fd00:1::/120")));
    let mut pool = pool("fd00:1::/64", [active("fd00:1::/65", "a", 1)]);
    assert_eq!(pool.free(), (1 << 63) - 2 - (1 << 16));
    assert_eq!(pool.assign(1), Ok(ip("fd00:1::2")));
    let store = leases([active("fd00:1::/64", "b", 1)]);
    assert!(
        matches!(decide(&layout, &store, "a"), Decision::Borrow { from: "b", candidates } if candidates.len() == 8)
    );
}
