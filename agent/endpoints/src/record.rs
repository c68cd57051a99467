//! The endpoint's record, and what must be unique about it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use mesh_ebpf_types::derived_mac;
use mesh_host::FoundNetns;
use mesh_model::{Endpoint, EndpointId, EndpointPhase, IfName, MacAddr, Name, Network, NetworkId};
use mesh_proto::{Problem, ProblemKind};
use mesh_state::{State, file_problem};

use crate::endpoints::Endpoints;
use crate::request::{Request, TakenName, extended};

impl Endpoints {
    /// Records the endpoint as attaching, and adds it to the desired state. Uniqueness is checked
    /// in the same step.
    pub(super) fn record(
        &self,
        network: &Network,
        request: &Request,
        found: &FoundNetns,
        id: &EndpointId,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(u64, Endpoint), Problem> {
        let ipv4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let ipv6 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(*v6),
        });
        let mac = request.mac.map_or_else(|| default_mac(network, ipv4, ipv6), Ok)?;
        let (generation, endpoint) = self.agent.update_generation(|state| {
            let endpoint = Endpoint {
                id: id.clone(),
                name: unique_name(state, network, request, id)?,
                network: network.id.clone(),
                node: self.agent.id().clone(),
                ipv4,
                ipv6,
                mac,
                ifname: free_ifname(state, request, found)?,
                allow_forwarding: request.allow_forwarding,
                service: request.service.clone(),
                aliases: request.aliases.clone(),
                netns: found.netns.clone(),
                owner: request.owner.clone(),
                phase: EndpointPhase::Attaching,
                created_at: Timestamp::now(),
            };
            refuse_removing(state, &network.id)?;
            refuse_second(state, network, request, found)?;
            refuse_same_owner(state, request)?;
            self.agent.endpoint_store().begin(&endpoint).map_err(|error| file_problem(&error))?;
            state.endpoints.insert(endpoint.clone());
            Ok::<_, Problem>(endpoint)
        });
        Ok((generation, endpoint?))
    }
}

/// Describes a network that gets no more endpoints.
pub(super) fn being_removed(network: &Network) -> Problem {
    Problem::new(ProblemKind::Conflict, format!("network {} is being removed", network.name))
}

/// A network may have begun to be removed since the attach began.
pub(super) fn refuse_removing(state: &State, network: &NetworkId) -> Result<(), Problem> {
    match state.view.networks.get(network) {
        Some(network) if !network.removing => Ok(()),
        Some(network) => Err(being_removed(network)),
        None => Err(Problem::new(ProblemKind::Conflict, format!("network {network} was removed"))),
    }
}

/// A container has one attachment to a network: of two, with the same subnet behind both, its
/// answers would leave by the first, with a source address that is not that one's own.
fn refuse_second(
    state: &State,
    network: &Network,
    request: &Request,
    found: &FoundNetns,
) -> Result<(), Problem> {
    let first = state
        .endpoints
        .values()
        .find(|other| other.network == network.id && other.netns.is_same(&found.netns));
    first.map_or(Ok(()), |first| {
        let message = format!(
            "the namespace {} is attached to network {} already, as endpoint {}",
            request.netns, network.name, first.name
        );
        Err(Problem::new(ProblemKind::Conflict, message).hint("detach that one first"))
    })
}

/// A runtime has one attachment by each key.
fn refuse_same_owner(state: &State, request: &Request) -> Result<(), Problem> {
    let Some(owner) = &request.owner else { return Ok(()) };
    let first = state.endpoints.values().find(|other| other.owner.as_ref() == Some(owner));
    first.map_or(Ok(()), |first| {
        let message = format!("{owner} is attached already, as endpoint {}", first.name);
        Err(Problem::new(ProblemKind::Conflict, message).hint("delete that attachment first"))
    })
}

/// The MAC that every neighbour derives from the endpoint's address.
fn default_mac(
    network: &Network,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
) -> Result<MacAddr, Problem> {
    let address = ipv4.map(IpAddr::V4).or(ipv6.map(IpAddr::V6));
    let none = || Problem::new(ProblemKind::Failed, format!("network {} has no subnet", network.name));
    let mac = derived_mac(address.ok_or_else(none)?.into(), network.prefix6());
    MacAddr::new(mac.0).map_err(|error| Problem::new(ProblemKind::Failed, error.to_string()))
}

/// The endpoint of this node that has a name in a network.
pub(super) fn namesake<'s>(state: &'s State, network: &Network, name: &Name) -> Option<&'s Endpoint> {
    state.endpoints.values().find(|other| other.network == network.id && other.name.is_same(name))
}

fn unique_name(
    state: &State,
    network: &Network,
    request: &Request,
    id: &EndpointId,
) -> Result<Name, Problem> {
    let of_id = || id.as_str().parse().ok();
    let name = request.endpoint_name().or_else(of_id).ok_or_else(|| {
        Problem::new(ProblemKind::Failed, format!("no name can be derived for endpoint {id}"))
    })?;
    let taken_by = namesake(state, network, &name);
    let extend = match request.taken_name {
        TakenName::Refuse => false,
        TakenName::Extend => taken_by.is_some(),
        TakenName::Extended => true,
    };
    match taken_by {
        _ if extend => extended(&name, id).ok_or_else(|| {
            Problem::new(ProblemKind::Failed, format!("no name can be derived from {name} and {id}"))
        }),
        None => Ok(name),
        Some(other) => Err(Problem::new(
            ProblemKind::Conflict,
            format!("endpoint {} exists on network {} ({})", other.name, network.name, other.id),
        )
        .hint("choose another name with --name, or detach the other first")),
    }
}

/// The interface's name inside the container: as asked for, else the first of `eth0`, `eth1`, ...
/// that is free there and that no attach under way will take.
fn free_ifname(state: &State, request: &Request, found: &FoundNetns) -> Result<IfName, Problem> {
    let there = state.endpoints.values().filter(|other| other.netns.is_same(&found.netns));
    let taken: BTreeSet<IfName> =
        there.map(|other| other.ifname.clone()).chain(found.interfaces.iter().cloned()).collect();
    let conflict = |message: String| {
        Problem::new(ProblemKind::Conflict, message).hint("choose another name with --ifname")
    };
    match &request.ifname {
        Some(ifname) if taken.contains(ifname) => {
            let message = format!("the namespace {} has an interface {ifname} already", request.netns);
            Err(conflict(message))
        }
        Some(ifname) => Ok(ifname.clone()),
        None => (0..=taken.len())
            .filter_map(|n| format!("eth{n}").parse().ok())
            .find(|ifname| !taken.contains(ifname))
            .ok_or_else(|| conflict(format!("the namespace {} has no free interface name", request.netns))),
    }
}
