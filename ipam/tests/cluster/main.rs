//! A whole cluster in one process: a manager that decides, nodes that assign, and between them a
//! network that delays, reorders, repeats and loses messages, while everything may restart.
//! In every interleaving, no address is assigned twice, and none is lost.
#![expect(clippy::unwrap_used, reason = "tests")]

mod simulation;

use std::collections::BTreeSet;

use mesh_ipam::{SubnetLayout, SubnetSpec};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use simulation::{Cluster, Step};

const MAX_NODES: u8 = 4;

/// A subnet, and what of it containers get automatically.
type Subnet = (&'static str, Option<&'static str>);

const SUBNETS: [Subnet; 8] = [
    ("10.9.0.0/28", None),
    ("10.9.0.0/29", None),
    ("10.9.0.0/31", None),
    ("10.9.0.0/27", Some("10.9.0.16/28")),
    ("10.9.0.0/26", None),
    ("fd09::/124", None),
    ("fd09::/127", None),
    ("fd09::/64", Some("fd09::40/122")),
];

/// Some blocks and not enough of them: nodes borrow, give back and borrow again.
const CONTENDED: [Subnet; 3] = [("10.9.0.0/28", None), ("10.9.0.0/29", None), ("fd09::/124", None)];

fn layouts(subnets: &'static [Subnet]) -> impl Strategy<Value = SubnetLayout> {
    prop::sample::select(subnets).prop_map(|(subnet, ip_range)| {
        let mut spec = SubnetSpec::new(subnet.parse().unwrap());
        spec.ip_range = ip_range.map(|range| range.parse().unwrap());
        SubnetLayout::new(spec).unwrap()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..MAX_NODES;
    prop_oneof![
        8 => node.clone().prop_map(Step::Attach),
        2 => (node.clone(), any::<u8>()).prop_map(|(node, pick)| Step::AttachStatic { node, pick }),
        6 => (node.clone(), any::<u8>()).prop_map(|(node, pick)| Step::Detach { node, pick }),
        14 => (any::<u16>(), prop::bool::weighted(0.3)).prop_map(|(pick, again)| Step::Deliver { pick, again }),
        10 => node.clone().prop_map(Step::ServePromptly),
        1 => any::<u16>().prop_map(Step::Lose),
        8 => node.clone().prop_map(Step::LearnNextChange),
        2 => (node.clone(), any::<u16>()).prop_map(|(node, pick)| Step::LearnSnapshot { node, pick }),
        1 => (node.clone(), any::<u16>()).prop_map(|(node, pick)| Step::RestartNode { node, pick }),
        1 => Just(Step::RestartManager),
        6 => node.clone().prop_map(Step::GiveBackIdle),
        2 => node.clone().prop_map(Step::Report),
        1 => node.prop_map(Step::TogglePartition),
        3 => (0u64..20).prop_map(Step::Wait),
    ]
}

/// Lives through so many random histories of clusters with one of the subnets.
fn check(subnets: &'static [Subnet], cases: u32) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let histories = (layouts(subnets), 2..=MAX_NODES, prop::collection::vec(step(), 0..250));
    let outcome =
        TestRunner::new(config).run(&histories, |(layout, nodes, steps)| live_through(&layout, nodes, steps));
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn live_through(layout: &SubnetLayout, nodes: u8, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut cluster = Cluster::new(layout.clone(), nodes);
    for step in steps {
        cluster.run(step);
        cluster.assert_one_owner_each();
    }
    cluster.settle();
    cluster.assert_one_owner_each();
    // What no one uses can be had, from any node in turn, until nothing is left.
    let mut full = BTreeSet::new();
    let mut node = 0;
    while full.len() < usize::from(nodes) {
        if !cluster.attach_now(node) {
            full.insert(node);
        }
        node = (node + 1) % nodes;
    }
    prop_assert_eq!(cluster.dynamic_in_use(), layout.assignable_count());
    cluster.assert_one_owner_each();
    // And what all have released, one alone can have.
    cluster.detach_all();
    let mut count = 0;
    while cluster.attach_now(0) {
        count += 1;
    }
    prop_assert_eq!(count, layout.assignable_count());
    cluster.assert_one_owner_each();
    Ok(())
}

#[test]
fn no_address_is_given_twice_and_none_is_lost_under_any_interleaving() {
    check(&SUBNETS, 192);
}

#[test]
fn the_same_holds_of_small_subnets_for_which_nodes_contend() {
    check(&CONTENDED, 1024);
}
