//! Another node: its links and its endpoint.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};

use super::link::Link;
use crate::{PeerConfig, PeerStatus, TunnelSources};

/// A peer, shared by the threads. It is locked once for each batch of packets.
pub(super) struct Peer {
    /// The index that frames contain.
    pub(super) index: u16,
    /// Whether its timers must run.
    timed: AtomicBool,
    state: Mutex<PeerState>,
}

/// The state under the lock.
pub(super) struct PeerState {
    /// Its tunnel address.
    pub(super) tunnel: Ipv4Addr,
    /// Source addresses of packets, by its keys.
    pub(super) sources: TunnelSources,
    /// Its endpoint: as configured, or the source of its last authentic message.
    pub(super) endpoint: Option<SocketAddr>,
    /// As configured, to distinguish a change of configuration from a peer that moved.
    pub(super) configured: Option<SocketAddr>,
    /// The newest keys first.
    pub(super) links: Vec<Link>,
    /// Bytes received, as UDP payload.
    pub(super) rx_bytes: u64,
    /// Bytes sent, as UDP payload.
    pub(super) tx_bytes: u64,
}

impl Peer {
    pub(super) fn new(index: u16, config: &PeerConfig) -> Self {
        let state = PeerState {
            tunnel: config.tunnel_address,
            sources: config.sources,
            endpoint: config.endpoint,
            configured: config.endpoint,
            links: Vec::new(),
            rx_bytes: 0,
            tx_bytes: 0,
        };
        Self { index, timed: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// Locks the state.
    pub(super) fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock()
    }

    /// Sets that its timers must run; returns true if they were stopped.
    pub(super) fn start_timers(&self) -> bool {
        // Written seldom, read for every batch.
        !self.timed.load(Ordering::Relaxed) && !self.timed.swap(true, Ordering::Relaxed)
    }

    /// Sets that its timers can stop.
    pub(super) fn stop_timers(&self) {
        self.timed.store(false, Ordering::Relaxed);
    }

    /// Returns whether its timers must run.
    pub(super) fn is_timed(&self) -> bool {
        self.timed.load(Ordering::Relaxed)
    }

    /// Returns its status.
    pub(super) fn status(&self) -> PeerStatus {
        let state = self.lock();
        PeerStatus {
            endpoint: state.endpoint,
            last_handshake: state.links.iter().filter_map(Link::last_handshake).min(),
            rx_bytes: state.rx_bytes,
            tx_bytes: state.tx_bytes,
            generations: state.links.iter().find(|link| link.is_live()).map(|link| link.generations),
        }
    }
}

impl PeerState {
    /// Lets all timers catch up; calls `send` with messages for the endpoint.
    pub(super) fn catch_up(&mut self, now: Instant, out: &mut [u8], mut send: impl FnMut(&[u8], SocketAddr)) {
        for link in &mut self.links {
            if let (Some(len), Some(endpoint)) = (link.catch_up(now, out), self.endpoint) {
                send(&out[..len], endpoint);
            }
        }
    }

    /// Returns whether packets can be sent now.
    pub(super) fn is_live(&self) -> bool {
        self.links.iter().any(Link::is_live)
    }

    /// Returns the link for sending: the newest with a session.
    pub(super) fn sending(&mut self) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.is_live())
    }

    /// Starts a handshake unless there is a session with the newest usable own key; calls `send`
    /// with messages for the endpoint. If the peer has two keys, starts one with each: the kernel's
    /// WireGuard has only one, and only the peer knows which. When the peer changes its key, it
    /// starts a handshake itself.
    pub(super) fn initiate(&mut self, now: Instant, out: &mut [u8], mut send: impl FnMut(&[u8], SocketAddr)) {
        let Some(newest) = self.links.iter().find(|link| link.active) else { return };
        let own = newest.generations.0;
        let Some(endpoint) = self.endpoint else { return };
        let is_live = newest.is_live() || self.links.iter().any(|link| link.is_by(own) && link.is_live());
        if is_live {
            return;
        }
        for link in self.links.iter_mut().filter(|link| link.is_by(own)) {
            if let Some(len) = link.initiate(now, out) {
                send(&out[..len], endpoint);
            }
        }
    }

    /// Returns the link with this id.
    pub(super) fn link(&mut self, id: u32) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    /// Records the source of an authentic message.
    pub(super) fn moved_to(&mut self, from: SocketAddr) {
        if self.endpoint != Some(from) {
            tracing::info!(?from, was = ?self.endpoint, "peer moved");
            self.endpoint = Some(from);
        }
    }
}
