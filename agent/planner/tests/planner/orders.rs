//! The order of steps where it matters.

use std::collections::BTreeSet;
use std::path::PathBuf;

use mesh_ebpf_types::{Address, BlockKind, MapEntry, MapKey};
use mesh_model::endpoint::NetnsRef;
use mesh_model::observed::{AttachedProgram, FirewallState, Pins, Sysctl, UnderlayLink};
use mesh_model::plan::{PlanProblem, outer_mtu};
use mesh_model::{Action, Desired, Observed, Plan};
use mesh_planner::{network_mtu, plan};

use crate::support::{EndpointShape, NetworkShape, Shape, desired, network_id};

fn network(number: u8) -> NetworkShape {
    NetworkShape { number, ipv6: false, second_subnet: false, internal: false, mtu: None }
}

fn endpoint(number: u8, network: u8, container: u8) -> EndpointShape {
    EndpointShape { number, network, container, host_part: 2 + number, allow_forwarding: false }
}

fn shape(endpoints: &[EndpointShape]) -> Shape {
    Shape {
        others: vec![1500],
        networks: vec![network(0), network(1)],
        endpoints: endpoints.to_vec(),
        borrowed: BTreeSet::new(),
        port: 4789,
    }
}

fn state(shape: &Shape) -> Desired {
    let namespace = |container: u8| NetnsRef {
        path: PathBuf::from(format!("/run/netns/c{container}")),
        inode: container.into(),
        cookie: 0,
    };
    desired(shape, namespace)
}

fn host(desired: &Desired) -> Observed {
    let underlay = UnderlayLink { name: "eth0".parse().unwrap(), index: 7, mtu: 1500, mac: None };
    Observed {
        underlay: Some(underlay),
        namespaces: desired.endpoints.keys().cloned().collect(),
        ..Observed::default()
    }
}

/// Returns a host that has reached a desired state.
fn reached(desired: &Desired) -> Observed {
    let mut observed = host(desired);
    for step in plan(Some(desired), &observed).steps {
        observed.apply(&step.action).unwrap();
    }
    observed
}

/// Formats a step briefly.
fn brief(action: &Action) -> String {
    match action {
        Action::PutEntry(entry) => format!("put {}", of_map(&entry.key())),
        Action::DeleteEntry(key) => format!("delete {}", of_map(key)),
        Action::Attach(attachment) => format!("attach {}", attachment.kind.name()),
        Action::Detach(attachment) => format!("detach {}", attachment.kind.name()),
        Action::CreateEndpoint(device) => format!("create {}", device.ifname),
        Action::DeleteLink { name, .. } => format!("remove {name}"),
        Action::AddAddress { address, .. } => format!("add {}", address.address),
        Action::RemoveAddress { address, .. } => format!("remove {}", address.address),
        Action::PutRoute { route, .. } => format!("route {}", route.subnet),
        Action::RemoveRoute { route, .. } => format!("unroute {}", route.subnet),
        other => format!("{other:?}").split([' ', '(', '{']).next().unwrap().to_owned(),
    }
}

fn of_map(key: &MapKey) -> &'static str {
    match key {
        MapKey::Config => "config",
        MapKey::Network(_) => "network",
        MapKey::Interface(_) => "interface",
        MapKey::Endpoint(_) => "endpoint",
        MapKey::Block(_) => "block",
        MapKey::HostRoute(_) => "host route",
        MapKey::Member(_) => "member",
        MapKey::StandIn(_) => "stand-in",
        MapKey::HostAddress(_) => "host address",
    }
}

/// Formats the steps briefly, without repetitions.
fn briefly(plan: &Plan) -> Vec<String> {
    let mut steps: Vec<String> = plan.steps.iter().map(|step| brief(&step.action)).collect();
    steps.dedup();
    steps
}

#[test]
fn a_new_member_builds_everything_in_dependency_order() {
    let desired = state(&shape(&[endpoint(0, 0, 0)]));
    let plan = plan(Some(&desired), &host(&desired));
    assert_eq!(
        briefly(&plan),
        [
            "LoadPrograms",
            "SetSysctl",
            "SetFirewall",
            "CreateVxlan",
            "CreateHostLeg",
            "put config",
            "put network",
            "put block",
            "put host route",
            "put member",
            "attach underlay",
            "attach host",
            "attach overlay",
            "PutUnreachable",
            "add 10.64.0.1",
            "route 10.64.0.0/24",
            "route 169.254.42.0/24",
            "create eth0",
            "put interface",
            "attach endpoint",
            "put endpoint",
            "SetUp",
            "attach egress",
        ]
    );
}

#[test]
fn an_attach_to_an_existing_network_is_five_steps() {
    let before = state(&shape(&[endpoint(0, 0, 0)]));
    let after = state(&shape(&[endpoint(0, 0, 0), endpoint(1, 0, 1)]));
    let mut observed = reached(&before);
    observed.namespaces = after.endpoints.keys().cloned().collect();
    let plan = plan(Some(&after), &observed);
    assert_eq!(briefly(&plan), ["create eth1", "put interface", "attach endpoint", "put endpoint", "SetUp"]);
    let id = crate::support::endpoint_id(endpoint(1, 0, 1));
    assert!(plan.steps.iter().all(|step| step.endpoint.as_ref() == Some(&id)));
}

#[test]
fn the_last_endpoint_of_a_network_is_removed_before_the_network() {
    let before = state(&shape(&[endpoint(0, 0, 0), endpoint(1, 1, 1)]));
    let after = state(&shape(&[endpoint(0, 0, 0)]));
    assert_eq!(
        briefly(&plan(Some(&after), &reached(&before))),
        [
            "delete endpoint",
            "delete interface",
            "remove mesh01010100",
            "unroute 10.64.1.0/24",
            "remove 10.64.1.1",
            "delete block",
            "delete network",
            "detach endpoint",
        ]
    );
}

#[test]
fn packets_to_a_network_without_local_endpoints_do_not_leave_the_host() {
    let mut desired = state(&shape(&[endpoint(0, 0, 0)]));
    let far = crate::support::network_id(1);
    // Only its record is known.
    desired.leases.retain(|lease| lease.network != far);
    let observed = reached(&desired);
    let subnet = desired.networks[&far].subnets[0].subnet;
    assert!(observed.unreachable.contains(&subnet));
    assert!(!observed.host_routes.iter().any(|route| route.subnet == subnet));
    let vni = mesh_ebpf_types::Vni::new(desired.networks[&far].vni.get());
    let entries = observed.programs.entries.values();
    let of_far: Vec<&MapEntry> = entries
        .filter(|entry| match entry {
            MapEntry::Network(of, _) | MapEntry::HostRoute(_, of) => *of == vni,
            MapEntry::Block(key, _) => key.vni == vni,
            _ => false,
        })
        .collect();
    assert!(matches!(of_far.as_slice(), [MapEntry::HostRoute(..)]), "{of_far:?}");
    assert!(
        matches!(&observed.firewall, FirewallState::Intact(rules) if !rules.masquerade.contains(&subnet))
    );

    let removed = Desired {
        networks: desired.networks.clone().into_iter().filter(|(id, _)| *id != far).collect(),
        ..desired.clone()
    };
    assert_eq!(briefly(&plan(Some(&removed), &observed)), ["RemoveUnreachable", "delete host route"]);
}

#[test]
fn reattaching_a_container_removes_its_old_device_first() {
    // Both are called `eth0` inside, so the old one must be removed first.
    let before = state(&shape(&[endpoint(0, 0, 0)]));
    let after = state(&shape(&[endpoint(0, 1, 0)]));
    let mut observed = reached(&before);
    observed.namespaces = after.endpoints.keys().cloned().collect();
    let steps = briefly(&plan(Some(&after), &observed));
    let position = |wanted: &str| steps.iter().position(|step| step == wanted).unwrap();
    assert!(position("remove mesh00000000") < position("create eth0"), "{steps:?}");
}

#[test]
fn a_restarted_agent_writes_all_entries_before_it_replaces_a_program() {
    let desired = state(&shape(&[endpoint(0, 0, 0)]));
    let mut observed = reached(&desired);
    observed.programs.pins = Pins::Earlier;
    observed.programs.attachments.values_mut().for_each(|program| *program = AttachedProgram::Earlier);
    assert_eq!(
        briefly(&plan(Some(&desired), &observed)),
        [
            "LoadPrograms",
            "put config",
            "put network",
            "put block",
            "put host route",
            "put member",
            "attach underlay",
            "attach host",
            "attach overlay",
            "put interface",
            "attach endpoint",
            "put endpoint",
            "attach egress",
        ]
    );
}

#[test]
fn leaving_removes_endpoints_while_their_programs_are_still_attached() {
    let desired = state(&shape(&[endpoint(0, 0, 0)]));
    assert_eq!(
        briefly(&plan(None, &reached(&desired))),
        [
            "remove mesh00000000",
            "remove mesh0",
            "remove meshvx0",
            "RemoveUnreachable",
            "UnloadPrograms",
            "RemoveFirewall"
        ]
    );
    assert!(plan(None, &Observed::default()).is_empty());
}

#[test]
fn only_a_detached_program_or_a_flushed_firewall_is_restored() {
    let desired = state(&shape(&[endpoint(0, 0, 0)]));
    let mut observed = reached(&desired);
    observed.programs.attachments.retain(|attachment, _| attachment.kind.name() != "endpoint");
    observed.firewall = FirewallState::Altered;
    assert_eq!(briefly(&plan(Some(&desired), &observed)), ["SetFirewall", "attach endpoint"]);
}

#[test]
fn the_mtu_follows_the_smallest_underlay_and_a_network_may_set_less() {
    let mut shape = shape(&[endpoint(0, 0, 0), endpoint(1, 1, 1)]);
    shape.networks[1].mtu = Some(1300);
    let desired = state(&shape);
    let mut observed = reached(&desired);
    let mtu = |observed: &Observed, number| {
        observed.links
            [&desired.endpoints[&crate::support::endpoint_id(endpoint(number, number, number))].host_ifname()]
            .mtu
    };
    assert_eq!((mtu(&observed, 0), mtu(&observed, 1)), (outer_mtu(1450), outer_mtu(1300)));
    // The node's own record still says 1500; its interface's MTU counts.
    observed.underlay.as_mut().unwrap().mtu = 1400;
    for step in plan(Some(&desired), &observed).steps {
        observed.apply(&step.action).unwrap();
    }
    assert_eq!((mtu(&observed, 0), mtu(&observed, 1)), (outer_mtu(1350), outer_mtu(1300)));
    // Another node has less.
    shape.others = vec![1300];
    let desired = state(&shape);
    for step in plan(Some(&desired), &observed).steps {
        observed.apply(&step.action).unwrap();
    }
    assert_eq!((mtu(&observed, 0), mtu(&observed, 1)), (outer_mtu(1250), outer_mtu(1250)));
}

#[test]
fn an_mtu_too_small_for_mesh_is_reported_by_its_own_node_and_bounds_no_network() {
    let mut shape = shape(&[endpoint(0, 0, 0)]);
    shape.others = vec![600];
    let desired = state(&shape);
    let mut observed = reached(&desired);
    assert_eq!(plan(Some(&desired), &observed).problems, [].into(), "it is the other node's problem");
    assert_eq!(network_mtu(&desired, &desired.networks[&network_id(0)], &observed), 1230);
    observed.underlay.as_mut().unwrap().mtu = 600;
    let plan = plan(Some(&desired), &observed);
    let name = "eth0".parse().unwrap();
    assert_eq!(plan.problems, [PlanProblem::SmallUnderlay { name, mtu: 600 }].into());
    assert_eq!(network_mtu(&desired, &desired.networks[&network_id(0)], &observed), 1230);
}

#[test]
fn every_endpoint_has_a_default_route_and_that_of_an_internal_network_says_so() {
    let mut shape = shape(&[endpoint(0, 0, 0), endpoint(1, 1, 0), endpoint(2, 1, 0), endpoint(3, 1, 1)]);
    shape.networks[0].internal = true;
    let desired = state(&shape);
    let gateways: Vec<(bool, Vec<String>)> = plan(Some(&desired), &host(&desired))
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::CreateEndpoint(device) => {
                Some((device.internal, device.gateways.iter().map(ToString::to_string).collect()))
            }
            _ => None,
        })
        .collect();
    let outward = || (false, vec!["10.64.1.1".to_owned()]);
    assert_eq!(gateways, [(true, vec!["10.64.0.1".to_owned()]), outward(), outward(), outward()]);
}

#[test]
fn granted_leases_lead_to_their_nodes_and_pending_ones_nowhere() {
    let mut shape = shape(&[endpoint(0, 0, 0)]);
    shape.borrowed = [(0, 20)].into();
    let observed = reached(&state(&shape));
    let block = |prefix: &str, bits: u8| {
        observed.programs.entries.values().find_map(|entry| match entry {
            MapEntry::Block(key, block)
                if key.address.to_ip().to_string() == prefix && key.prefix_bits == 96 + bits =>
            {
                Some((block.kind, block.tunnel))
            }
            _ => None,
        })
    };
    let peer: Address = "192.168.77.12".parse::<std::net::IpAddr>().unwrap().into();
    assert_eq!(block("10.64.0.0", 24), Some((BlockKind::Unassigned as u32, Address::NONE)));
    assert_eq!(block("10.64.0.1", 32), Some((BlockKind::Gateway as u32, Address::NONE)));
    assert_eq!(block("10.64.0.0", 26), Some((BlockKind::Local as u32, Address::NONE)));
    assert_eq!(block("10.64.0.64", 26), Some((BlockKind::Remote as u32, peer)));
    assert_eq!(block("10.64.0.20", 32), Some((BlockKind::Remote as u32, peer)));
    assert_eq!(block("10.64.0.120", 32), None, "asked for, not yet given");
    assert_eq!(block("10.64.1.0", 24), None, "no endpoint of that network is here");
}

#[test]
fn an_underlay_that_disappears_briefly_keeps_its_state() {
    let desired = state(&shape(&[endpoint(0, 0, 0)]));
    let mut observed = reached(&desired);
    observed.underlay = None;
    let plan = plan(Some(&desired), &observed);
    let away = PlanProblem::NoUnderlay { address: desired.underlay.address };
    assert!(plan.problems.contains(&away));
    assert!(plan.is_empty(), "{:?}", briefly(&plan));
}

#[test]
fn an_ipv6_network_turns_ipv6_forwarding_on_and_needs_room_for_its_neighbours() {
    let mut shape = shape(&[endpoint(0, 0, 0)]);
    let v4 = BTreeSet::from([Sysctl::Ipv4Forwarding, Sysctl::Ipv4Neighbours]);
    assert_eq!(reached(&state(&shape)).sysctls, v4);
    shape.networks[0].ipv6 = true;
    let v6 = BTreeSet::from([Sysctl::Ipv6Forwarding, Sysctl::Ipv6Neighbours]);
    assert_eq!(reached(&state(&shape)).sysctls, &v4 | &v6);
}
