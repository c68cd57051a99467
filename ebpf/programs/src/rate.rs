//! Limits of rates.

/// A limit: so many at once, and one more after each pause.
pub struct Rate {
    /// How many at once.
    pub burst: u64,
    /// The pause, in nanoseconds.
    pub pause: u64,
}

impl Rate {
    /// Counts one more at the time `now`, in nanoseconds. Returns whether the limit allows it.
    ///
    /// `until` is the time from which nothing counts any more. It begins as 0.
    #[inline(always)]
    pub fn allows(&self, until: &mut u64, now: u64) -> bool {
        let from = if *until > now { *until } else { now };
        if from + self.pause - now > self.burst * self.pause {
            return false;
        }
        *until = from + self.pause;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_one_after_each_pause() {
        let rate = Rate { burst: 50, pause: 1000 };
        let (mut until, mut now) = (0, 1 << 40);
        let count = |until: &mut u64, now| (0..1000).filter(|_| rate.allows(until, now)).count();
        assert_eq!(count(&mut until, now), 50);
        for (later, allowed) in [(999, 0), (1, 1), (3000, 3), (1_000_000, 50)] {
            now += later;
            assert_eq!(count(&mut until, now), allowed, "{later} ns later");
        }
    }
}
