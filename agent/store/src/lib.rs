//! The cluster's store: one trait, an embedded and an in-memory implementation, one conformance suite

mod error;
mod key;
mod store;
mod txn;

pub use error::{OpenError, StoreError};
pub use key::{Key, KeyRange, KeyValue, Revision, Value};
pub use store::{Event, RangeOutcome, Store, StoreFuture, WatchBatch, WatchStream};
pub use txn::{Compare, CompareOp, CompareTarget, Op, OpResponse, Txn, TxnOutcome};
