//! Generates the parts of the documents that repeat the code, and checks all documents: generated
//! parts are current, links resolve, lines and sentences are short.
//!
//! `cargo run -p mesh-docs -- write` brings the generated parts up to date; `... man DIR` writes
//! the manual pages. Start reading at [`generated`].

mod commands;
mod drops;
mod exit_codes;
pub mod generated;
mod layout;
pub mod links;
pub mod man;
pub mod pages;
pub mod prose;
