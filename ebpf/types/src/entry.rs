//! An entry of any map that user space fills, as one value: the elements of a plan.

use crate::{
    Address, Block, BlockKey, Config, Endpoint, EndpointKey, HostRouteKey, Interface, Member, Network, Vni,
};

/// The key of an entry, and its map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapKey {
    /// The single entry of `CONFIG`. Deleting it writes zeroes.
    Config,
    /// An entry of `NETWORKS`.
    Network(Vni),
    /// An entry of `INTERFACES`, by interface index.
    Interface(u32),
    /// An entry of `ENDPOINTS`.
    Endpoint(EndpointKey),
    /// An entry of `BLOCKS`.
    Block(BlockKey),
    /// An entry of `HOST_ROUTES`.
    HostRoute(HostRouteKey),
    /// An entry of `MEMBERS`.
    Member(Address),
    /// An entry of `STAND_INS`.
    StandIn(u32),
    /// An entry of `HOST_ADDRESSES`.
    HostAddress(Address),
}

/// An entry of a map: its key and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapEntry {
    /// The single entry of `CONFIG`.
    Config(Config),
    /// An entry of `NETWORKS`.
    Network(Vni, Network),
    /// An entry of `INTERFACES`, by interface index.
    Interface(u32, Interface),
    /// An entry of `ENDPOINTS`.
    Endpoint(EndpointKey, Endpoint),
    /// An entry of `BLOCKS`.
    Block(BlockKey, Block),
    /// An entry of `HOST_ROUTES`: the network of a prefix.
    HostRoute(HostRouteKey, Vni),
    /// An entry of `MEMBERS`.
    Member(Address, Member),
    /// An entry of `STAND_INS`: the host address that the stand-in address with this number
    /// represents ([`crate::STAND_INS`]).
    StandIn(u32, Address),
    /// An entry of `HOST_ADDRESSES`: the host has this address on an interface that is not Mesh's,
    /// so published ports are answered on it. The value is the number of its stand-in address, or
    /// 0.
    HostAddress(Address, u32),
}

impl MapEntry {
    /// Returns the entry's key.
    pub const fn key(&self) -> MapKey {
        match self {
            Self::Config(_) => MapKey::Config,
            Self::Network(key, _) => MapKey::Network(*key),
            Self::Interface(key, _) => MapKey::Interface(*key),
            Self::Endpoint(key, _) => MapKey::Endpoint(*key),
            Self::Block(key, _) => MapKey::Block(*key),
            Self::HostRoute(key, _) => MapKey::HostRoute(*key),
            Self::Member(key, _) => MapKey::Member(*key),
            Self::StandIn(key, _) => MapKey::StandIn(*key),
            Self::HostAddress(key, _) => MapKey::HostAddress(*key),
        }
    }
}
