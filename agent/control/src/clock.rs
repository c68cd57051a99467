//! The clocks of hosts: this one's, and how far others differ from it.

use std::time::SystemTime;

/// Smaller differences of clocks are not reported; a message may take a while to arrive.
const TOLERATED_MS: u64 = 5_000;

/// Returns the time of this host's clock, in milliseconds since 1970.
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Formats a difference as `70 days ahead of` or `3 hours behind`; `None` if it does not matter.
pub fn difference(ahead_ms: i64) -> Option<String> {
    let size = ahead_ms.unsigned_abs();
    if size < TOLERATED_MS {
        return None;
    }
    let seconds = size / 1000;
    let (count, unit) = match seconds {
        172_800.. => (seconds / 86_400, "days"),
        7_200.. => (seconds / 3_600, "hours"),
        120.. => (seconds / 60, "minutes"),
        _ => (seconds, "seconds"),
    };
    Some(format!("{count} {unit} {}", if ahead_ms > 0 { "ahead of" } else { "behind" }))
}

/// Returns the median of the other clocks' differences.
pub(crate) fn median(mut differences: Vec<i64>) -> Option<i64> {
    differences.sort_unstable();
    differences.get(differences.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_of_clocks_is_shown_in_a_readable_unit() {
        assert_eq!(difference(4_999), None);
        assert_eq!(difference(-5_000).unwrap(), "5 seconds behind");
        assert_eq!(difference(70 * 86_400_000).unwrap(), "70 days ahead of");
        assert_eq!(difference(-3 * 3_600_000).unwrap(), "3 hours behind");
    }

    #[test]
    fn one_wrong_clock_of_many_does_not_change_the_median() {
        assert_eq!(median(vec![3, -2, 70 * 86_400_000]), Some(3));
        assert_eq!(median(Vec::new()), None);
    }
}
