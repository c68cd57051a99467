//! The cluster's store: one trait, an embedded and an in-memory implementation, one conformance suite
