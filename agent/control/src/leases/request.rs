//! What is requested when a node requests a lease.

use std::net::IpAddr;

use mesh_ipam::Family;
use mesh_model::NodeId;

/// Which node asks for addresses.
#[derive(Debug, Clone)]
pub(super) struct Requester {
    pub(super) node: NodeId,
    /// Whether it gets only what its endpoints need, and some to go on with.
    pub(super) is_bounded: bool,
}

/// What a node wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestedLease {
    /// Exactly this address.
    Address(IpAddr),
    /// Some, of this family.
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
