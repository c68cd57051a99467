//! Derives a backend's health from the results of its checks.

use std::time::Duration;

use mesh_model::HealthCheck;
use tokio::time::Instant;

/// The verdict on a backend after its checks so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verdict {
    healthy: Option<bool>,
    failures: u32,
    begun: Instant,
    /// When a failure was last counted.
    counted: Option<Instant>,
}

impl Verdict {
    /// Starts with a known verdict; `None` for a new backend.
    pub(super) const fn new(healthy: Option<bool>, begun: Instant) -> Self {
        Self { healthy, failures: 0, begun, counted: None }
    }

    /// `None` until the first success or until enough failures.
    pub(super) const fn healthy(&self) -> Option<bool> {
        self.healthy
    }

    /// Returns the time since the first check.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.begun)
    }

    /// Records the result of a check. Until the first success, failures in the start period do not
    /// count. Later ones count once in an interval, since checks are more frequent then.
    pub(super) fn judge(&mut self, passed: bool, check: &HealthCheck, now: Instant) {
        if passed {
            (self.healthy, self.failures) = (Some(true), 0);
            return;
        }
        if self.healthy.is_none() {
            let starts = self.age(now) < check.start_period;
            let early = self.counted.is_some_and(|at| now.duration_since(at) < check.interval * 9 / 10);
            if starts || early {
                return;
            }
        }
        self.counted = Some(now);
        self.failures = self.failures.saturating_add(1);
        if self.failures >= check.retries {
            self.healthy = Some(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_model::HealthKind;

    use super::*;

    fn check(interval: u64, retries: u32) -> HealthCheck {
        HealthCheck::new(HealthKind::Tcp { port: 80 }, Duration::from_secs(interval), retries).unwrap()
    }

    #[test]
    fn a_backend_is_unhealthy_after_its_retries_and_healthy_again_at_the_first_success() {
        let mut now = Instant::now();
        let mut verdict = Verdict::new(None, now);
        let mut judge = |passed, retries| {
            now += Duration::from_secs(2);
            verdict.judge(passed, &check(2, retries), now);
            verdict.healthy()
        };
        for expected in [None, None, Some(false), Some(false)] {
            assert_eq!(judge(false, 3), expected);
        }
        assert_eq!(judge(true, 3), Some(true));
        assert_eq!(judge(false, 3), Some(true));
        assert_eq!(judge(false, 1), Some(false));
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_until_the_first_success() {
        let begun = Instant::now();
        let check = check(1, 2).with_start_period(Duration::from_secs(10)).unwrap();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut verdict = Verdict::new(None, begun);
        for second in 0..10 {
            verdict.judge(false, &check, at(second));
            assert_eq!(verdict.healthy(), None);
        }
        verdict.judge(false, &check, at(10));
        verdict.judge(false, &check, at(11));
        assert_eq!(verdict.healthy(), Some(false));
        let mut verdict = Verdict::new(None, begun);
        verdict.judge(true, &check, at(1));
        verdict.judge(false, &check, at(2));
        verdict.judge(false, &check, at(3));
        assert_eq!(verdict.healthy(), Some(false), "a success ends the start period");
    }

    #[test]
    fn frequent_checks_of_a_new_backend_count_once_in_an_interval() {
        let begun = Instant::now();
        let mut verdict = Verdict::new(None, begun);
        for second in (0..60).step_by(5) {
            verdict.judge(false, &check(30, 3), begun + Duration::from_secs(second));
        }
        assert_eq!(verdict.healthy(), None, "two counted in a minute");
        verdict.judge(false, &check(30, 3), begun + Duration::from_mins(1));
        assert_eq!(verdict.healthy(), Some(false));
    }
}
