//! What is not ours.

use std::collections::BTreeSet;

use mesh_kernel::{Depth, Kernel, execute};
use mesh_model::{Desired, Observed};
use mesh_planner::plan;

use crate::shapes::{EndpointShape, NetworkShape, Shape, desired};
use crate::support::{Container, WholeKernel, become_host, kernel, run};

/// A host that others use too, with names that look like ours.
const OTHERS: &str = "
    ip link add cni0 type bridge && ip link set cni0 up && ip address add 10.22.0.1/16 dev cni0
    ip link add flannel.1 type vxlan id 1 dstport 8472 nolearning && ip link set flannel.1 up
    ip link add docker0 type bridge && ip address add 172.17.0.1/16 dev docker0
    ip link add mesh-notours type veth peer name meshtastic0 && ip link set mesh-notours mtu 1400 up
    ip link add mesh1234abcd type bridge
    ip link add name strange index 1077777777 type bridge
    ip route add 10.99.0.0/16 via 10.22.0.2
    nft add table inet theirs && nft add chain inet theirs c && nft add rule inet theirs c accept";

fn others() -> String {
    // Without the carrier's state, which changes by itself for a moment.
    run("for d in cni0 flannel.1 docker0 mesh-notours meshtastic0 mesh1234abcd strange eth0 wire; do \
         ip -o link show $d | sed 's/<.*>//; s/state [A-Z]*//'; ip -o -4 address show $d; done; ip route show | sed 's/ linkdown//' | grep -vE 'mesh0|proto 77'; nft list table inet theirs")
}

fn everything() -> Shape {
    let networks = [false, true].map(|internal| NetworkShape {
        number: internal.into(),
        ipv6: true,
        second_subnet: true,
        internal,
        mtu: None,
    });
    let endpoint = |number| EndpointShape {
        number,
        network: number % 2,
        container: 0,
        host_part: 2 + number,
        allow_forwarding: false,
    };
    Shape {
        others: vec![1500, 1500],
        networks: networks.into(),
        endpoints: (0..4).map(endpoint).collect(),
        borrowed: BTreeSet::new(),
        port: 4789,
    }
}

fn pass(kernel: &mut impl Kernel, desired: Option<&Desired>) -> Observed {
    let observed = kernel.observe(desired, Depth::Full).unwrap();
    let report = execute(kernel, &plan(desired, &observed));
    assert!(report.is_success(), "{:#?}", report.failures);
    kernel.observe(desired, Depth::Full).unwrap()
}

#[test]
fn what_is_not_ours_survives_membership_and_its_end() {
    become_host();
    run(OTHERS);
    let container = Container::new();
    let before = others();
    let mut whole = WholeKernel::open();
    let desired = desired(&everything(), |_| container.netns());

    let observed = pass(&mut whole.kernel, Some(&desired));
    assert_eq!(observed.links.len(), 3 + 4);
    assert_eq!(observed.foreign_indexes, [1_077_777_777].into());
    assert_eq!(others(), before);
    assert!(plan(Some(&desired), &observed).is_empty());

    let observed = pass(&mut whole.kernel, None);
    assert!(plan(None, &observed).is_empty() && observed.links.is_empty());
    assert_eq!(others(), before);
    assert!(!container.ip("link").contains("eth"));
}

/// Name and Ethernet header of each interface of the host that is observed.
fn interfaces(kernel: &mut impl Kernel) -> Vec<(String, bool)> {
    let observed = kernel.observe(None, Depth::Quick).unwrap();
    let interfaces = observed.host_interfaces.values();
    let mut found: Vec<_> = interfaces.map(|found| (found.name.to_string(), found.ethernet)).collect();
    found.sort();
    found
}

#[test]
fn interfaces_of_the_host_are_observed_without_ports_of_bridges() {
    become_host();
    let mut kernel = kernel();
    let ethernet = |name: &str| (name.to_owned(), true);
    assert_eq!(interfaces(&mut kernel), ["eth0", "wire"].map(ethernet));
    run("ip link add meshvx0 type vxlan id 1 dstport 4789 && ip link add mesh0 type veth peer name mesh0p
         ip link add mesh01234567 type veth peer name port && ip link add docker0 type bridge
         ip link set port master docker0 && ip link add flannel.1 type vxlan id 2 dstport 8472
         ip link add link eth0 name macvlan0 type macvlan && ip tuntap add mode tun name tun0
         ip tuntap add mode tap name tap0");
    let mut expected = ["docker0", "eth0", "flannel.1", "macvlan0", "tap0", "tun0", "wire"].map(ethernet);
    expected[5].1 = false;
    assert_eq!(interfaces(&mut kernel), expected);
    run("ip link set tun0 name vpn && ip link set tap0 master docker0 && ip link delete flannel.1
         ip link set port nomaster");
    let mut expected = ["docker0", "eth0", "macvlan0", "port", "vpn", "wire"].map(ethernet);
    expected[4].1 = false;
    assert_eq!(interfaces(&mut kernel), expected);
}
