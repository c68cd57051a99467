//! The order of a member's steps.

use std::collections::BTreeSet;

use mesh_ebpf_types::{MapEntry, MapKey, ProgramKind};
use mesh_ipam::Family;
use mesh_model::observed::{
    AttachedProgram, Attachment, FirewallState, InterfaceAddress, LinkKind, OwnRules, Pins,
};
use mesh_model::plan::{Step, outer_mtu};
use mesh_model::{Action, Desired, EndpointId, IfName, Observed, Plan, naming};

use crate::target::{Target, TargetEndpoint};

/// Returns the steps from the observed to the desired state.
pub(crate) fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let target = Target::derive(desired, observed);
    let mut planner = Planner { observed, target: &target, steps: Vec::new(), replaced: BTreeSet::new() };
    planner.disconnect_removed();
    planner.remove_links();
    planner.load();
    planner.switches_and_firewall();
    planner.vxlan();
    planner.host_leg();
    planner.shared_entries();
    planner.shared_attachments();
    planner.host_addresses_and_routes();
    for (id, endpoint) in &target.endpoints {
        planner.endpoint(id, endpoint);
    }
    planner.egress();
    planner.remove_host_routes_and_addresses();
    planner.remove_entries();
    planner.remove_attachments();
    let steps = planner.steps;
    Plan { steps, lost: target.lost, problems: target.problems }
}

struct Planner<'a> {
    observed: &'a Observed,
    target: &'a Target,
    steps: Vec<Step>,
    /// Devices that are removed to be recreated: their attachments and addresses are gone.
    replaced: BTreeSet<IfName>,
}

impl Planner<'_> {
    fn push(&mut self, action: Action) {
        self.steps.push(Step { action, endpoint: None });
    }

    fn push_for(&mut self, endpoint: &EndpointId, action: Action) {
        self.steps.push(Step { action, endpoint: Some(endpoint.clone()) });
    }

    fn link(&self, name: &IfName) -> Option<&mesh_model::observed::Link> {
        self.observed.links.get(name).filter(|_| !self.replaced.contains(name))
    }

    /// Returns whether the maps have this entry. Loading may find maps of another layout and start
    /// with empty ones, so until then every entry counts as missing.
    fn holds(&self, entry: &MapEntry) -> bool {
        self.observed.programs.pins == Pins::Current
            && self.observed.programs.entries.get(&entry.key()) == Some(entry)
    }

    fn runs(&self, attachment: Attachment) -> bool {
        self.observed.programs.attachments.get(&attachment) == Some(&AttachedProgram::Current)
            && self.observed.programs.pins == Pins::Current
    }

    /// Disconnects endpoints that are removed: no entry leads to them, and packets from their
    /// devices are dropped until the devices are removed.
    fn disconnect_removed(&mut self) {
        let wanted_addresses: BTreeSet<MapKey> = self
            .target
            .endpoints
            .values()
            .flat_map(|endpoint| endpoint.addresses.iter().map(MapEntry::key))
            .collect();
        let wanted_interfaces: BTreeSet<MapKey> =
            self.target.endpoints.values().map(|endpoint| endpoint.interface.key()).collect();
        if self.observed.programs.pins != Pins::Current {
            return;
        }
        let present = self.observed.programs.entries.keys();
        let unwanted = |key: &&MapKey| match key {
            MapKey::Endpoint(_) => !wanted_addresses.contains(*key),
            MapKey::Interface(_) => !wanted_interfaces.contains(*key),
            _ => false,
        };
        let (addresses, interfaces): (Vec<&MapKey>, Vec<&MapKey>) =
            present.filter(unwanted).partition(|key| matches!(key, MapKey::Endpoint(_)));
        for key in addresses.into_iter().chain(interfaces) {
            self.push(Action::DeleteEntry(*key));
        }
    }

    fn load(&mut self) {
        if self.observed.programs.pins != Pins::Current {
            self.push(Action::LoadPrograms);
        }
    }

    /// The firewall rules precede the endpoints that they protect.
    fn switches_and_firewall(&mut self) {
        for sysctl in self.target.sysctls.difference(&self.observed.sysctls) {
            self.push(Action::SetSysctl(*sysctl));
        }
        if self.observed.firewall != FirewallState::Intact(self.target.firewall.clone()) {
            self.push(Action::SetFirewall(self.target.firewall.clone()));
        }
        for (iptables, state) in &self.observed.filters.iptables {
            match (self.target.passes(iptables.hook), state.rules) {
                (true, OwnRules::None | OwnRules::Some) if state.closed => {
                    self.push(Action::OpenFilter(*iptables));
                }
                (false, OwnRules::Some | OwnRules::All) => self.push(Action::CloseFilter(*iptables)),
                _ => {}
            }
        }
    }

    fn vxlan(&mut self) {
        let device = &self.target.vxlan;
        let kind = LinkKind::Vxlan { port: device.port, external: true };
        if let Some(link) = self.link(&device.name)
            && (link.kind != kind || link.index != device.index)
        {
            self.push(Action::DeleteLink { name: device.name.clone(), index: link.index });
            self.replaced.insert(device.name.clone());
        }
        match self.link(&device.name) {
            None => self.push(Action::CreateVxlan(device.clone())),
            Some(_) => self.update_device(&device.name, device.mtu),
        }
    }

    /// Both ends or none: if one is wrong, the pair is recreated.
    fn host_leg(&mut self) {
        let leg = &self.target.host_leg;
        let end = |name, index, peer| {
            self.link(name).is_some_and(|link| {
                link.index == index && link.kind == LinkKind::Veth { peer, peer_is_here: true }
            })
        };
        let sound =
            end(&leg.name, leg.index, leg.peer_index) && end(&leg.peer_name, leg.peer_index, leg.index);
        if sound {
            if self.link(&leg.name).is_some_and(|link| link.arp) {
                self.push(Action::SetNoArp { index: leg.index });
            }
            self.update_device(&leg.name, leg.mtu);
            self.update_device(&leg.peer_name, leg.mtu);
            return;
        }
        let mut removed_with = None;
        for name in [&leg.name, &leg.peer_name] {
            let Some(link) = self.link(name) else { continue };
            let index = link.index;
            if removed_with != Some(index) {
                removed_with = match link.kind {
                    LinkKind::Veth { peer, peer_is_here: true } => Some(peer),
                    _ => None,
                };
                self.push(Action::DeleteLink { name: name.clone(), index });
            }
            self.replaced.insert(name.clone());
        }
        self.push(Action::CreateHostLeg(leg.clone()));
    }

    /// Sets the MTU of an existing device, and sets it up.
    fn update_device(&mut self, name: &IfName, mtu: u32) {
        let Some(link) = self.link(name) else { return };
        let (index, up, old) = (link.index, link.up, link.mtu);
        if old != mtu {
            self.push(Action::SetMtu { index, mtu });
        }
        if !up {
            self.push(Action::SetUp { index });
        }
    }

    /// In the order of the maps: a network precedes entries that refer to it.
    fn shared_entries(&mut self) {
        for entry in self.target.entries.values() {
            if !self.holds(entry) {
                self.push(Action::PutEntry(*entry));
            }
        }
    }

    fn shared_attachments(&mut self) {
        self.attach_where(|kind| !kind.is_egress());
    }

    /// Attach this program last: it drops unmarked tunnel packets, and only now do all other
    /// programs mark theirs.
    fn egress(&mut self) {
        self.attach_where(ProgramKind::is_egress);
    }

    fn attach_where(&mut self, is_due: impl Fn(ProgramKind) -> bool) {
        for attachment in self.target.attachments.iter().filter(|attachment| is_due(attachment.kind)) {
            let device_is_new = self
                .replaced
                .iter()
                .filter_map(|name| self.observed.links.get(name))
                .any(|link| link.index == attachment.ifindex);
            let of_underlay = matches!(attachment.kind, ProgramKind::Underlay | ProgramKind::Egress);
            let keep = self.observed.underlay.is_none() && of_underlay;
            if !keep && (device_is_new || !self.runs(*attachment)) {
                self.push(Action::Attach(*attachment));
            }
        }
    }

    /// Addresses first: routes use them as their source.
    fn host_addresses_and_routes(&mut self) {
        for subnet in self.target.unreachable.difference(&self.observed.unreachable) {
            self.push(Action::PutUnreachable { subnet: *subnet });
        }
        let index = self.target.host_leg.index;
        let is_new = self.link(&self.target.host_leg.name).is_none();
        for address in &self.target.host_addresses {
            if is_new || !self.observed.host_addresses.contains(address) {
                self.push(Action::AddAddress { index, address: *address });
            }
        }
        for route in &self.target.host_routes {
            if is_new || !self.observed.host_routes.contains(route) {
                self.push(Action::PutRoute { index, route: *route });
            }
        }
    }

    /// An endpoint's device forwards nothing until it is set up, which is the last step.
    fn endpoint(&mut self, id: &EndpointId, endpoint: &TargetEndpoint) {
        let device = &endpoint.device;
        let link = self.link(&device.name).cloned();
        if link.is_none() {
            self.push_for(id, Action::CreateEndpoint(device.clone()));
        }
        if !self.holds(&endpoint.interface) {
            self.push_for(id, Action::PutEntry(endpoint.interface));
        }
        let attachment = Attachment { ifindex: device.index, kind: ProgramKind::Endpoint };
        if link.is_none() || !self.runs(attachment) {
            self.push_for(id, Action::Attach(attachment));
        }
        for entry in &endpoint.addresses {
            if !self.holds(entry) {
                self.push_for(id, Action::PutEntry(*entry));
            }
        }
        if let Some(link) = &link
            && link.mtu != outer_mtu(device.mtu)
        {
            let (index, mtu, burst) = (link.index, device.mtu, device.burst);
            let action = match link.kind {
                LinkKind::Veth { peer, .. } if self.observed.namespaces.contains(id) => {
                    Action::SetEndpointMtu { index, peer, netns: device.netns.clone(), mtu, burst }
                }
                _ => Action::SetMtu { index, mtu: outer_mtu(mtu) },
            };
            self.push_for(id, action);
        }
        if link.is_none_or(|link| !link.up) {
            self.push_for(id, Action::SetUp { index: device.index });
        }
    }

    /// Remove a device before its program: without the program, packets from the container would
    /// reach the host. Also remove it before new devices are created, which may have the same name
    /// inside the container.
    fn remove_links(&mut self) {
        let mut target: BTreeSet<&IfName> =
            [&self.target.vxlan.name, &self.target.host_leg.name, &self.target.host_leg.peer_name].into();
        target.extend(self.target.endpoints.values().map(|endpoint| &endpoint.device.name));
        // The WireGuard engine's device, which the engine removes when it ends.
        let engine = crate::target::name(naming::WIREGUARD);
        target.insert(&engine);
        for (name, link) in &self.observed.links {
            if target.contains(name) {
                continue;
            }
            self.push(Action::DeleteLink { name: name.clone(), index: link.index });
        }
    }

    fn remove_host_routes_and_addresses(&mut self) {
        for subnet in self.observed.unreachable.difference(&self.target.unreachable) {
            self.push(Action::RemoveUnreachable { subnet: *subnet });
        }
        let index = self.target.host_leg.index;
        if self.link(&self.target.host_leg.name).is_none() {
            return;
        }
        let subnets: BTreeSet<_> = self.target.host_routes.iter().map(|route| route.subnet).collect();
        for route in self.observed.host_routes.difference(&self.target.host_routes) {
            // If the subnet still has a route, the new route has replaced this one.
            if !subnets.contains(&route.subnet) {
                self.push(Action::RemoveRoute { index, route: *route });
            }
        }
        let removed: Vec<_> =
            self.observed.host_addresses.difference(&self.target.host_addresses).copied().collect();
        for address in &removed {
            self.push(Action::RemoveAddress { index, address: *address });
        }
        // With a device's last IPv4 address, the kernel removes its IPv4 routes, including those
        // that should stay.
        let is_ipv4 = |address: &InterfaceAddress| address.address.is_ipv4();
        if removed.iter().any(is_ipv4) && !self.target.host_addresses.iter().any(is_ipv4) {
            for route in &self.target.host_routes {
                if route.subnet.family() == Family::Ipv4 {
                    self.push(Action::PutRoute { index, route: *route });
                }
            }
        }
    }

    /// Entries that refer to a network are removed before it.
    fn remove_entries(&mut self) {
        if self.observed.programs.pins != Pins::Current {
            return;
        }
        for key in self.observed.programs.entries.keys().rev() {
            let of_endpoint = matches!(key, MapKey::Endpoint(_) | MapKey::Interface(_));
            if !of_endpoint && !self.target.entries.contains_key(key) {
                self.push(Action::DeleteEntry(*key));
            }
        }
    }

    fn remove_attachments(&mut self) {
        let of_endpoints = self.target.endpoints.values();
        let of_endpoints = of_endpoints
            .map(|endpoint| Attachment { ifindex: endpoint.device.index, kind: ProgramKind::Endpoint });
        let target: BTreeSet<Attachment> =
            self.target.attachments.iter().copied().chain(of_endpoints).collect();
        for attachment in self.observed.programs.attachments.keys() {
            if !target.contains(attachment) {
                self.push(Action::Detach(*attachment));
            }
        }
    }
}
