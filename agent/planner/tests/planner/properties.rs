//! Properties of plans for any desired state, applied to a model of the kernel.

use std::collections::BTreeSet;
use std::path::PathBuf;

use mesh_ebpf_types::{MapEntry, MapKey, ProgramKind};
use mesh_model::endpoint::NetnsRef;
use mesh_model::observed::{
    AttachedProgram, Attachment, FirewallState, ObservedPrograms, Pins, UnderlayLink,
};
use mesh_model::{Action, Desired, Observed, naming};
use mesh_planner::plan;
use proptest::prelude::*;

use crate::support::{desired, shapes};

const UNDERLAY_INDEX: u32 = 7;

/// Returns a namespace that does not really exist.
fn imagined(container: u8) -> NetnsRef {
    NetnsRef {
        path: PathBuf::from(format!("/run/netns/imagined-{container}")),
        inode: 1000 + u64::from(container),
        cookie: 0,
    }
}

/// Returns a host with an underlay, and with foreign devices that have the names of Mesh's.
fn host(desired: &Desired) -> Observed {
    let name = "eth0".parse().unwrap();
    Observed {
        underlay: Some(UnderlayLink { name, index: UNDERLAY_INDEX, mtu: 1500, mac: None }),
        foreign_indexes: desired
            .endpoints
            .values()
            .map(|e| naming::preferred_index(&e.host_ifname()))
            .collect(),
        ..Observed::default()
    }
}

fn see(desired: &Desired, mut observed: Observed) -> Observed {
    observed.namespaces = desired.endpoints.keys().cloned().collect();
    observed
}

/// Reconciles until there is nothing to do; returns the number of reconciliations.
fn converge(desired: Option<&Desired>, observed: &mut Observed, check: impl Fn(&Observed, &Action)) -> usize {
    for pass in 0..5 {
        let plan = plan(desired, observed);
        if plan.is_empty() {
            return pass;
        }
        for step in &plan.steps {
            check(observed, &step.action);
            observed
                .apply(&step.action)
                .unwrap_or_else(|error| panic!("{error} at {:?} of {:#?}", step.action, plan.steps));
            no_endpoint_forwards_unguarded(observed);
        }
    }
    panic!("no convergence: {:#?}", plan(desired, observed).steps);
}

/// Asserts that an endpoint's device that is up has its program; otherwise packets from its
/// container would reach the host.
fn no_endpoint_forwards_unguarded(observed: &Observed) {
    for (name, link) in observed.links.iter().filter(|(name, _)| naming::is_endpoint(name.as_str())) {
        let attachment = Attachment { ifindex: link.index, kind: ProgramKind::Endpoint };
        assert!(
            !link.up || observed.programs.attachments.contains_key(&attachment),
            "{name} is up without its program"
        );
    }
}

/// Asserts that a step changes only Mesh's devices and the underlay's hooks.
fn touches_only_ours(observed: &Observed, action: &Action) {
    let ours: BTreeSet<u32> = observed.links.values().map(|link| link.index).collect();
    match action {
        Action::SetUp { index }
        | Action::SetNoArp { index }
        | Action::SetMtu { index, .. }
        | Action::SetEndpointMtu { index, .. }
        | Action::DeleteLink { index, .. }
        | Action::AddAddress { index, .. }
        | Action::RemoveAddress { index, .. }
        | Action::PutRoute { index, .. }
        | Action::RemoveRoute { index, .. } => assert!(ours.contains(index), "{action:?}"),
        Action::Attach(Attachment { ifindex, kind: ProgramKind::Underlay | ProgramKind::Egress }) => {
            assert_eq!(*ifindex, UNDERLAY_INDEX);
        }
        Action::Attach(Attachment { ifindex, .. }) => assert!(ours.contains(ifindex), "{action:?}"),
        _ => {}
    }
}

/// Asserts that an attached program has its entries, and that entries lead only to endpoints with
/// an attached program.
fn respects_order(observed: &Observed, action: &Action) {
    match action {
        Action::Attach(Attachment { ifindex, kind: ProgramKind::Endpoint }) => {
            assert!(
                observed.programs.entries.contains_key(&MapKey::Interface(*ifindex)),
                "attached before its entry"
            );
        }
        Action::Attach(Attachment {
            kind: ProgramKind::Underlay | ProgramKind::Overlay | ProgramKind::Host | ProgramKind::Egress,
            ..
        }) => {
            assert!(observed.programs.entries.contains_key(&MapKey::Config), "attached before CONFIG");
        }
        Action::PutEntry(MapEntry::Endpoint(key, endpoint)) => {
            let attachment = Attachment { ifindex: endpoint.ifindex, kind: ProgramKind::Endpoint };
            assert!(
                observed.programs.attachments.contains_key(&attachment),
                "found before its program stands"
            );
            assert!(
                observed.programs.entries.contains_key(&MapKey::Network(key.vni)),
                "found before its network"
            );
        }
        Action::PutEntry(MapEntry::Block(key, _)) => {
            assert!(
                observed.programs.entries.contains_key(&MapKey::Network(key.vni)),
                "a block before its network"
            );
        }
        Action::DeleteEntry(MapKey::Network(vni)) => {
            let left = observed.programs.entries.keys().any(|key| match key {
                MapKey::Endpoint(key) => key.vni == *vni,
                MapKey::Block(key) => key.vni == *vni,
                _ => false,
            });
            assert!(!left, "a network goes before what refers to it");
        }
        _ => {}
    }
}

fn check(observed: &Observed, action: &Action) {
    touches_only_ours(observed, action);
    respects_order(observed, action);
}

/// Simulates a change by another program.
fn disturb(observed: &mut Observed, kind: u8) {
    match kind {
        0 => observed.firewall = FirewallState::Altered,
        1 => observed.sysctls.clear(),
        2 => observed.host_routes.clear(),
        3 => {
            observed.programs.attachments.pop_first();
            for link in observed.links.values_mut() {
                link.up = false;
            }
        }
        4 => {
            let Some((name, link)) = observed.links.iter().next() else { return };
            let action = Action::DeleteLink { name: name.clone(), index: link.index };
            observed.apply(&action).unwrap();
        }
        5 => {
            // meshd restarts.
            observed.programs.pins = Pins::Earlier;
            observed
                .programs
                .attachments
                .values_mut()
                .for_each(|program| *program = AttachedProgram::Earlier);
        }
        6 => observed.links.values_mut().for_each(|link| link.mtu = 999),
        7 => {
            observed.programs.entries.pop_last();
        }
        _ => observed.underlay.as_mut().unwrap().mtu = 1300,
    }
}

proptest! {
    #[test]
    fn any_state_is_reached_from_any_other_in_one_reconciliation(before in shapes(), after in shapes(), trouble in prop::collection::vec(0..9u8, 0..3)) {
        let before = desired(&before, imagined);
        let after = desired(&after, imagined);
        let mut observed = see(&before, host(&before));
        prop_assert!(converge(Some(&before), &mut observed, check) <= 1);
        for kind in &trouble {
            disturb(&mut observed, *kind);
        }
        let mut observed = see(&after, observed);
        let passes = converge(Some(&after), &mut observed, check);
        // Entries that an earlier process left are visible only after adoption.
        prop_assert!(passes <= if trouble.contains(&5) { 2 } else { 1 }, "{passes} passes");
    }

    #[test]
    fn a_change_removes_nothing_of_unchanged_endpoints_and_blocks(before in shapes(), after in shapes()) {
        let before = desired(&before, imagined);
        let after = desired(&after, imagined);
        let mut observed = see(&before, host(&before));
        converge(Some(&before), &mut observed, check);
        let mut reached = see(&after, observed.clone());
        converge(Some(&after), &mut reached, check);

        let stays = |old: &Observed, new: &Observed| -> BTreeSet<MapEntry> {
            old.programs.entries.values().filter(|entry| new.programs.entries.get(&entry.key()) == Some(entry)).copied().collect()
        };
        let entries = stays(&observed, &reached);
        let attachments: Vec<Attachment> =
            observed.programs.attachments.keys().filter(|a| reached.programs.attachments.contains_key(a)).copied().collect();
        let mut observed = see(&after, observed);
        // Except if the port changed, which recreates the VXLAN device.
        let same_port = before.underlay.port == after.underlay.port;
        for step in plan(Some(&after), &observed).steps {
            observed.apply(&step.action).unwrap();
            for entry in &entries {
                prop_assert_eq!(observed.programs.entries.get(&entry.key()), Some(entry));
            }
            for attachment in attachments.iter().filter(|_| same_port) {
                prop_assert!(observed.programs.attachments.contains_key(attachment));
            }
        }
    }

    #[test]
    fn leaving_removes_everything_of_mesh(shape in shapes(), trouble in prop::collection::vec(0..9u8, 0..3)) {
        let desired = desired(&shape, imagined);
        let mut observed = see(&desired, host(&desired));
        converge(Some(&desired), &mut observed, check);
        for kind in trouble {
            disturb(&mut observed, kind);
        }
        prop_assert!(converge(None, &mut observed, check) <= 1);
        prop_assert!(observed.links.is_empty());
        prop_assert_eq!(observed.programs, ObservedPrograms::default());
        prop_assert_eq!(observed.firewall, FirewallState::Absent);
    }

    #[test]
    fn the_same_states_give_the_same_plan(shape in shapes()) {
        let desired = desired(&shape, imagined);
        let observed = see(&desired, host(&desired));
        prop_assert_eq!(plan(Some(&desired), &observed), plan(Some(&desired.clone()), &observed.clone()));
    }

    #[test]
    fn nothing_is_created_for_an_endpoint_whose_namespace_is_gone(shape in shapes(), gone in 0..3usize) {
        let desired = desired(&shape, imagined);
        let Some(gone) = desired.endpoints.keys().nth(gone).cloned() else { return Ok(()) };
        let mut observed = see(&desired, host(&desired));
        observed.namespaces.remove(&gone);
        let plan = plan(Some(&desired), &observed);
        prop_assert_eq!(plan.lost, [gone.clone()].into());
        prop_assert!(plan.steps.iter().all(|step| step.endpoint.as_ref() != Some(&gone)));
    }
}
