//! Figures from samples.

use serde::Serialize;

/// Samples of one measurement, in the order they were taken.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle sample, or the mean of the middle two; nothing without samples.
    pub(crate) fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            len if len % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    /// The smallest sample that at least `percent` of all samples do not exceed (nearest rank).
    pub(crate) fn percentile(&self, percent: usize) -> Option<f64> {
        let sorted = self.sorted();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: impl IntoIterator<Item = u32>) -> Samples {
        Samples(values.into_iter().map(f64::from).collect())
    }

    #[test]
    fn median_and_percentiles_are_by_rank() {
        assert_eq!(samples([3, 1, 2]).median(), Some(2.0));
        assert_eq!(samples([4, 1, 2, 3]).median(), Some(2.5));
        assert_eq!(samples(1..=200).percentile(99), Some(198.0));
        assert_eq!(samples(1..=200).percentile(50), Some(100.0));
        assert_eq!(samples([7]).percentile(99), Some(7.0));
        assert_eq!((samples([]).median(), samples([]).percentile(50)), (None, None));
    }
}
