//! From desired and observed state to a plan, as a pure function.
//!
//! A pass of the control loop is: observe, [`plan`], take the steps. One pass is enough when
//! nothing else changes the kernel meanwhile; the next finds nothing to do.
#![forbid(unsafe_code)]

mod entries;
pub mod fairness;
mod masquerade;
mod mtu;
mod removal;
pub mod services;
mod stand_ins;
mod steps;
mod wanted;

use std::collections::BTreeMap;

use mesh_model::plan::InnerEnd;
use mesh_model::{Desired, Endpoint, EndpointId, Network, Observed, Plan};

/// The steps from what is to what should be; with `None` as desired state, the steps that remove
/// all of ours.
///
/// The order loses no packet of existing traffic and opens no way around isolation: a device
/// forwards only after its program stands, a program stands only after its entries are written,
/// what replaces something comes before the removal of what it replaces.
pub fn plan(desired: Option<&Desired>, observed: &Observed) -> Plan {
    match desired {
        Some(desired) => steps::plan(desired, observed),
        None => removal::plan(observed),
    }
}

/// Whether outgoing traffic of containers may come to have that source port.
pub fn may_be_masqueraded(port: u16) -> bool {
    masquerade::is_candidate(port)
}

/// What is configured inside the namespaces of this node's endpoints.
pub fn inner_ends(desired: &Desired) -> BTreeMap<EndpointId, InnerEnd> {
    let inner = |endpoint: &Endpoint| {
        let network = desired.networks.get(&endpoint.network)?;
        Some((endpoint.id.clone(), wanted::inner_end(endpoint, network)))
    };
    desired.endpoints.values().filter_map(inner).collect()
}

/// The MTU of a network's endpoints on this node, in bytes.
pub fn network_mtu(desired: &Desired, network: &Network, observed: &Observed) -> u32 {
    mtu::Largest::of(desired, observed).network(network)
}

/// The largest MTU that an encrypted network may have on this node, in bytes: what the WireGuard
/// engine has to carry.
pub fn encrypted_mtu(desired: &Desired, observed: &Observed) -> u32 {
    mtu::Largest::of(desired, observed).encrypted()
}
