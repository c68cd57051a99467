//! Handshake messages: assigns them to links, and limits floods of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::noise::{Packet, TunnResult, errors::WireGuardError, handshake::parse_handshake_anon};

use super::{
    link::{HANDSHAKE, INITIATION, Received},
    peer::Peer,
    probe,
    transmit::Context,
};
use crate::{DropReason, PublicKey};

/// First bytes of responses to this node's messages.
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
/// Handshakes per second that one source address may start, with or without a cookie.
const PER_SOURCE: u32 = 20;
/// Source addresses that are distinguished in one second.
const SOURCES: usize = 4096;

/// A worker's state of handshakes.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    since: Option<Instant>,
    started: BTreeMap<IpAddr, u32>,
}

impl Handshakes {
    /// Handles one message that is not data.
    pub(super) fn receive(&mut self, message: &[u8], from: SocketAddr, context: Context<'_>) {
        let result = match message.first() {
            Some(&INITIATION) => self.initiation(message, from, context),
            Some(&RESPONSE) => answer(message, 8, from, context),
            Some(&COOKIE) => answer(message, 4, from, context),
            _ if probe::answer(message, from, context) => Ok(()),
            _ => Err(DropReason::NotWireguard),
        };
        if let Err(reason) = result {
            context.shared.counters.count(reason);
        }
    }

    fn initiation(
        &mut self,
        message: &[u8],
        from: SocketAddr,
        context: Context<'_>,
    ) -> Result<(), DropReason> {
        let mut out = [0; HANDSHAKE];
        for own in context.table.own.iter().rev() {
            own.limiter.reset_count();
            let initiation = match own.limiter.verify_packet(Some(from.ip()), message, &mut out) {
                Ok(Packet::HandshakeInit(initiation)) => initiation,
                Err(TunnResult::WriteToNetwork(cookie)) => {
                    // The sender must show that it is at this address before it can cause work.
                    let _ = context.socket.send(cookie, from);
                    return Err(DropReason::HandshakeLimited);
                }
                // Not made for this own key; perhaps for the other.
                Err(TunnResult::Err(WireGuardError::InvalidMac)) => continue,
                _ => return Err(DropReason::NotWireguard),
            };
            if !self.allow(from.ip()) {
                return Err(DropReason::HandshakeLimited);
            }
            let who = parse_handshake_anon(own.secret(), &own.dalek(), &initiation)
                .map_err(|_| DropReason::HandshakeRefused)?;
            let (link, peer) = context
                .table
                .pair(own, PublicKey(who.peer_static_public))
                .ok_or(DropReason::HandshakeRefused)?;
            return deliver(message, from, context, link, peer);
        }
        Err(DropReason::HandshakeRefused)
    }

    /// Returns whether a source may start another handshake.
    fn allow(&mut self, source: IpAddr) -> bool {
        let now = Instant::now();
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            self.since = Some(now);
            self.started.clear();
        }
        // An IPv6 host may use 64 bits of addresses.
        let source = match source {
            IpAddr::V4(_) => source,
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        };
        if self.started.len() >= SOURCES && !self.started.contains_key(&source) {
            return false;
        }
        let started = self.started.entry(source).or_default();
        *started += 1;
        *started <= PER_SOURCE
    }
}

/// Handles a response to this node's message: it has the session index at offset `at`.
fn answer(message: &[u8], at: usize, from: SocketAddr, context: Context<'_>) -> Result<(), DropReason> {
    let index = message.get(at..).and_then(|rest| rest.first_chunk()).ok_or(DropReason::NotWireguard)?;
    let (link, peer) = context.table.session(u32::from_le_bytes(*index)).ok_or(DropReason::UnknownSession)?;
    deliver(message, from, context, link, peer)
}

/// Passes a handshake message to its link.
fn deliver(
    message: &[u8],
    from: SocketAddr,
    context: Context<'_>,
    link: u32,
    peer: &Arc<Peer>,
) -> Result<(), DropReason> {
    let mut state = peer.lock();
    let now = Instant::now();
    let mut out = [0; HANDSHAKE];
    state.catch_up(now, &mut out, |message, to| {
        let _ = context.socket.send(message, to);
    });
    let was_live = state.is_live();
    let endpoint = state.endpoint;
    let session = state.link(link).ok_or(DropReason::UnknownSession)?;
    match session.receive(message, now, &mut out) {
        Received::Reply(len) => {
            tracing::debug!(peer = peer.index, %from, "handshake");
            let _ = context.socket.send(&out[..len], from);
            state.tx_bytes += len as u64;
        }
        Received::Initiate(len) => {
            if let Some(endpoint) = endpoint {
                let _ = context.socket.send(&out[..len], endpoint);
            }
            return Err(DropReason::Replayed);
        }
        // A cookie does not authenticate its sender.
        Received::Cookie => return Ok(()),
        Received::Packet(_) | Received::Nothing => {}
        Received::Drop(reason) => return Err(reason),
    }
    state.rx_bytes += message.len() as u64;
    state.moved_to(from);
    context.shared.start_timers(peer);
    if !was_live && state.is_live() {
        context.shared.wake_workers();
    }
    Ok(())
}
