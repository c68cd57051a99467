//! Whether a worker looks for its next packet for some time before it sleeps.
//!
//! Waking a thread on a processor that idles takes tens of microseconds in a virtual machine,
//! several times what a packet takes in the engine. A worker whose packets follow each other
//! closely therefore looks for the next one before it sleeps, and hands the processor to whoever
//! else wants it between two looks. It stops as soon as that takes long: then others need the
//! processor more, and a thread that sleeps gets it sooner when its packet comes than one that has
//! just given it away. Where much is moved at once nobody looks: there are always more packets than
//! time, and looking takes it from the ends of the connection.

use std::time::{Duration, Instant};

/// Longest time between a packet and the next for which it is looked.
const LOOK: Duration = Duration::from_micros(100);
/// A packet that comes so soon, though it had to wake the worker, might have been seen by looking.
const NEAR: Duration = Duration::from_micros(300);
/// Handing over the processor takes longer only if somebody has used it for more than a packet.
const CROWDED: Duration = Duration::from_micros(60);
/// Most and least time without looking after the processor was wanted by others.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// Trust in the next packet's coming soon: at most so much is remembered.
const MOST: u8 = 8;
/// What looking in vain costs of it.
const VAIN: u8 = 2;

/// What one worker has seen so far.
#[derive(Debug)]
pub(super) struct Patience {
    trust: u8,
    pause: Duration,
    paused_until: Option<Instant>,
}

/// What is to be done after a look that showed nothing and handing over the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Look,
    Sleep,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { trust: 0, pause: PAUSE.0, paused_until: None }
    }

    /// Whether to look before sleeping.
    pub(super) fn begins(&mut self, now: Instant) -> bool {
        if self.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        self.paused_until = None;
        self.trust > 0
    }

    /// After another look in vain, `since` looking began, and handing over the processor from
    /// `before` to `now`.
    pub(super) fn vain(&mut self, since: Instant, before: Instant, now: Instant) -> Next {
        if now.duration_since(before) > CROWDED {
            self.paused_until = Some(now + self.pause);
            self.pause = (self.pause * 2).min(PAUSE.1);
            return Next::Sleep;
        }
        if now.duration_since(since) > LOOK {
            self.trust = self.trust.saturating_sub(VAIN);
            return Next::Sleep;
        }
        Next::Look
    }

    /// Looking showed a packet.
    pub(super) fn seen(&mut self) {
        self.trust = (self.trust + 1).min(MOST);
        self.pause = (self.pause / 2).max(PAUSE.0);
    }

    /// A packet has woken the worker, which slept for `time`.
    pub(super) fn woken(&mut self, time: Duration) {
        if time < NEAR {
            self.trust = (self.trust + 1).min(MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(1);

    /// Looks in vain until it is given up; returns how long that took.
    fn fail_to_find_packets(patience: &mut Patience, since: Instant) -> Duration {
        let mut now = since;
        loop {
            let before = now;
            now += SHORT;
            if patience.vain(since, before, now) == Next::Sleep {
                return now - since;
            }
        }
    }

    #[test]
    fn only_those_whose_packets_follow_each_other_closely_look_before_they_sleep() {
        let mut patience = Patience::new();
        let now = Instant::now();
        patience.woken(NEAR);
        assert!(!patience.begins(now), "packets come seldom");
        patience.woken(NEAR / 2);
        assert!(patience.begins(now));
        let time = fail_to_find_packets(&mut patience, now);
        assert!(time > LOOK && time <= LOOK + 2 * SHORT, "{time:?}");
        assert!(!patience.begins(now + time), "nothing came, so nothing is expected any more");
    }

    #[test]
    fn one_pause_among_many_packets_does_not_end_the_looking() {
        let mut patience = Patience::new();
        let now = Instant::now();
        patience.woken(SHORT);
        for _ in 0..20 {
            patience.seen();
        }
        for _ in 0..MOST / VAIN {
            assert!(patience.begins(now));
            fail_to_find_packets(&mut patience, now);
        }
        assert!(!patience.begins(now), "but so many do");
    }

    #[test]
    fn a_processor_that_others_want_is_left_to_them_longer_each_time() {
        let mut patience = Patience::new();
        let mut now = Instant::now();
        let mut pause = PAUSE.0;
        while pause < PAUSE.1 * 2 {
            patience.woken(SHORT);
            assert!(patience.begins(now), "after {pause:?}");
            let back = now + CROWDED * 2;
            assert_eq!(patience.vain(now, now, back), Next::Sleep);
            assert!(!patience.begins(back + pause.min(PAUSE.1).saturating_sub(SHORT)));
            now = back + pause.min(PAUSE.1);
            pause *= 2;
        }
        for _ in 0..20 {
            patience.seen();
        }
        assert_eq!(patience.vain(now, now, now + CROWDED * 2), Next::Sleep);
        assert!(patience.begins(now + CROWDED * 2 + PAUSE.0), "what was long ago is forgotten");
    }
}
