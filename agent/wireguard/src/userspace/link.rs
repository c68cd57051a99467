//! A pair of keys, ours and a peer's, and the WireGuard sessions between them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter},
    x25519,
};

use crate::{DropReason, Generation, OwnKey, PublicKey};

/// After this time without timers a link's notion of the time is too old to be used.
const STALE: Duration = Duration::from_millis(750);
/// Time between two answers to handshakes that look replayed.
const ANSWER_INTERVAL: Duration = Duration::from_secs(5);
/// Largest handshake message.
pub(super) const HANDSHAKE: usize = 148;

/// Sessions between one generation of our keys and one of a peer's.
pub(super) struct Link {
    /// Upper 24 bits of the session indices that this link hands out.
    pub(super) id: u32,
    /// Generations: ours, the peer's.
    pub(super) generations: (Generation, Generation),
    /// Whether we may start handshakes.
    pub(super) active: bool,
    own: PublicKey,
    theirs: PublicKey,
    tunn: Tunn,
    ticked: Instant,
    last_answer: Option<Instant>,
}

/// What came of a received message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A packet of so many bytes was decrypted.
    Packet(usize),
    /// A reply of so many bytes is to be sent to whoever sent the message, which is authentic.
    Reply(usize),
    /// A handshake of so many bytes is to be sent to the peer's known endpoint. The message may be a replay.
    Initiate(usize),
    /// An authentic message that needs nothing.
    Nothing,
    /// A cookie, perhaps authentic.
    Cookie,
    /// Not acceptable.
    Drop(DropReason),
}

impl Link {
    pub(super) fn new(
        id: u32,
        own: &OwnKey,
        generation: Generation,
        theirs: PublicKey,
        limiter: Arc<RateLimiter>,
    ) -> Self {
        let secret = own.private.secret().clone();
        let peer = x25519::PublicKey::from(theirs.0);
        Self {
            id,
            generations: (own.generation, generation),
            active: own.active,
            own: own.private.public(),
            theirs,
            tunn: Tunn::new(secret, peer, None, None, id, Some(limiter)),
            ticked: Instant::now(),
            last_answer: None,
        }
    }

    /// Whether it is between just these keys.
    pub(super) fn is_between(&self, own: &OwnKey, generation: Generation, theirs: PublicKey) -> bool {
        self.generations == (own.generation, generation)
            && self.theirs == theirs
            && self.own == own.private.public()
    }

    /// Whether packets can be sent.
    pub(super) fn is_live(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Time since the handshake of the session that packets are sent with.
    pub(super) fn last_handshake(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }

    /// Lets boringtun's timers catch up when nobody has called [`Link::tick`] for a while. Returns the length of what
    /// is to be sent, if anything.
    pub(super) fn catch_up(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        if now.duration_since(self.ticked) < STALE { None } else { self.tick(now, out).0 }
    }

    /// Runs the timers: what is to be sent, and whether they are still needed.
    pub(super) fn tick(&mut self, now: Instant, out: &mut [u8]) -> (Option<usize>, bool) {
        self.ticked = now;
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => (Some(message.len()), true),
            TunnResult::Err(WireGuardError::ConnectionExpired) => (None, false),
            _ => (None, true),
        }
    }

    /// Starts a handshake unless one is under way; returns the length of the message in `out`.
    pub(super) fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(out, false) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Encrypts `packet` to the beginning of `out`, which must have room for 32 bytes more, and 148 at least.
    /// The link must be live. Returns the message's length.
    pub(super) fn encrypt(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Takes a message whose session index is this link's, or a handshake whose keys are. Decrypted packets and
    /// replies are put at the beginning of `out`, which must be as long as the message, and 148 bytes at least.
    pub(super) fn receive(&mut self, message: &[u8], now: Instant, out: &mut [u8]) -> Received {
        let cookie = message.first() == Some(&3);
        match self.tunn.decapsulate(None, message, out) {
            TunnResult::WriteToTunnelV4(packet, _) => Received::Packet(packet.len()),
            TunnResult::WriteToTunnelV6(..) => Received::Drop(DropReason::NotVxlan),
            TunnResult::WriteToNetwork(reply) => Received::Reply(reply.len()),
            TunnResult::Done if cookie => Received::Cookie,
            TunnResult::Done => Received::Nothing,
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => self.answer(now, out),
            TunnResult::Err(error) => Received::Drop(reason(&error)),
        }
    }

    /// An authentic handshake with an old timestamp is a replay, or a peer that was restarted and whose clock went
    /// back. We start a handshake ourselves then, which such a peer can accept, not too often.
    fn answer(&mut self, now: Instant, out: &mut [u8]) -> Received {
        if !self.active || self.last_answer.is_some_and(|last| now.duration_since(last) < ANSWER_INTERVAL) {
            return Received::Drop(DropReason::Replayed);
        }
        self.last_answer = Some(now);
        self.initiate(out).map_or(Received::Drop(DropReason::Replayed), Received::Initiate)
    }
}

fn reason(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::InvalidAeadTag => DropReason::NotAuthentic,
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => DropReason::Replayed,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex | WireGuardError::UnexpectedPacket => {
            DropReason::UnknownSession
        }
        WireGuardError::WrongKey | WireGuardError::InvalidMac => DropReason::HandshakeRefused,
        WireGuardError::UnderLoad => DropReason::HandshakeLimited,
        WireGuardError::InvalidPacket => DropReason::NotVxlan,
        _ => DropReason::NotWireguard,
    }
}
