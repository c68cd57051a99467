//! The cluster's store: one trait, an embedded and an in-memory implementation, one conformance
//! suite
//!
//! A [`Store`] has ordered keys whose history is kept until it is compacted. Writes are
//! transactions ([`Txn`]): compare, then put and delete, all at one [`Revision`]. To follow a part
//! of the store, read it with [`Store::range`], then [`Store::watch`] it from the revision after
//! the one that was read: nothing is missed and nothing comes twice.
//!
//! [`EmbeddedStore`] is a file on a manager's disk, [`MemoryStore`] is for tests; the rules for
//! both, and for any other, are the tests of [`conformance`].

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
