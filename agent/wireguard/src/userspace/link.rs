//! A pair of an own key and a peer's key, and the WireGuard sessions between them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter},
    x25519,
};

use crate::{DropReason, Generation, OwnKey, PublicKey};

/// After this time without timer runs, a link's clock is too old to be used.
const STALE: Duration = Duration::from_millis(750);
/// Interval between two answers to handshakes that look replayed.
const ANSWER_INTERVAL: Duration = Duration::from_secs(5);
/// Interval between two own handshakes (whitepaper, section 6.4: `Rekey-Timeout`).
const REPEAT: Duration = Duration::from_secs(5);
/// Time after which handshakes are not retried (`Rekey-Attempt-Time`).
const GIVE_UP: Duration = Duration::from_secs(90);
/// First byte of the message that starts a handshake.
pub(super) const INITIATION: u8 = 1;
/// Largest handshake message.
pub(super) const HANDSHAKE: usize = 148;

/// Sessions between one generation of the own keys and one of a peer's.
pub(super) struct Link {
    /// Upper 24 bits of the session indices that this link allocates.
    pub(super) id: u32,
    /// Generations: own, peer's.
    pub(super) generations: (Generation, Generation),
    /// Whether this node may start handshakes.
    pub(super) active: bool,
    own: PublicKey,
    theirs: PublicKey,
    tunn: Tunn,
    ticked: Instant,
    last_answer: Option<Instant>,
    attempt: Option<Attempt>,
}

/// Handshakes that were started because there was no session.
///
/// Boringtun forgets that it waits for a response when it answers the peer's own handshake. Another
/// start at that moment would invalidate the response that is already on its way. Peers that accept
/// no second handshake within 50 ms would then leave both sides without a session.
struct Attempt {
    since: Instant,
    last: Instant,
}

/// The result of a received message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A packet of this many bytes was decrypted.
    Packet(usize),
    /// A reply of this many bytes must be sent to the sender of the message, which is authentic.
    Reply(usize),
    /// A handshake of this many bytes must be sent to the peer's known endpoint. The message may be
    /// a replay.
    Initiate(usize),
    /// An authentic message that requires nothing.
    Nothing,
    /// A cookie, not necessarily authentic.
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
            attempt: None,
        }
    }

    /// Returns whether the link connects exactly these keys.
    pub(super) fn is_between(&self, own: &OwnKey, generation: Generation, theirs: PublicKey) -> bool {
        self.generations == (own.generation, generation)
            && self.theirs == theirs
            && self.own == own.private.public()
    }

    /// Returns whether it uses the own key of this generation.
    pub(super) fn is_by(&self, own: Generation) -> bool {
        self.generations.0 == own
    }

    /// Returns whether packets can be sent.
    pub(super) fn is_live(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Returns the time since the handshake of the session used for sending.
    pub(super) fn last_handshake(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }

    /// Lets boringtun's timers catch up if [`Link::tick`] was not called for a while. Returns the
    /// length of a message to send, if there is one.
    pub(super) fn catch_up(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        if now.duration_since(self.ticked) < STALE { None } else { self.tick(now, out).0 }
    }

    /// Runs the timers. Returns a message to send, and whether the timers are still needed.
    pub(super) fn tick(&mut self, now: Instant, out: &mut [u8]) -> (Option<usize>, bool) {
        self.ticked = now;
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => {
                if let (Some(attempt), Some(&INITIATION)) = (&mut self.attempt, message.first()) {
                    attempt.last = now;
                }
                (Some(message.len()), true)
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.attempt = None;
                (None, false)
            }
            _ => (self.repeat(now, out), true),
        }
    }

    /// Starts a handshake unless one is in progress; returns the length of the message in `out`.
    pub(super) fn initiate(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        if self.attempt.as_ref().is_some_and(|attempt| now.duration_since(attempt.last) < REPEAT) {
            return None;
        }
        match self.tunn.format_handshake_initiation(out, false) {
            TunnResult::WriteToNetwork(message) => {
                let going_on =
                    self.attempt.as_ref().filter(|attempt| now.duration_since(attempt.since) < GIVE_UP);
                self.attempt =
                    Some(Attempt { since: going_on.map_or(now, |attempt| attempt.since), last: now });
                Some(message.len())
            }
            _ => None,
        }
    }

    /// Starts another handshake if the last one was lost and boringtun no longer waits for it.
    fn repeat(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        let attempt = self.attempt.as_ref()?;
        if self.is_live() || now.duration_since(attempt.since) >= GIVE_UP {
            self.attempt = None;
            return None;
        }
        self.initiate(now, out)
    }

    /// Encrypts `packet` to the start of `out`, which must have room for 32 additional bytes, and
    /// at least 148. The link must be live. Returns the message's length.
    pub(super) fn encrypt(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Handles a message with this link's session index, or a handshake with its keys. Writes
    /// decrypted packets and replies to the start of `out`, which must be as long as the message,
    /// and at least 148 bytes.
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

    /// An authentic handshake with an old timestamp is a replay, or comes from a restarted peer
    /// whose clock was set back. This node then starts a handshake, at a limited rate, which such a
    /// peer can accept.
    fn answer(&mut self, now: Instant, out: &mut [u8]) -> Received {
        if !self.active || self.last_answer.is_some_and(|last| now.duration_since(last) < ANSWER_INTERVAL) {
            return Received::Drop(DropReason::Replayed);
        }
        self.last_answer = Some(now);
        self.initiate(now, out).map_or(Received::Drop(DropReason::Replayed), Received::Initiate)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrivateKey;

    /// Creates two links that know each other's keys.
    fn pair() -> [Link; 2] {
        links(&[PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap()])
    }

    fn links(keys: &[PrivateKey; 2]) -> [Link; 2] {
        [(1, 0), (2, 1)].map(|(id, me)| {
            let own = OwnKey { generation: 1, private: keys[me].clone(), active: true };
            let public = x25519::PublicKey::from(own.private.public().0);
            let limiter = Arc::new(RateLimiter::new(&public, u64::MAX));
            Link::new(id, &own, 1, keys[1 - me].public(), limiter)
        })
    }

    fn initiation(link: &mut Link, now: Instant) -> Option<Vec<u8>> {
        let mut out = [0; HANDSHAKE];
        link.initiate(now, &mut out).map(|len| out[..len].to_vec())
    }

    /// Returns the reply to a message.
    fn reply(link: &mut Link, message: &[u8]) -> Vec<u8> {
        let mut out = [0; HANDSHAKE];
        match link.receive(message, Instant::now(), &mut out) {
            Received::Reply(len) => out[..len].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn carries_a_packet(from: &mut Link, to: &mut Link) -> bool {
        let mut packet = [0; 32];
        (packet[0], packet[3]) = (0x45, 32);
        let (mut message, mut out) = ([0; HANDSHAKE], [0; HANDSHAKE]);
        let len = from.encrypt(&packet, &mut message).unwrap();
        to.receive(&message[..len], Instant::now(), &mut out) == Received::Packet(32) && out[..32] == packet
    }

    #[test]
    fn crossing_handshakes_establish_sessions_while_packets_wait() {
        let [mut a, mut b] = pair();
        let now = Instant::now();
        let (from_a, from_b) = (initiation(&mut a, now).unwrap(), initiation(&mut b, now).unwrap());
        let (to_a, to_b) = (reply(&mut b, &from_a), reply(&mut a, &from_b));
        let soon = now + Duration::from_millis(50);
        assert!(!a.is_live() && !b.is_live());
        assert_eq!((initiation(&mut a, soon), initiation(&mut b, soon)), (None, None));
        let keepalives = [reply(&mut a, &to_a), reply(&mut b, &to_b)];
        assert!(a.is_live() && b.is_live());
        assert!(carries_a_packet(&mut a, &mut b) && carries_a_packet(&mut b, &mut a));
        let mut out = [0; HANDSHAKE];
        assert_eq!(b.receive(&keepalives[0], now, &mut out), Received::Nothing);
        assert_eq!(a.receive(&keepalives[1], now, &mut out), Received::Nothing);
        assert!(carries_a_packet(&mut a, &mut b) && carries_a_packet(&mut b, &mut a));
    }

    #[test]
    fn a_restarted_peer_whose_clock_went_back_gets_a_session() {
        let keys = [PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap()];
        let now = Instant::now();
        let [mut restarted, _] = links(&keys);
        let of_the_past = initiation(&mut restarted, now).unwrap();
        let [mut a, mut b] = links(&keys);
        let from_a = initiation(&mut a, now).unwrap();
        let to_a = reply(&mut b, &from_a);
        reply(&mut a, &to_a);
        assert!(carries_a_packet(&mut a, &mut b));

        let mut out = [0; HANDSHAKE];
        let Received::Initiate(len) = b.receive(&of_the_past, now, &mut out) else { panic!("no handshake") };
        let response = reply(&mut restarted, &out[..len]);
        reply(&mut b, &response);
        assert!(carries_a_packet(&mut b, &mut restarted) && carries_a_packet(&mut restarted, &mut b));
        let again = b.receive(&of_the_past, now, &mut out);
        assert_eq!(again, Received::Drop(DropReason::Replayed), "not for each replay");
    }

    #[test]
    fn crossed_handshakes_with_lost_responses_are_retried_for_a_time() {
        let [mut a, mut b] = pair();
        let now = Instant::now();
        let (from_a, from_b) = (initiation(&mut a, now).unwrap(), initiation(&mut b, now).unwrap());
        reply(&mut b, &from_a);
        reply(&mut a, &from_b);
        let mut out = [0; HANDSHAKE];
        assert_eq!(a.tick(now + REPEAT / 2, &mut out), (None, true));
        let (again, _) = a.tick(now + REPEAT, &mut out);
        let response = reply(&mut b, &out[..again.unwrap()]);
        reply(&mut a, &response);
        assert!(carries_a_packet(&mut a, &mut b) && carries_a_packet(&mut b, &mut a));
        assert_eq!(b.tick(now + REPEAT, &mut out), (None, true), "it has a session");

        let [mut a, mut b] = pair();
        initiation(&mut a, now).unwrap();
        reply(&mut a, &initiation(&mut b, now).unwrap());
        assert_eq!(a.tick(now + GIVE_UP, &mut out), (None, true), "nobody is there");
        assert!(initiation(&mut a, now + GIVE_UP).is_some(), "but another packet may ask again");
    }
}
