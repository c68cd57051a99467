//! Decides whether a worker polls for its next packet before it sleeps.
//!
//! Waking a thread on an idle CPU takes tens of microseconds in a virtual machine, several times
//! the processing of a packet. A worker whose packets arrive at short intervals therefore polls
//! before it sleeps, and yields the CPU between two polls. It stops as soon as yielding takes long:
//! others then need the CPU more, and the scheduler runs a woken thread sooner than one that has
//! just yielded. At high load no worker polls: there are always more packets than time, and polling
//! would take CPU time from the endpoints of the connection.

use std::time::{Duration, Instant};

/// Longest time to poll after a packet.
const POLL_LIMIT: Duration = Duration::from_micros(100);
/// If a packet arrives this soon after the worker slept, polling might have found it.
const SOON: Duration = Duration::from_micros(300);
/// Yielding takes longer than this only if another thread used the CPU for more than one packet.
const CONTENDED: Duration = Duration::from_micros(60);
/// Shortest and longest pause without polling after others needed the CPU.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// Upper limit of the score that measures how often packets arrived soon.
const MAX_SCORE: u8 = 8;
/// Decrement of the score when polling finds nothing.
const PENALTY: u8 = 2;

/// A worker's observations.
#[derive(Debug)]
pub(super) struct Polling {
    score: u8,
    pause: Duration,
    paused_until: Option<Instant>,
}

/// The next step after a poll that found nothing, and a yield.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Poll,
    Sleep,
}

impl Polling {
    pub(super) fn new() -> Self {
        Self { score: 0, pause: PAUSE.0, paused_until: None }
    }

    /// Returns whether to poll before sleeping.
    pub(super) fn should_poll(&mut self, now: Instant) -> bool {
        if self.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        self.paused_until = None;
        self.score > 0
    }

    /// Handles another poll without result. Polling began at `since`; yielding took from `before`
    /// to `now`.
    pub(super) fn found_nothing(&mut self, since: Instant, before: Instant, now: Instant) -> Next {
        if now.duration_since(before) > CONTENDED {
            self.paused_until = Some(now + self.pause);
            self.pause = (self.pause * 2).min(PAUSE.1);
            return Next::Sleep;
        }
        if now.duration_since(since) > POLL_LIMIT {
            self.score = self.score.saturating_sub(PENALTY);
            return Next::Sleep;
        }
        Next::Poll
    }

    /// Polling found a packet.
    pub(super) fn found_packet(&mut self) {
        self.score = (self.score + 1).min(MAX_SCORE);
        self.pause = (self.pause / 2).max(PAUSE.0);
    }

    /// A packet woke the worker, which had slept for `time`.
    pub(super) fn woken(&mut self, time: Duration) {
        if time < SOON {
            self.score = (self.score + 1).min(MAX_SCORE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(1);

    /// Polls without result until giving up; returns how long that took.
    fn fail_to_find_packets(polling: &mut Polling, since: Instant) -> Duration {
        let mut now = since;
        loop {
            let before = now;
            now += SHORT;
            if polling.found_nothing(since, before, now) == Next::Sleep {
                return now - since;
            }
        }
    }

    #[test]
    fn only_workers_with_closely_spaced_packets_poll_before_they_sleep() {
        let mut polling = Polling::new();
        let now = Instant::now();
        polling.woken(SOON);
        assert!(!polling.should_poll(now), "packets come seldom");
        polling.woken(SOON / 2);
        assert!(polling.should_poll(now));
        let time = fail_to_find_packets(&mut polling, now);
        assert!(time > POLL_LIMIT && time <= POLL_LIMIT + 2 * SHORT, "{time:?}");
        assert!(!polling.should_poll(now + time), "nothing came, so nothing is expected any more");
    }

    #[test]
    fn one_pause_among_many_packets_does_not_end_polling() {
        let mut polling = Polling::new();
        let now = Instant::now();
        polling.woken(SHORT);
        for _ in 0..20 {
            polling.found_packet();
        }
        for _ in 0..MAX_SCORE / PENALTY {
            assert!(polling.should_poll(now));
            fail_to_find_packets(&mut polling, now);
        }
        assert!(!polling.should_poll(now), "but so many do");
    }

    #[test]
    fn a_cpu_that_others_need_is_left_to_them_longer_each_time() {
        let mut polling = Polling::new();
        let mut now = Instant::now();
        let mut pause = PAUSE.0;
        while pause < PAUSE.1 * 2 {
            polling.woken(SHORT);
            assert!(polling.should_poll(now), "after {pause:?}");
            let back = now + CONTENDED * 2;
            assert_eq!(polling.found_nothing(now, now, back), Next::Sleep);
            assert!(!polling.should_poll(back + pause.min(PAUSE.1).saturating_sub(SHORT)));
            now = back + pause.min(PAUSE.1);
            pause *= 2;
        }
        for _ in 0..20 {
            polling.found_packet();
        }
        assert_eq!(polling.found_nothing(now, now, now + CONTENDED * 2), Next::Sleep);
        assert!(polling.should_poll(now + CONTENDED * 2 + PAUSE.0), "what was long ago is forgotten");
    }
}
