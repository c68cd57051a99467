//! How variants are measured: in turn, round by round, so that what changes on the machine changes
//! for all of them.

use serde::Serialize;

/// How often, how long and what to measure.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Turns {
    /// Times that every variant is measured
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: u32,
    /// Seconds per measurement
    #[arg(long, default_value_t = 2)]
    pub(crate) seconds: u32,
    /// Only variants whose name holds this; may be repeated
    #[arg(long, value_name = "NAME")]
    #[serde(skip)]
    only: Vec<String>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { rounds: 5, seconds: 2, only: Vec::new() }
    }
}

impl Turns {
    /// Whether a variant is to be measured.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.contains(only.as_str()))
    }

    /// Measures all variants, for so many seconds each time, as often as there are rounds.
    pub(crate) fn take<V>(
        &self,
        variants: &mut [V],
        mut measure: impl FnMut(&mut V, u32) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for round in 1..=self.rounds {
            eprintln!("round {round} of {}", self.rounds);
            for variant in &mut *variants {
                measure(variant, self.seconds)?;
            }
        }
        Ok(())
    }
}
