//! The services' maps: computes their entries from records, and the steps from the maps' current
//! contents.
//!
//! There may be a hundred thousand entries, and a change of one must take effect within
//! milliseconds. So this is not part of a reconciliation. [`Tables`] mirrors the maps. An update
//! processes only services that changed. The maps themselves are read only at start, and
//! periodically for comparison.

mod desired;
mod digest;
mod rendezvous;
mod space;
mod tables;

pub use desired::{Facts, Records, Unreachable, named_table, named_tables};
pub use digest::Digest;
pub use space::{ALIGNMENT, capacity_for};
pub use tables::{Dump, NewTable, TableProblem, Tables, Update};
