//! Another node: its links, and where it is.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};

use super::link::Link;
use crate::{PeerConfig, PeerStatus, TunnelSources};

/// A peer, shared by the threads. It is locked once for a batch of packets.
pub(super) struct Peer {
    /// The index by which frames name it.
    pub(super) index: u16,
    /// Whether its timers have to run.
    timed: AtomicBool,
    state: Mutex<PeerState>,
}

/// What the lock protects.
pub(super) struct PeerState {
    /// Its tunnel address.
    pub(super) tunnel: Ipv4Addr,
    /// Where packets come from by its keys.
    pub(super) sources: TunnelSources,
    /// Where it is: as configured, or where its last authentic message came from.
    pub(super) endpoint: Option<SocketAddr>,
    /// As configured, to tell a change of configuration from a peer that moved.
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

    /// Locks it.
    pub(super) fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock()
    }

    /// Notes that its timers have to run; true if they were stopped.
    pub(super) fn start_timers(&self) -> bool {
        // Written seldom, read for every batch.
        !self.timed.load(Ordering::Relaxed) && !self.timed.swap(true, Ordering::Relaxed)
    }

    /// Notes that its timers can stop.
    pub(super) fn stop_timers(&self) {
        self.timed.store(false, Ordering::Relaxed);
    }

    /// Whether its timers have to run.
    pub(super) fn is_timed(&self) -> bool {
        self.timed.load(Ordering::Relaxed)
    }

    /// What it reports.
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
    /// Lets all timers catch up; `send` gets what is to be sent to the endpoint.
    pub(super) fn catch_up(&mut self, now: Instant, out: &mut [u8], mut send: impl FnMut(&[u8], SocketAddr)) {
        for link in &mut self.links {
            if let (Some(len), Some(endpoint)) = (link.catch_up(now, out), self.endpoint) {
                send(&out[..len], endpoint);
            }
        }
    }

    /// Whether packets can be sent now.
    pub(super) fn is_live(&self) -> bool {
        self.links.iter().any(Link::is_live)
    }

    /// The link with which packets are to be sent: the newest with a session.
    pub(super) fn sending(&mut self) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.is_live())
    }

    /// Starts a handshake unless there is a session by our newest key that may be used; `send` gets
    /// what is to be sent to the endpoint. Of two keys of the peer it is started by each: the
    /// kernel's WireGuard has one, and only the peer knows which. When it has gone over to another,
    /// it starts one itself.
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

    /// The link with the given id.
    pub(super) fn link(&mut self, id: u32) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    /// Notes where an authentic message came from.
    pub(super) fn moved_to(&mut self, from: SocketAddr) {
        if self.endpoint != Some(from) {
            tracing::info!(?from, was = ?self.endpoint, "peer moved");
            self.endpoint = Some(from);
        }
    }
}
