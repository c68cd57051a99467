//! The layout of the store's keys. Values are JSON of the model's records.
//!
//! | key | value |
//! | --- | --- |
//! | `/cluster` | `Cluster` |
//! | `/node/<id>` | `Node` |
//! | `/name/node/<name>` | the node's id |
//! | `/network/<id>` | `Network` |
//! | `/name/network/<name>` | the network's id |
//! | `/vni/<number>` | the network's id |
//! | `/lease/<network>/<prefix>` | `Lease` |
//! | `/token/<role>` | the nonce of the role's join token |
//! | `/fence/addresses` | a counter, see [`address_fence`] |
//! | `/fence/lease/<network>` | a counter, see [`lease_fence`] |

use mesh_model::{Name, NetworkId, NodeId, Prefix, Role, Vni};
use mesh_store::{Key, KeyRange};

pub(crate) const NODE: &str = "/node/";
pub(crate) const NETWORK: &str = "/network/";
pub(crate) const LEASE: &str = "/lease/";

pub(crate) fn cluster() -> Key {
    "/cluster".into()
}

pub(crate) fn node(id: &NodeId) -> Key {
    format!("{NODE}{id}").into()
}

pub(crate) fn nodes() -> KeyRange {
    KeyRange::prefix(NODE)
}

pub(crate) fn node_name(name: &Name) -> Key {
    format!("/name/node/{name}").into()
}

pub(crate) fn network(id: &NetworkId) -> Key {
    format!("{NETWORK}{id}").into()
}

pub(crate) fn networks() -> KeyRange {
    KeyRange::prefix(NETWORK)
}

pub(crate) fn network_name(name: &Name) -> Key {
    format!("/name/network/{name}").into()
}

pub(crate) fn vni(vni: Vni) -> Key {
    format!("/vni/{vni}").into()
}

pub(crate) fn lease(network: &NetworkId, prefix: &Prefix) -> Key {
    format!("{LEASE}{network}/{prefix}").into()
}

pub(crate) fn leases() -> KeyRange {
    KeyRange::prefix(LEASE)
}

pub(crate) fn leases_of(network: &NetworkId) -> KeyRange {
    KeyRange::prefix(format!("{LEASE}{network}/"))
}

pub(crate) fn token(role: Role) -> Key {
    match role {
        Role::Manager => "/token/manager".into(),
        Role::Worker => "/token/worker".into(),
    }
}

/// Written by every transaction that takes addresses for a network or a node's underlay. That two prefixes do not
/// overlap, or that two VNIs differ, no comparison of single keys can tell: so who takes some reads this key with all
/// the others, and writes it on the condition that nobody did in between.
pub(crate) fn address_fence() -> Key {
    "/fence/addresses".into()
}

/// The same for the leases of one network.
pub(crate) fn lease_fence(network: &NetworkId) -> Key {
    format!("/fence/lease/{network}").into()
}
