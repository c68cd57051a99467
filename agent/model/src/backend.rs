//! Backends: endpoints as a service's targets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{EndpointId, Name, NetworkId, NodeId, ServiceId};

/// A backend's number, 1 to [`BackendId::MAX`]: unique in the cluster, and small enough to travel
/// in a VNI of the mesh's own beside a bit that tells the direction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct BackendId(u32);

/// A number that no backend may have.
#[derive(Debug, thiserror::Error)]
#[error("{number} is no backend's number: those are 1 to {}", BackendId::MAX)]
pub struct InvalidBackendId {
    /// What was given.
    pub number: u32,
}

impl BackendId {
    /// The highest number.
    pub const MAX: u32 = 0x3E_FFFF;

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The highest number, as an id.
    pub const LAST: Self = Self(Self::MAX);

    /// The next number, and after the highest the first one again.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 % Self::MAX + 1)
    }

    /// The number that so many steps of [`next`](Self::next) lead to.
    #[must_use]
    pub const fn after(self, steps: u32) -> Self {
        Self((self.0 - 1 + steps % Self::MAX) % Self::MAX + 1)
    }
}

impl TryFrom<u32> for BackendId {
    type Error = InvalidBackendId;

    fn try_from(number: u32) -> Result<Self, InvalidBackendId> {
        if (1..=Self::MAX).contains(&number) { Ok(Self(number)) } else { Err(InvalidBackendId { number }) }
    }
}

impl From<BackendId> for u32 {
    fn from(id: BackendId) -> Self {
        id.0
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendId({})", self.0)
    }
}

/// Whether a backend takes new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Takes new connections.
    Active,
    /// Keeps the connections that it has, and gets no new ones.
    Draining,
}

/// A text that is no backend's state.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no state of a backend: active or draining")]
pub struct InvalidBackendState {
    /// What was given.
    pub text: String,
}

impl BackendState {
    /// As people see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
        }
    }
}

impl FromStr for BackendState {
    type Err = InvalidBackendState;

    fn from_str(text: &str) -> Result<Self, InvalidBackendState> {
        [Self::Active, Self::Draining]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| InvalidBackendState { text: text.to_owned() })
    }
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An endpoint as a service's target. Its name and addresses are copied from the endpoint, which
/// never changes them: so every node knows backends of nodes whose endpoints it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its number.
    pub id: BackendId,
    /// Of which service.
    pub service: ServiceId,
    /// The network of both.
    pub network: NetworkId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The endpoint's name.
    pub name: Name,
    /// The node that the endpoint is on.
    pub node: NodeId,
    /// The endpoint's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The endpoint's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Whether it takes new connections.
    pub state: BackendState,
    /// When it became one.
    pub created_at: Timestamp,
}

impl Backend {
    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend_numbers_go_round_without_ever_being_zero() {
        let last = BackendId::try_from(BackendId::MAX).unwrap();
        assert_eq!(last.next().get(), 1);
        assert_eq!(last.next().next().get(), 2);
        for (from, steps) in [(1, 0), (1, 5), (BackendId::MAX - 2, 5), (BackendId::MAX, 64)] {
            let from = BackendId::try_from(from).unwrap();
            let stepped = (0..steps).fold(from, |id, _| id.next());
            assert_eq!(from.after(steps), stepped);
        }
        assert!(BackendId::try_from(0).is_err());
        assert!(BackendId::try_from(BackendId::MAX + 1).is_err());
    }
}
