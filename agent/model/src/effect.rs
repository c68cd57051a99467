//! What a kernel looks like after a step: the model of the kernel that tests without one stand on.

use mesh_ipam::Family;

use crate::naming::is_endpoint;
use crate::observed::{
    AttachedProgram, FirewallState, Iptables, Link, LinkKind, Observed, ObservedPrograms, OwnRules, Pins,
};
use crate::plan::{Action, EndpointDevice, HostLeg, VxlanDevice, outer_mtu};
use crate::{IfName, MacAddr};

/// Why a kernel would not take a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// The name or the index of a device to be made is taken.
    #[error("there is a device {name} or one with index {index}")]
    Exists {
        /// The name.
        name: IfName,
        /// The index.
        index: u32,
    },
    /// There is no device of that index.
    #[error("there is no device with index {index}")]
    NoDevice {
        /// The index.
        index: u32,
    },
    /// Programs and maps are not loaded.
    #[error("the programs are not loaded")]
    NotLoaded,
}

impl Observed {
    /// Does to this state what the step does to a kernel.
    pub fn apply(&mut self, action: &Action) -> Result<(), Impossible> {
        match action {
            Action::LoadPrograms => self.programs.pins = Pins::Current,
            Action::UnloadPrograms => self.programs = ObservedPrograms::default(),
            Action::PutEntry(entry) => {
                self.loaded()?;
                self.programs.entries.insert(entry.key(), *entry);
            }
            Action::DeleteEntry(key) => {
                self.loaded()?;
                self.programs.entries.remove(key);
            }
            Action::Attach(attachment) => {
                self.loaded()?;
                let underlay = self.underlay.as_ref().is_some_and(|link| link.index == attachment.ifindex);
                if !underlay && !self.host_interfaces.contains_key(&attachment.ifindex) {
                    self.link(attachment.ifindex)?;
                }
                self.programs.attachments.insert(*attachment, AttachedProgram::Current);
            }
            Action::Detach(attachment) => {
                self.programs.attachments.remove(attachment);
            }
            Action::CreateVxlan(device) => self.create_vxlan(device)?,
            Action::CreateHostLeg(leg) => self.create_host_leg(leg)?,
            Action::CreateEndpoint(device) => self.create_endpoint(device)?,
            Action::SetUp { index } => self.link(*index)?.up = true,
            Action::SetNoArp { index } => self.link(*index)?.arp = false,
            Action::SetMtu { index, mtu } => self.link(*index)?.mtu = *mtu,
            Action::SetEndpointMtu { index, mtu, .. } => self.link(*index)?.mtu = outer_mtu(*mtu),
            Action::DeleteLink { index, .. } => self.delete_link(*index)?,
            Action::AddAddress { index, address } => {
                self.link(*index)?;
                self.host_addresses.insert(*address);
            }
            Action::RemoveAddress { address, .. } => {
                self.host_addresses.remove(address);
                // With a device's last IPv4 address the kernel takes its IPv4 routes.
                if !self.host_addresses.iter().any(|left| left.address.is_ipv4()) && address.address.is_ipv4()
                {
                    self.host_routes.retain(|route| route.subnet.family() != Family::Ipv4);
                }
            }
            Action::PutRoute { index, route } => {
                self.link(*index)?;
                self.host_routes.retain(|other| other.subnet != route.subnet);
                self.host_routes.insert(*route);
            }
            Action::RemoveRoute { route, .. } => {
                self.host_routes.remove(route);
            }
            Action::PutUnreachable { subnet } => {
                self.unreachable.insert(*subnet);
            }
            Action::RemoveUnreachable { subnet } => {
                self.unreachable.remove(subnet);
            }
            Action::SetSysctl(sysctl) => {
                self.sysctls.insert(*sysctl);
            }
            Action::SetFirewall(firewall) => self.firewall = FirewallState::Intact(firewall.clone()),
            Action::RemoveFirewall => self.firewall = FirewallState::Absent,
            Action::OpenFilter(iptables) => self.set_rules(*iptables, OwnRules::All),
            Action::CloseFilter(iptables) => self.set_rules(*iptables, OwnRules::None),
        }
        Ok(())
    }

    fn set_rules(&mut self, iptables: Iptables, rules: OwnRules) {
        if let Some(state) = self.filters.iptables.get_mut(&iptables) {
            state.rules = rules;
        }
    }

    fn loaded(&self) -> Result<(), Impossible> {
        if self.programs.pins == Pins::Current { Ok(()) } else { Err(Impossible::NotLoaded) }
    }

    fn link(&mut self, index: u32) -> Result<&mut Link, Impossible> {
        self.links.values_mut().find(|link| link.index == index).ok_or(Impossible::NoDevice { index })
    }

    fn create(&mut self, name: &IfName, link: Link) -> Result<(), Impossible> {
        let taken =
            self.foreign_indexes.contains(&link.index) || self.links.values().any(|l| l.index == link.index);
        if taken || self.links.contains_key(name) {
            return Err(Impossible::Exists { name: name.clone(), index: link.index });
        }
        self.links.insert(name.clone(), link);
        Ok(())
    }

    fn create_vxlan(&mut self, device: &VxlanDevice) -> Result<(), Impossible> {
        let kind = LinkKind::Vxlan { port: device.port, external: true };
        self.create(
            &device.name,
            Link { index: device.index, kind, mtu: device.mtu, mac: None, up: true, arp: true },
        )
    }

    fn create_host_leg(&mut self, leg: &HostLeg) -> Result<(), Impossible> {
        let end = |index, peer, mac: Option<MacAddr>, arp| Link {
            index,
            kind: LinkKind::Veth { peer, peer_is_here: true },
            mtu: leg.mtu,
            mac,
            up: true,
            arp,
        };
        self.create(&leg.name, end(leg.index, leg.peer_index, Some(leg.mac), false))?;
        self.create(&leg.peer_name, end(leg.peer_index, leg.index, None, true))
    }

    fn create_endpoint(&mut self, device: &EndpointDevice) -> Result<(), Impossible> {
        let kind = LinkKind::Veth { peer: 2, peer_is_here: false };
        self.create(
            &device.name,
            Link { index: device.index, kind, mtu: outer_mtu(device.mtu), mac: None, up: false, arp: true },
        )
    }

    /// A device takes with it the other end of its pair, its programs, and, if it is `mesh0`,
    /// addresses and routes.
    fn delete_link(&mut self, index: u32) -> Result<(), Impossible> {
        let link = self.link(index)?.clone();
        let mut gone = vec![index];
        if let LinkKind::Veth { peer, peer_is_here: true } = link.kind {
            gone.push(peer);
        }
        let host_leg = self.links.iter().any(|(name, l)| l.index == index && !is_endpoint(name.as_str()))
            && matches!(link.kind, LinkKind::Veth { .. });
        if host_leg {
            self.host_addresses.clear();
            self.host_routes.clear();
        }
        self.links.retain(|_, link| !gone.contains(&link.index));
        self.programs.attachments.retain(|attachment, _| !gone.contains(&attachment.ifindex));
        Ok(())
    }
}
