//! Benchmarks with peers side by side
