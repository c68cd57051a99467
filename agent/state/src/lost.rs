//! Endpoints whose device is in use although their record and its copy are lost. The agent keeps
//! the device, and rebuilds the record from the kernel and the cluster's records.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use mesh_ebpf_types::ALLOW_FORWARDING;
use mesh_ipam::Delays;
use mesh_model::endpoint::{NetnsRef, host_ifname};
use mesh_model::observed::{Link, LinkKind, Observed};
use mesh_model::{
    Backend, Description, Endpoint, EndpointId, EndpointPhase, IfName, MacAddr, Name, Network, NodeId, naming,
};
use mesh_sys::durable;

use crate::agent::Agent;
use crate::clock::now;
use crate::lost_device::Lost;
use crate::state::{LostView, State};
use crate::view::ClusterView;

/// The path of a namespace that was not found.
const NOWHERE: &str = "/proc/0/ns/net";

/// A rebuilt record.
struct Rebuilt {
    endpoint: Endpoint,
    /// What could not be found.
    missing: Vec<&'static str>,
}

impl Agent {
    /// The devices of endpoints that this agent has no record of, and that it did not remove.
    pub fn without_record(&self, observed: &Observed) -> BTreeSet<IfName> {
        let known: BTreeSet<IfName> =
            self.read(|state| state.endpoints.keys().chain(&state.removing).map(host_ifname).collect());
        let is_lost = |(name, link): &(&IfName, &Link)| {
            naming::is_endpoint(name.as_str())
                && matches!(link.kind, LinkKind::Veth { peer_is_here: false, .. })
                && !known.contains(*name)
        };
        observed.links.iter().filter(is_lost).map(|(name, _)| name.clone()).collect()
    }

    /// The kernel has nothing any more of endpoints that were removed before this agent started.
    pub(crate) fn forget_removed(&self) {
        for id in self.update(|state| std::mem::take(&mut state.removing)) {
            if let Err(error) = self.store.forget(&id) {
                tracing::debug!(%error, "the note of a removed endpoint stays until the next start");
            }
        }
    }

    /// Takes endpoints whose records are lost, before anything in the kernel is changed. Rebuilds
    /// their records at once, or when the cluster's records have arrived if these are lost too.
    pub fn take_lost(&self, lost: Vec<Lost>, delays: Delays) {
        if lost.is_empty() {
            return;
        }
        let has_view = self.view_on_disk.load(Ordering::Acquire) != 0;
        // What the pools have taken of it is of the networks that they knew.
        let pools = durable::read_json(&self.paths.released()).ok().flatten().unwrap_or_default();
        let waits = self.update(|state| {
            state.lost = lost;
            if !has_view && state.lost_view.is_none() {
                state.lost_view = Some(LostView { pools, delays });
            }
            state.lost_view.is_some()
        });
        if waits {
            self.view_known.send_replace(false);
            return;
        }
        self.update_generation(|state| {
            let known = ClusterView::clone(&state.view);
            self.rebuild_lost(state, &known);
            let State { view, pools, endpoints, .. } = state;
            pools.rebuild(view, endpoints, now());
        });
    }

    /// Whether lost endpoints wait for the networks' records. Before a session begins, they have to
    /// be restored by [`Self::restore_lost`]: the session's first message has all endpoints, and
    /// the managers forget those that it does not have.
    pub fn has_lost(&self) -> bool {
        self.read(|state| !state.lost.is_empty())
    }

    /// Rebuilds the records of lost endpoints with these networks.
    pub fn restore_lost(&self, networks: Vec<Network>) {
        let mut view = self.read(|state| ClusterView::clone(&state.view));
        for network in networks {
            view.networks.entry(network.id.clone()).or_insert(network);
        }
        self.update_generation(|state| self.rebuild_lost(state, &view));
    }

    /// Rebuilds the records of lost endpoints with these records of the cluster.
    fn rebuild_lost(&self, state: &mut State, view: &ClusterView) {
        for lost in std::mem::take(&mut state.lost) {
            let device = lost.survivor.device.clone();
            let Some(Rebuilt { endpoint, missing }) = lost.rebuild(view, &self.node.id) else {
                tracing::warn!(%device, "a device without a record is of no network and is removed");
                continue;
            };
            let problem = if missing.is_empty() {
                tracing::warn!(endpoint = %endpoint.name, %device, "rebuilt a lost record of an endpoint");
                None
            } else {
                Some(format!(
                    "the record of endpoint {} ({device}) was lost and rebuilt without its {}: detach and attach the endpoint again to correct it",
                    endpoint.name,
                    missing.join(", ")
                ))
            };
            state.damage.extend(problem.inspect(|problem| tracing::warn!("{problem}")));
            if let Err(error) = self.store.restore(&endpoint) {
                tracing::error!(%error, "the record of an endpoint cannot be written");
                state.damage.push(error.to_string());
            }
            state.endpoints.insert(endpoint);
        }
    }
}

impl Lost {
    fn rebuild(&self, view: &ClusterView, node: &NodeId) -> Option<Rebuilt> {
        let inner = self.survivor.inner.as_ref();
        let found = inner.map(|inner| inner.addresses.clone()).unwrap_or_default();
        let network = self.network(view, &found)?;
        let is_inside = |address: &IpAddr| network.subnets.iter().any(|s| s.subnet.contains(*address));
        let mut inside = found.iter().filter(|address| is_inside(address));
        let ipv4 = self.ipv4().or_else(|| inside.clone().find_map(as_ipv4));
        let ipv6 = self.ipv6().or_else(|| inside.find_map(as_ipv6));
        let mac = self.interface.and_then(|interface| MacAddr::new(interface.mac.0).ok());
        let mac = mac.or(inner.map(|inner| inner.mac))?;
        let mut missing = Vec::new();
        let described = self.description(view, node, network, ipv4);
        if described.is_none() {
            missing.push("name");
        }
        let Description { id, name, created_at, service, aliases } =
            described.or_else(|| nameless(&self.survivor.device))?;
        if inner.is_none() {
            missing.push("network namespace");
        }
        let nowhere = || NetnsRef { path: NOWHERE.into(), inode: 0, cookie: 0 };
        let endpoint = Endpoint {
            id,
            name,
            network: network.id.clone(),
            node: node.clone(),
            ipv4,
            ipv6,
            mac,
            ifname: inner.map_or_else(|| "eth0".parse().ok(), |inner| Some(inner.ifname.clone()))?,
            allow_forwarding: self.interface.is_some_and(|found| found.flags & ALLOW_FORWARDING != 0),
            service,
            aliases,
            netns: inner.map_or_else(nowhere, |inner| inner.netns.clone()),
            // A runtime's key can be longer than an alias. Such an endpoint goes with its
            // namespace.
            owner: None,
            phase: EndpointPhase::Attached,
            created_at,
        };
        Some(Rebuilt { endpoint, missing })
    }

    fn ipv4(&self) -> Option<Ipv4Addr> {
        self.interface.map(|found| Ipv4Addr::from(found.ipv4)).filter(|ip| !ip.is_unspecified())
    }

    fn ipv6(&self) -> Option<Ipv6Addr> {
        match self.interface.map(|found| found.ipv6.to_ip()) {
            Some(IpAddr::V6(ip)) if !ip.is_unspecified() => Some(ip),
            _ => None,
        }
    }

    /// By the datapath's entry, else by the addresses: no two networks overlap.
    fn network<'v>(&self, view: &'v ClusterView, found: &[IpAddr]) -> Option<&'v Network> {
        let vni = self.interface.map(|interface| interface.vni);
        view.networks.values().find(|network| match vni {
            Some(vni) => mesh_ebpf_types::Vni::new(network.vni.get()) == vni,
            None => found.iter().any(|ip| network.subnets.iter().any(|s| s.subnet.contains(*ip))),
        })
    }

    /// What the device's alias says, else the record of a backend.
    fn description(
        &self,
        view: &ClusterView,
        node: &NodeId,
        network: &Network,
        ipv4: Option<Ipv4Addr>,
    ) -> Option<Description> {
        let is_of_device = |id: &EndpointId| host_ifname(id) == self.survivor.device;
        if let Some(described) = self.survivor.description.clone().filter(|found| is_of_device(&found.id)) {
            return Some(described);
        }
        let is_it = |backend: &&Backend| {
            backend.node == *node
                && backend.network == network.id
                && is_of_device(&backend.endpoint)
                && backend.ipv4 == ipv4
        };
        let of_services = view.services.values().find_map(|records| {
            let backend = records.backends.values().find(is_it)?;
            Some((records.service.name.clone(), backend.clone()))
        });
        let (service, backend) = of_services?;
        Some(Description {
            id: backend.endpoint.clone(),
            name: backend.name.clone(),
            created_at: backend.created_at,
            service: Some(service),
            aliases: Vec::new(),
        })
    }
}

fn as_ipv4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    }
}

fn as_ipv6(address: &IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(*v6),
    }
}

/// A new identity for the endpoint of a device: an id that the device is named after.
fn nameless(device: &IfName) -> Option<Description> {
    let drawn = EndpointId::random().ok()?;
    let head = device.as_str().strip_prefix(naming::ENDPOINT_PREFIX)?;
    let id: EndpointId = format!("{head}{}", drawn.as_str().get(head.len()..)?).parse().ok()?;
    let name: Name = id.as_str().parse().ok()?;
    Some(Description { id, name, created_at: Timestamp::now(), service: None, aliases: Vec::new() })
}

#[cfg(test)]
mod tests {
    use mesh_ebpf_types::{Address, Interface, Mac, Vni};
    use mesh_model::survivor::{Inner, Survivor};

    use super::*;
    use crate::fake::{backend, network, node, service, view};

    fn endpoint() -> Endpoint {
        Endpoint {
            id: "3f".repeat(12).parse().unwrap(),
            name: "web".parse().unwrap(),
            network: network().id,
            node: node().id,
            ipv4: Some([10, 64, 0, 7].into()),
            ipv6: None,
            mac: "02:42:0a:40:00:07".parse().unwrap(),
            ifname: "eth3".parse().unwrap(),
            allow_forwarding: true,
            service: None,
            aliases: vec!["www".parse().unwrap()],
            netns: NetnsRef { path: "/run/netns/c1".into(), inode: 7, cookie: 8 },
            owner: None,
            phase: EndpointPhase::Attached,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn lost(endpoint: &Endpoint) -> Lost {
        let survivor = Survivor {
            device: endpoint.host_ifname(),
            index: 77,
            description: Some(Description::from(endpoint)),
            inner: Some(Inner {
                netns: endpoint.netns.clone(),
                ifname: endpoint.ifname.clone(),
                mac: endpoint.mac,
                addresses: endpoint.addresses().collect(),
            }),
        };
        let interface = Interface {
            vni: Vni::new(network().vni.get()),
            ipv4: endpoint.ipv4.unwrap().octets(),
            ipv6: Address::NONE,
            mac: Mac(endpoint.mac.octets()),
            flags: ALLOW_FORWARDING,
        };
        Lost { survivor, interface: Some(interface) }
    }

    fn rebuilt(lost: &Lost) -> Option<(Endpoint, Vec<&'static str>)> {
        lost.rebuild(&view(), &node().id).map(|rebuilt| (rebuilt.endpoint, rebuilt.missing))
    }

    #[test]
    fn a_lost_record_is_rebuilt_whole_while_the_kernel_has_all_of_it() {
        assert_eq!(rebuilt(&lost(&endpoint())), Some((endpoint(), vec![])));
    }

    #[test]
    fn without_the_datapaths_entry_the_addresses_inside_say_which_network_it_is() {
        let lost = Lost { interface: None, ..lost(&endpoint()) };
        let expected = Endpoint { allow_forwarding: false, ..endpoint() };
        assert_eq!(rebuilt(&lost), Some((expected, vec![])));
    }

    #[test]
    fn what_cannot_be_found_is_reported_and_the_endpoint_is_kept() {
        let mut lost = lost(&endpoint());
        lost.survivor.description = None;
        lost.survivor.inner = None;
        let (found, missing) = rebuilt(&lost).unwrap();
        assert_eq!(missing, ["name", "network namespace"]);
        assert_eq!(
            (found.ipv4, found.mac, found.host_ifname()),
            (endpoint().ipv4, endpoint().mac, endpoint().host_ifname())
        );
        assert_eq!(found.name.as_str(), found.id.as_str());
    }

    #[test]
    fn a_backend_without_a_description_has_its_name_from_the_clusters_records() {
        let (service, mut view) = (service(1), view());
        let backend = Backend {
            node: node().id,
            endpoint: endpoint().id,
            name: "web".parse().unwrap(),
            ipv4: endpoint().ipv4,
            ..backend(&service, 3)
        };
        view.services.put_service(service.clone());
        view.services.put_backend(backend).unwrap();
        let mut lost = lost(&endpoint());
        lost.survivor.description = None;
        let found = lost.rebuild(&view, &node().id).unwrap();
        assert_eq!((found.endpoint.id, found.endpoint.name), (endpoint().id, endpoint().name));
        assert_eq!((found.endpoint.service, found.missing), (Some(service.name), vec![]));
    }

    #[test]
    fn a_device_of_no_network_is_no_endpoint() {
        let mut lost = lost(&endpoint());
        lost.interface.as_mut().unwrap().vni = Vni::new(5);
        assert!(rebuilt(&lost).is_none());
    }
}
