//! Pauses between attempts.

use std::time::Duration;

/// Pauses between attempts: twice as long each time, from `first` to `last`, each shortened at
/// random by up to half so that many who failed together do not try together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first` to `last`.
    pub fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, next: first }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.last);
        let mut byte = [0u8];
        // Without randomness there is no jitter, which is a loss only when many fail at once.
        let _ = getrandom::fill(&mut byte);
        pause.mul_f64(1.0 - f64::from(byte[0]) / 510.0)
    }

    /// Begins again with the first pause.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_last_and_begin_again() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        for expected in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
            let pause = backoff.pause().as_millis();
            assert!((expected / 2..=expected).contains(&pause), "{pause} for {expected}");
        }
        backoff.reset();
        assert!(backoff.pause().as_millis() <= 50);
    }
}
