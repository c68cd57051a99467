//! Health checks of this node's backends.

mod check;
pub mod checks;
mod verdict;
