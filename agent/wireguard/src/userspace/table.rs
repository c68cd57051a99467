//! Peers by the keys and indices in packets. A table is never changed but replaced, so that threads
//! read it without a lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use boringtun::{noise::rate_limiter::RateLimiter, x25519};

use super::{link::Link, peer::Peer};
use crate::{EngineConfig, Error, OwnKey, PublicKey, Result, TunnelSources};

/// Above this rate of handshakes per second, senders must prove by a cookie that they receive at
/// their address.
const HANDSHAKES_PER_SECOND: u64 = 200;

/// The configuration in the form that the threads use.
pub(super) struct Table {
    /// Own tunnel address.
    pub(super) tunnel: Ipv4Addr,
    /// Source addresses of packets, by own keys.
    pub(super) sources: TunnelSources,
    /// UDP port of VXLAN inside the tunnel.
    pub(super) vxlan_port: u16,
    /// UDP port of all nodes' engines.
    pub(super) listen_port: u16,
    /// Largest IP packet in the tunnel.
    pub(super) tunnel_mtu: usize,
    /// Peers by index.
    pub(super) peers: BTreeMap<u16, Arc<Peer>>,
    /// Peers and own keys, by the id of their link.
    links: BTreeMap<u32, Arc<Peer>>,
    /// Id of the link between an own key and a peer's.
    pairs: BTreeMap<(PublicKey, PublicKey), u32>,
    /// Own keys.
    pub(super) own: Vec<OwnSide>,
}

/// An own key, ready for use.
#[derive(Clone)]
pub(super) struct OwnSide {
    key: OwnKey,
    public: PublicKey,
    /// Limits incoming handshakes.
    pub(super) limiter: Arc<RateLimiter>,
    /// For boringtun's own check of a handshake that `limiter` has accepted.
    unlimited: Arc<RateLimiter>,
}

impl OwnSide {
    fn new(key: &OwnKey) -> Self {
        let public = key.private.public();
        let dalek = x25519::PublicKey::from(public.0);
        Self {
            key: key.clone(),
            public,
            limiter: Arc::new(RateLimiter::new(&dalek, HANDSHAKES_PER_SECOND)),
            unlimited: Arc::new(RateLimiter::new(&dalek, u64::MAX)),
        }
    }

    /// Returns the public key as boringtun expects it.
    pub(super) fn dalek(&self) -> x25519::PublicKey {
        x25519::PublicKey::from(self.public.0)
    }

    /// Returns the private key.
    pub(super) fn secret(&self) -> &x25519::StaticSecret {
        self.key.private.secret()
    }
}

impl Table {
    /// Creates a table without keys and peers.
    pub(super) fn empty() -> Self {
        Self {
            tunnel: Ipv4Addr::UNSPECIFIED,
            sources: TunnelSources { even: Ipv4Addr::UNSPECIFIED, odd: Ipv4Addr::UNSPECIFIED },
            vxlan_port: 0,
            listen_port: 0,
            tunnel_mtu: 0,
            peers: BTreeMap::new(),
            links: BTreeMap::new(),
            pairs: BTreeMap::new(),
            own: Vec::new(),
        }
    }

    /// Creates a table for `config` that keeps sessions with unchanged keys, and endpoints of peers
    /// that moved, from `old`. Also returns the peers that are new or have new links.
    pub(super) fn new(config: &EngineConfig, old: &Self) -> Result<(Self, Vec<Arc<Peer>>)> {
        let own: Vec<OwnSide> = config
            .keys
            .iter()
            .map(|key| {
                let kept = old.own.iter().find(|side| side.public == key.private.public());
                kept.map_or_else(|| OwnSide::new(key), |side| OwnSide { key: key.clone(), ..side.clone() })
            })
            .collect();
        let mut table = Self {
            tunnel: config.tunnel_address,
            sources: config.sources,
            vxlan_port: config.vxlan_port,
            listen_port: config.listen_port,
            tunnel_mtu: usize::from(config.inner_mtu) + usize::from(crate::VXLAN_OVERHEAD),
            peers: BTreeMap::new(),
            links: BTreeMap::new(),
            pairs: BTreeMap::new(),
            own,
        };
        let mut ids = Ids::new(old);
        let mut fresh = Vec::new();
        for (index, wanted) in &config.peers {
            let peer = old.peers.get(index).cloned();
            let peer = peer.unwrap_or_else(|| Arc::new(Peer::new(*index, wanted)));
            let mut state = peer.lock();
            (state.tunnel, state.sources) = (wanted.tunnel_address, wanted.sources);
            if state.configured != wanted.endpoint {
                state.configured = wanted.endpoint;
                state.endpoint = wanted.endpoint;
            }
            let mut kept = std::mem::take(&mut state.links);
            let mut news = false;
            for side in table.own.iter().rev() {
                for (generation, theirs) in wanted.keys.iter().rev() {
                    let known = kept.iter().position(|link| link.is_between(&side.key, *generation, *theirs));
                    let link = if let Some(at) = known {
                        let mut link = kept.swap_remove(at);
                        news |= side.key.active && !link.active;
                        link.active = side.key.active;
                        link
                    } else {
                        news = true;
                        Link::new(ids.next()?, &side.key, *generation, *theirs, Arc::clone(&side.unlimited))
                    };
                    table.links.insert(link.id, Arc::clone(&peer));
                    table.pairs.insert((side.public, *theirs), link.id);
                    state.links.push(link);
                }
            }
            drop(state);
            if news {
                fresh.push(Arc::clone(&peer));
            }
            table.peers.insert(*index, peer);
        }
        Ok((table, fresh))
    }

    /// Returns the peer of a session index, and the id of its link.
    pub(super) fn session(&self, index: u32) -> Option<(u32, &Arc<Peer>)> {
        let id = index >> 8;
        self.links.get(&id).map(|peer| (id, peer))
    }

    /// Returns the link between an own key and a peer's.
    pub(super) fn pair(&self, own: &OwnSide, theirs: PublicKey) -> Option<(u32, &Arc<Peer>)> {
        let id = *self.pairs.get(&(own.public, theirs))?;
        self.links.get(&id).map(|peer| (id, peer))
    }
}

/// Allocates link ids: 24 random bits, unique in a table and its predecessor.
struct Ids {
    taken: BTreeSet<u32>,
}

impl Ids {
    fn new(old: &Table) -> Self {
        Self { taken: old.links.keys().copied().collect() }
    }

    fn next(&mut self) -> Result<u32> {
        loop {
            let id = getrandom::u32().map_err(|error| Error::System {
                action: "generate a session index".to_owned(),
                source: error.into(),
            })? >> 8;
            if self.taken.insert(id) {
                return Ok(id);
            }
        }
    }
}
