//! The steps that remove everything of Mesh.

use mesh_model::observed::{FirewallState, LinkKind, Observed, OwnRules, Pins};
use mesh_model::plan::{Plan, Step};
use mesh_model::{Action, naming};

/// Removes endpoints' devices first, while their programs are still attached: without programs,
/// packets from containers would reach the host. Then removes the other devices, the programs, and
/// finally the firewall rules.
pub(crate) fn plan(observed: &Observed) -> Plan {
    let mut actions = Vec::new();
    let (endpoints, others): (Vec<_>, Vec<_>) =
        observed.links.iter().partition(|(name, _)| naming::is_endpoint(name.as_str()));
    let mut gone_with_peer = Vec::new();
    for (name, link) in endpoints.into_iter().chain(others) {
        if gone_with_peer.contains(&link.index) {
            continue;
        }
        if let LinkKind::Veth { peer, peer_is_here: true } = link.kind {
            gone_with_peer.push(peer);
        }
        actions.push(Action::DeleteLink { name: name.clone(), index: link.index });
    }
    actions.extend(observed.unreachable.iter().map(|subnet| Action::RemoveUnreachable { subnet: *subnet }));
    if observed.programs.pins != Pins::Absent {
        actions.push(Action::UnloadPrograms);
    }
    if observed.firewall != FirewallState::Absent {
        actions.push(Action::RemoveFirewall);
    }
    let ours = observed.filters.iptables.iter().filter(|(_, state)| state.rules != OwnRules::None);
    actions.extend(ours.map(|(iptables, _)| Action::CloseFilter(*iptables)));
    let steps = actions.into_iter().map(|action| Step { action, endpoint: None }).collect();
    Plan { steps, ..Plan::default() }
}
