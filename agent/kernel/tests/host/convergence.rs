//! Any desired state is reached, and then there is nothing to do.

use std::cell::RefCell;

use mesh_kernel::{Depth, Kernel, execute};
use mesh_model::{Desired, Observed};
use mesh_planner::plan;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::shapes::{desired, shapes};
use crate::support::{Container, WholeKernel, become_host, run};

/// Takes passes until there is nothing to do, and tells how many it took.
fn converge(kernel: &mut impl Kernel, desired: Option<&Desired>) -> usize {
    for pass in 0..5 {
        let observed = kernel.observe(desired, Depth::Full).unwrap();
        let plan = plan(desired, &observed);
        if plan.is_empty() {
            return pass;
        }
        let report = execute(kernel, &plan);
        assert!(report.is_success(), "{:#?}", report.failures);
        let remembered = without_macs(kernel.observe(desired, Depth::Remembered).unwrap());
        assert_eq!(remembered, without_macs(kernel.observe(desired, Depth::Full).unwrap()));
    }
    panic!("no convergence");
}

/// The addresses that the kernel chooses for devices are not remembered.
fn without_macs(mut observed: Observed) -> Observed {
    observed.links.values_mut().for_each(|link| link.mac = None);
    observed
}

/// What a careless administrator does; `restart` is one of the agent.
const TROUBLE: [&str; 8] = [
    "restart",
    "ip link delete mesh0",
    "ip link delete meshvx0",
    "ip link set mesh0 down",
    "ip route flush dev mesh0",
    "ip address flush dev mesh0",
    "nft flush ruleset",
    "for d in $(ip -o link | grep -oE 'mesh[0-9a-f]{8}'); do ip link delete $d; done",
];

#[test]
fn random_states_are_reached_from_each_other_on_the_real_kernel() {
    become_host();
    let containers = [(); 3].map(|()| Container::new());
    let whole = RefCell::new(WholeKernel::open());
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let states = (shapes(), 0..TROUBLE.len());
    TestRunner::new(config)
        .run(&states, |(shape, trouble)| {
            let mut whole = whole.borrow_mut();
            let desired = desired(&shape, |container| containers[usize::from(container)].netns());
            let passes = converge(&mut whole.kernel, Some(&desired));
            prop_assert!(passes <= 2, "{passes} passes");
            if TROUBLE[trouble] == "restart" {
                whole.reopen();
            } else {
                run(&format!("{} 2>&1", TROUBLE[trouble]));
            }
            let passes = converge(&mut whole.kernel, Some(&desired));
            prop_assert!(passes <= 2, "{passes} passes after {}", TROUBLE[trouble]);
            Ok(())
        })
        .unwrap();
    let mut whole = whole.borrow_mut();
    converge(&mut whole.kernel, None);
    assert!(!whole.pins.exists(), "pins are left");
    let left = run("ip -o link");
    assert!(!left.contains("mesh"), "{left}");
}
