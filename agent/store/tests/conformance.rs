//! Both stores do what every store must do.

use std::sync::Arc;

use mesh_store::conformance::Subject;
use mesh_store::{EmbeddedStore, MemoryStore, conformance_tests};
use tempfile::TempDir;

#[expect(clippy::unused_async, reason = "the suite awaits its factory, for stores that take time to start")]
async fn memory() -> ((), Subject) {
    ((), Arc::new(MemoryStore::new()))
}

#[expect(clippy::unused_async, reason = "the suite awaits its factory, for stores that take time to start")]
async fn embedded() -> (TempDir, Subject) {
    let directory = TempDir::new().expect("a temporary directory");
    let store = EmbeddedStore::create(directory.path().join("store")).expect("a new store");
    (directory, Arc::new(store))
}

mod memory_store {
    use super::*;
    conformance_tests!(memory);
}

mod embedded_store {
    use super::*;
    conformance_tests!(embedded);
}
