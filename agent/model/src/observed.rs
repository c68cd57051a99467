//! What one node's kernel looks like now: read from it, never remembered.

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {}
