//! Reads the sources of the workspace, for rules that neither rustc nor clippy checks.
//!
//! The rules themselves are the tests of this crate.

mod imports;
mod manifest;
mod modules;
mod rings;

pub use imports::{Import, imports};
pub use manifest::{Member, members, root};
pub use rings::rings;
