//! `aya::Pod` for keys and values.

#![expect(unsafe_code, reason = "`aya::Pod` is an unsafe trait")]

use crate::{
    Address, Allowance, Backend, Block, Config, Connection, ConnectionKey, Counter, CounterKey, Endpoint,
    EndpointKey, Event, HostCall, HostFlow, Interface, Mac, Member, Network, PathKey, Published,
    PublishedKey, Service, SocketPeer, Vni,
};

macro_rules! pod {
    ($($type:ty),* $(,)?) => {$(
        // SAFETY: `#[repr(C)]` or `#[repr(transparent)]` over integers and byte arrays. The tests
        // of this crate assert that it has no padding, so every byte is initialised and every bit
        // pattern is valid.
        unsafe impl aya::Pod for $type {}
    )*};
}

pod!(
    Address,
    Allowance,
    Backend,
    Block,
    Config,
    Connection,
    ConnectionKey,
    Counter,
    CounterKey,
    Endpoint,
    EndpointKey,
    Event,
    HostCall,
    HostFlow,
    Interface,
    Mac,
    Member,
    Network,
    PathKey,
    Published,
    PublishedKey,
    Service,
    SocketPeer,
    Vni,
);
