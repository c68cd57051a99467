//! Another node: its links, and where it is.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::link::Link;
use crate::PeerStatus;

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
    pub(super) fn new(index: u16, tunnel: Ipv4Addr, endpoint: Option<SocketAddr>) -> Self {
        let state =
            PeerState { tunnel, endpoint, configured: endpoint, links: Vec::new(), rx_bytes: 0, tx_bytes: 0 };
        Self { index, timed: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// Locks it.
    pub(super) fn lock(&self) -> MutexGuard<'_, PeerState> {
        // Nothing leaves the state half changed, so a thread that panicked does not make it unusable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The link for which we are to have a session: the newest that we may start. If it has none, starts its
    /// handshake and returns the message's length.
    pub(super) fn initiate(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        let wanted = self.links.iter_mut().find(|link| link.active)?;
        if wanted.is_live() { None } else { wanted.initiate(now, out) }
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
