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
//! | `/service/<id>` | `Service` |
//! | `/name/service/<network>/<name>` | the service's id |
//! | `/vip/<network>/<address>` | the service's id |
//! | `/port/<protocol>/<number>` | the services' ids, by host address or `any` |
//! | `/backend/<service>/<endpoint>` | `Backend` |
//! | `/fence/backend` | the last reserved backend number, see [`backend_numbers`] |
//! | `/wireguard/generation` | the generation that every node's newest key must have |
//! | `/token/<role>` | the nonce of the role's join token |
//! | `/fence/addresses` | a counter, see [`address_fence`] |
//! | `/fence/lease/<network>` | a counter, see [`lease_fence`] |

use std::net::IpAddr;

use mesh_model::{EndpointId, Name, NetworkId, NodeId, Prefix, Protocol, Role, ServiceId, Vni};
use mesh_store::{Key, KeyRange};

pub(crate) const NODE: &str = "/node/";
pub(crate) const NETWORK: &str = "/network/";
pub(crate) const LEASE: &str = "/lease/";
pub(crate) const SERVICE: &str = "/service/";
pub(crate) const BACKEND: &str = "/backend/";
pub(crate) const GENERATION: &str = "/wireguard/generation";

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

pub(crate) fn service(id: &ServiceId) -> Key {
    format!("{SERVICE}{id}").into()
}

pub(crate) fn service_name(network: &NetworkId, name: &Name) -> Key {
    format!("/name/service/{network}/{name}").into()
}

/// Returns the range of the names of all services of a network.
pub(crate) fn service_names(network: &NetworkId) -> KeyRange {
    KeyRange::prefix(format!("/name/service/{network}/"))
}

pub(crate) fn vip(network: &NetworkId, address: IpAddr) -> Key {
    format!("/vip/{network}/{address}").into()
}

/// One record holds all publishers of a port: a comparison of several keys could not detect that a
/// single address conflicts with `any`.
pub(crate) fn port(protocol: Protocol, published: u16) -> Key {
    format!("/port/{protocol}/{published}").into()
}

pub(crate) fn backend(service: &ServiceId, endpoint: &EndpointId) -> Key {
    format!("{BACKEND}{service}/{endpoint}").into()
}

pub(crate) fn backends_of(service: &ServiceId) -> KeyRange {
    KeyRange::prefix(format!("{BACKEND}{service}/"))
}

/// A manager reserves backend numbers in runs, so that adding many backends does not change this
/// key as often.
pub(crate) fn backend_numbers() -> Key {
    "/fence/backend".into()
}

pub(crate) fn generation() -> Key {
    GENERATION.into()
}

pub(crate) fn token(role: Role) -> Key {
    match role {
        Role::Manager => "/token/manager".into(),
        Role::Worker => "/token/worker".into(),
    }
}

/// Written by every transaction that takes addresses for a network or a node's underlay. A
/// comparison of single keys cannot detect overlapping prefixes or equal VNIs. So a transaction
/// reads this key with all the others, and writes it on the condition that it has not changed.
pub(crate) fn address_fence() -> Key {
    "/fence/addresses".into()
}

/// The same for the leases of one network.
pub(crate) fn lease_fence(network: &NetworkId) -> Key {
    format!("/fence/lease/{network}").into()
}
