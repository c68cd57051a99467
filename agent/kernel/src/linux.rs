//! The kernel that we run on.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use mesh_model::observed::{FirewallState, ForeignFilters, InterfaceAddress, Observed, UnderlayLink};
use mesh_model::{Action, Desired, naming};
use mesh_sys::netlink::Netlink;

use crate::links::RawLink;
use crate::netlink::{self, During as _};
use crate::{
    Depth, Kernel, KernelError, Programs, addresses, filters, firewall, links, namespace, routes, sysctl,
};

/// [`Kernel`] of the network namespace in which it was opened.
///
/// It must also be used there: switches, firewall and programs are those of the calling thread's
/// namespace.
pub struct LinuxKernel<P> {
    netlink: Netlink,
    programs: P,
    /// As last seen or made.
    firewall: Option<FirewallState>,
    /// As last seen or made.
    filters: Option<ForeignFilters>,
    /// Everything as last seen, and as the steps since then have made it; for
    /// [`Depth::Remembered`].
    remembered: Option<Remembered>,
}

struct Remembered {
    /// The data-path address of the last observation.
    address: IpAddr,
    observed: Observed,
}

impl<P: Programs + Send> LinuxKernel<P> {
    /// Opens it.
    pub fn open(programs: P) -> Result<Self, KernelError> {
        Ok(Self { netlink: netlink::open_own()?, programs, firewall: None, filters: None, remembered: None })
    }

    fn observe_firewall(&mut self, depth: Depth) -> Result<FirewallState, KernelError> {
        match &self.firewall {
            Some(known) if depth < Depth::Full => Ok(known.clone()),
            _ => {
                let found = firewall::observe()?;
                self.firewall = Some(found.clone());
                Ok(found)
            }
        }
    }

    fn observe_filters(&mut self, depth: Depth) -> Result<ForeignFilters, KernelError> {
        match &self.filters {
            Some(known) if depth < Depth::Full => Ok(known.clone()),
            _ => {
                let found = filters::observe()?;
                self.filters = Some(found.clone());
                Ok(found)
            }
        }
    }

    /// What is remembered, with the namespaces of those endpoints that are new.
    fn recall(&mut self, desired: &Desired) -> Option<Observed> {
        let Remembered { address, observed } = self.remembered.as_mut()?;
        if *address != desired.underlay.address {
            return None;
        }
        observed.namespaces.retain(|id| desired.endpoints.contains_key(id));
        for endpoint in desired.endpoints.values() {
            if !observed.namespaces.contains(&endpoint.id)
                && namespace::exists(&endpoint.netns, observed.links.contains_key(&endpoint.host_ifname()))
            {
                observed.namespaces.insert(endpoint.id.clone());
            }
        }
        Some(observed.clone())
    }

    /// Keeps what is remembered as it is in the kernel after a step.
    fn note(&mut self, action: &Action, succeeded: bool) {
        let Some(Remembered { observed, .. }) = &mut self.remembered else { return };
        let mut known = succeeded && observed.apply(action).is_ok();
        if known && let Action::CreateEndpoint(device) = action {
            // The kernel has chosen the index of the inner end.
            let made = links::by_index(&mut self.netlink, device.index).ok().flatten();
            match made.as_ref().and_then(RawLink::ours) {
                Some((name, link)) => drop(observed.links.insert(name, link)),
                None => known = false,
            }
        }
        if !known {
            self.remembered = None;
        }
    }

    fn take(&mut self, action: &Action) -> Result<(), KernelError> {
        let netlink = &mut self.netlink;
        match action {
            Action::LoadPrograms => self.programs.load()?,
            Action::UnloadPrograms => self.programs.unload()?,
            Action::PutEntry(entry) => self.programs.put(entry)?,
            Action::DeleteEntry(key) => self.programs.delete(key)?,
            Action::Attach(attachment) => self.programs.attach(*attachment)?,
            Action::Detach(attachment) => self.programs.detach(*attachment)?,
            Action::CreateVxlan(device) => links::create_vxlan(netlink, device)?,
            Action::CreateHostLeg(leg) => links::create_host_leg(netlink, leg)?,
            Action::CreateEndpoint(device) => links::create_endpoint(netlink, device)?,
            Action::SetUp { index } => {
                links::set_up(netlink, *index)
                    .map_err(|error| error.during(format!("set {} up", links::called(netlink, *index))))?;
            }
            Action::SetNoArp { index } => {
                links::set_no_arp(netlink, *index).map_err(|error| {
                    error.during(format!("set {} to NOARP", links::called(netlink, *index)))
                })?;
            }
            Action::SetMtu { index, mtu } => {
                links::set_mtu(netlink, *index, *mtu).map_err(|error| {
                    error.during(format!("set the MTU of {} to {mtu}", links::called(netlink, *index)))
                })?;
            }
            Action::SetEndpointMtu { index, peer, netns, mtu, burst } => {
                links::set_endpoint_mtu(netlink, *index, *peer, netns, *mtu, *burst)?;
            }
            Action::DeleteLink { name, index } => {
                links::remove(netlink, *index)
                    .map_err(|error| error.during(format!("remove the device {name}")))?;
            }
            Action::AddAddress { index, address } => {
                addresses::add(netlink, *index, *address).map_err(|error| {
                    error.during(format!(
                        "add the address {} to {}",
                        address.address,
                        links::called(netlink, *index)
                    ))
                })?;
            }
            Action::RemoveAddress { index, address } => {
                addresses::remove(netlink, *index, *address).map_err(|error| {
                    let device = links::called(netlink, *index);
                    error.during(format!("remove the address {} from {device}", address.address))
                })?;
            }
            Action::PutRoute { index, route } => {
                routes::put(netlink, *index, *route).map_err(|error| {
                    error.during(format!(
                        "add the route to {} via {}",
                        route.subnet,
                        links::called(netlink, *index)
                    ))
                })?;
            }
            Action::RemoveRoute { index, route } => {
                routes::remove(netlink, *index, *route).map_err(|error| {
                    let device = links::called(netlink, *index);
                    error.during(format!("remove the route to {} via {device}", route.subnet))
                })?;
            }
            Action::PutUnreachable { subnet } => {
                let action = || format!("add the unreachable route to {subnet}");
                routes::put_unreachable(netlink, *subnet).map_err(|error| error.during(action()))?;
            }
            Action::RemoveUnreachable { subnet } => {
                let action = || format!("remove the route that makes {subnet} unreachable");
                routes::remove_unreachable(netlink, *subnet).map_err(|error| error.during(action()))?;
            }
            Action::SetSysctl(sysctl) => sysctl::set(*sysctl)?,
            Action::SetFirewall(wanted) => {
                // Whether it succeeds or fails, the last listing is out of date.
                self.firewall = None;
                firewall::set(wanted)?;
                self.firewall = Some(FirewallState::Intact(wanted.clone()));
            }
            Action::RemoveFirewall => {
                self.firewall = None;
                firewall::remove()?;
                self.firewall = Some(FirewallState::Absent);
            }
            Action::OpenFilter(iptables) => {
                self.filters = None;
                filters::open(*iptables)?;
            }
            Action::CloseFilter(iptables) => {
                self.filters = None;
                filters::close(*iptables)?;
            }
        }
        Ok(())
    }
}

impl<P: Programs + Send> Kernel for LinuxKernel<P> {
    fn observe(&mut self, desired: Option<&Desired>, depth: Depth) -> Result<Observed, KernelError> {
        if depth == Depth::Remembered
            && let Some(desired) = desired
            && let Some(observed) = self.recall(desired)
        {
            return Ok(observed);
        }
        self.remembered = None;
        let netlink = &mut self.netlink;
        let raw_links = links::dump(netlink).map_err(|error| error.during("list the network devices"))?;
        let addresses = addresses::dump(netlink).map_err(|error| error.during("list the addresses"))?;

        let links: BTreeMap<_, _> = raw_links.iter().filter_map(RawLink::ours).collect();
        let ours: BTreeSet<u32> = links.values().map(|link| link.index).collect();
        let foreign_indexes = raw_links
            .iter()
            .map(|link| link.index)
            .filter(|index| *index >= naming::HOST_LEG_INDEX && !ours.contains(index));
        let host_leg =
            links.iter().find(|(name, _)| name.as_str() == naming::HOST_LEG).map(|(_, link)| link.index);
        let host_routes = match host_leg {
            Some(index) => routes::dump(netlink, index).map_err(|error| error.during("list the routes"))?,
            None => Vec::new(),
        };
        let unreachable =
            routes::dump_unreachable(netlink).map_err(|error| error.during("list the routes"))?;
        let host_addresses = addresses
            .iter()
            .filter(|(index, address)| Some(*index) == host_leg && !addresses::is_link_local(address.address))
            .map(|(_, address)| *address);
        let own_addresses = addresses
            .iter()
            .filter(|(index, _)| !ours.contains(index))
            .map(|(_, address)| address.address)
            .filter(|address| {
                !address.is_loopback() && !addresses::is_link_local(*address) && !is_autoconfigured(*address)
            });
        let endpoints = desired.into_iter().flat_map(|desired| desired.endpoints.values());
        let observed = Observed {
            foreign_indexes: foreign_indexes.collect(),
            host_interfaces: raw_links.iter().filter_map(RawLink::host_interface).collect(),
            underlay: desired
                .and_then(|desired| underlay(desired.underlay.address, &raw_links, &addresses, &ours)),
            host_addresses: host_addresses.collect(),
            own_addresses: own_addresses.collect(),
            host_routes: host_routes.into_iter().collect(),
            unreachable: unreachable.into_iter().collect(),
            namespaces: endpoints
                .filter(|e| namespace::exists(&e.netns, links.contains_key(&e.host_ifname())))
                .map(|e| e.id.clone())
                .collect(),
            programs: self.programs.observe()?,
            sysctls: sysctl::observe()?,
            firewall: self.observe_firewall(depth)?,
            filters: self.observe_filters(depth)?,
            links,
        };
        self.remembered = desired
            .map(|desired| Remembered { address: desired.underlay.address, observed: observed.clone() });
        Ok(observed)
    }

    fn apply(&mut self, action: &Action) -> Result<(), KernelError> {
        let taken = self.take(action);
        self.note(action, taken.is_ok());
        taken
    }

    fn glance(&mut self) -> u64 {
        let mut hasher = DefaultHasher::new();
        // What cannot be read differs from what could be.
        sysctl::observe().ok().hash(&mut hasher);
        filters::legacy_tables().hash(&mut hasher);
        self.programs.links_digest().hash(&mut hasher);
        hasher.finish()
    }

    fn programs(&mut self) -> &mut dyn Programs {
        &mut self.programs
    }
}

/// The interface that has the data-path address. One of ours has it only by mistake.
fn underlay(
    address: IpAddr,
    links: &[RawLink],
    addresses: &[(u32, InterfaceAddress)],
    ours: &BTreeSet<u32>,
) -> Option<UnderlayLink> {
    let mut holders =
        addresses.iter().filter(|(index, held)| held.address == address && !ours.contains(index));
    let (index, _) = holders.next()?;
    let link = links.iter().find(|link| link.index == *index)?;
    Some(UnderlayLink { name: link.name.parse().ok()?, index: *index, mtu: link.mtu, mac: link.mac() })
}

/// An IPv4 link-local address (RFC 3927): of no use beyond its link, as those of IPv6.
fn is_autoconfigured(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_link_local())
}
