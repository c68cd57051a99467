//! `./dev demo`.
