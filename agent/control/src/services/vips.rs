//! The virtual addresses of services.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_ipam::{Family, VipError, vip};
use mesh_model::{EndpointMode, Network};
use mesh_proto::{Problem, ProblemKind};

use super::desk::{Choice, Choosing};
use super::request::RequestedService;
use crate::layout::layout;
use crate::view::View;

/// Returns the addresses of a new service: the requested ones, or free ones.
pub(super) fn choose(
    view: &View,
    network: &Network,
    wanted: &RequestedService,
    choosing: &mut Choosing<'_>,
) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), Problem> {
    if wanted.endpoint_mode == EndpointMode::Dnsrr {
        return Ok((None, None));
    }
    let v4 = one(view, network, wanted.vip.map(IpAddr::V4), Family::Ipv4, choosing)?;
    let v6 = one(view, network, wanted.vip6.map(IpAddr::V6), Family::Ipv6, choosing)?;
    let v4 = v4.and_then(|address| if let IpAddr::V4(address) = address { Some(address) } else { None });
    let v6 = v6.and_then(|address| if let IpAddr::V6(address) = address { Some(address) } else { None });
    Ok((v4, v6))
}

/// Returns `None` if the network has no subnet of the family.
fn one(
    view: &View,
    network: &Network,
    wanted: Option<IpAddr>,
    family: Family,
    choosing: &mut Choosing<'_>,
) -> Result<Option<IpAddr>, Problem> {
    let of_family = network.subnets.iter().filter(|subnet| subnet.subnet.family() == family);
    let mut subnets = of_family.filter(|subnet| wanted.is_none_or(|address| subnet.subnet.contains(address)));
    let nothing = BTreeSet::new();
    let used = view.services.vips(&network.id).unwrap_or(&nothing);
    if let Some(address) = wanted {
        let Some(layout) = subnets.next().and_then(layout) else {
            let subnets: Vec<String> = network.subnets.iter().map(|s| s.subnet.to_string()).collect();
            return Err(Problem::new(
                ProblemKind::Usage,
                format!(
                    "virtual address {address} is in no subnet of network {}: {}",
                    network.name,
                    subnets.join(", ")
                ),
            ));
        };
        let address = vip(&layout, used, &nothing, wanted).map_err(|error| problem(view, network, &error))?;
        return Ok(Some(address));
    }
    // Addresses that other calls are about to write.
    let chosen: BTreeSet<IpAddr> = choosing
        .taken()
        .iter()
        .filter_map(|choice| match choice {
            Choice::Vip(id, address) if *id == network.id => Some(*address),
            _ => None,
        })
        .collect();
    let mut failure = None;
    for layout in subnets.filter_map(layout) {
        match vip(&layout, used, &chosen, None) {
            Ok(address) => {
                choosing.take(Choice::Vip(network.id.clone(), address));
                return Ok(Some(address));
            }
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(None), |error| Err(problem(view, network, &error)))
}

fn problem(view: &View, network: &Network, error: &VipError) -> Problem {
    match error {
        VipError::Outside { .. } => Problem::new(ProblemKind::Usage, error.to_string()),
        VipError::InUse { address } => {
            let whose = view.services.in_network(&network.id).filter_map(|id| view.services.get(id));
            let whose = whose.filter(|service| service.vips().any(|vip| vip == *address)).map(|s| &s.name);
            let whose: Vec<String> = whose.map(ToString::to_string).collect();
            Problem::new(
                ProblemKind::Conflict,
                format!("virtual address {address} belongs to service {}", whose.join(", ")),
            )
        }
        VipError::NoBlock { .. } | VipError::Exhausted { .. } => {
            Problem::new(ProblemKind::Exhausted, format!("network {}: {error}", network.name))
                .hint("create the service with --endpoint-mode dnsrr, or the network with a larger subnet")
        }
    }
}
