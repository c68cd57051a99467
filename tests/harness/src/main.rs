//! `mesh-lab`: what `./dev lab` and `./dev demo` run.
fn main() {}
