//! The contents of a lease request.

use std::net::IpAddr;

use mesh_ipam::Family;
use mesh_model::NodeId;

/// The requesting node.
#[derive(Debug, Clone)]
pub(super) struct Requester {
    pub(super) node: NodeId,
    /// Whether it gets only what its endpoints need, and a reserve.
    pub(super) is_bounded: bool,
}

/// The requested addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestedLease {
    /// Exactly this address.
    Address(IpAddr),
    /// Any addresses of this family.
    Any(Family),
}

impl RequestedLease {
    pub(super) fn family(self) -> Family {
        match self {
            Self::Address(address) => Family::of(address),
            Self::Any(family) => family,
        }
    }
}
