//! The services' maps: from records to entries, and from what the maps hold to what they should
//! hold.
//!
//! There may be a hundred thousand entries, and one of them may have to change within milliseconds.
//! So this is no part of a pass: [`Tables`] mirrors what the maps hold, an update looks at the
//! services that changed and at nothing else, and the maps are only read at start and now and then
//! to compare.

mod digest;
mod rendezvous;
mod space;
mod tables;
mod wanted;

pub use digest::Digest;
pub use space::{ALIGNMENT, capacity_for};
pub use tables::{Dump, NewTable, Problem, Tables, Update};
pub use wanted::{Facts, Records, Unreachable, named_table, named_tables};
