//! Endpoints' devices as the kernel knows them, for an agent whose own records of them are lost.

use std::net::IpAddr;

use crate::endpoint::NetnsRef;
use crate::{Description, IfName, MacAddr};

/// A device of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivor {
    /// Name of the host's end.
    pub device: IfName,
    /// Index of the host's end.
    pub index: u32,
    /// What its alias says of the endpoint.
    pub description: Option<Description>,
    /// The other end; `None` where no path leads to its namespace.
    pub inner: Option<Inner>,
}

/// The container's end of a pair, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inner {
    /// Its namespace.
    pub netns: NetnsRef,
    /// Its name.
    pub ifname: IfName,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its addresses, link-local ones left out.
    pub addresses: Vec<IpAddr>,
}
