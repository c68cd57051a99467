//! Computes a plan from desired and observed state, as a pure function.
//!
//! A reconciliation observes, calls [`plan`], and takes the steps. One is enough if nothing else
//! changes the kernel meanwhile; the next finds nothing to do.
#![forbid(unsafe_code)]

mod entries;
pub mod fairness;
mod masquerade;
mod mtu;
mod removal;
pub mod services;
mod stand_ins;
mod steps;
mod target;

use std::collections::BTreeMap;

use mesh_model::plan::InnerEnd;
use mesh_model::{Desired, Endpoint, EndpointId, Network, Observed, Plan};

/// Returns the steps from the observed to the desired state; with `None` as desired state, the
/// steps that remove everything of Mesh.
///
/// The order loses no packet of existing traffic and keeps networks isolated. A device forwards
/// only after its program is attached, a program is attached only after its entries are written,
/// and a replacement precedes the removal of the replaced object.
pub fn plan(desired: Option<&Desired>, observed: &Observed) -> Plan {
    match desired {
        Some(desired) => steps::plan(desired, observed),
        None => removal::plan(observed),
    }
}

/// Returns whether masquerading may choose this source port for containers' traffic.
pub fn may_be_masqueraded(port: u16) -> bool {
    masquerade::is_candidate(port)
}

/// Returns the configuration inside the namespaces of this node's endpoints.
pub fn inner_ends(desired: &Desired) -> BTreeMap<EndpointId, InnerEnd> {
    let inner = |endpoint: &Endpoint| {
        let network = desired.networks.get(&endpoint.network)?;
        Some((endpoint.id.clone(), target::inner_end(endpoint, network)))
    };
    desired.endpoints.values().filter_map(inner).collect()
}

/// Returns the MTU of a network's endpoints on this node, in bytes.
pub fn network_mtu(desired: &Desired, network: &Network, observed: &Observed) -> u32 {
    mtu::Largest::of(desired, observed).network(network)
}

/// Returns the largest MTU of an encrypted network on this node, in bytes. The WireGuard engine
/// must carry such packets.
pub fn encrypted_mtu(desired: &Desired, observed: &Observed) -> u32 {
    mtu::Largest::of(desired, observed).encrypted()
}
