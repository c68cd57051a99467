//! The cluster's store: one trait, an embedded and an in-memory implementation, one conformance suite

pub mod conformance;
mod embedded;
mod error;
mod key;
mod memory;
mod mvcc;
mod reader;
mod store;
mod txn;

pub use embedded::EmbeddedStore;
pub use error::{OpenError, StoreError};
pub use key::{Key, KeyRange, KeyValue, Revision, Value};
pub use memory::MemoryStore;
pub use store::{Event, RangeOutcome, Store, StoreFuture, WatchBatch, WatchStream};
pub use txn::{Compare, CompareOp, CompareTarget, Op, OpResponse, Txn, TxnOutcome};
