//! The records of the store, read and written as the model's types.

use std::sync::Arc;

use mesh_model::cluster::Cluster;
use mesh_model::{Lease, Network, NetworkId, Node, NodeId};
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{
    Compare, Key, KeyValue, Op, OpResponse, Revision, Store, StoreError, Txn, TxnOutcome, Value,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{keys, limits};

/// Why the store's records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store itself failed.
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    /// A value does not match its key.
    #[error("the store's record {key} cannot be read: {source}")]
    Malformed {
        /// The record's key.
        key: Key,
        /// The reason.
        source: serde_json::Error,
    },
    /// A required record is missing.
    #[error("the store has no record {key}")]
    Missing {
        /// The record's key.
        key: Key,
    },
    /// Concurrent changes prevented the transaction.
    #[error("gave up after {tries} attempts because of concurrent changes")]
    Overtaken {
        /// The number of attempts.
        tries: usize,
    },
    /// The kernel provided no randomness.
    #[error("cannot generate an identifier: {0}")]
    Random(#[from] getrandom::Error),
}

impl From<RecordError> for Problem {
    fn from(error: RecordError) -> Self {
        let kind = match &error {
            RecordError::Store(StoreError::Closed) => ProblemKind::Unreachable,
            RecordError::Overtaken { .. } => ProblemKind::Conflict,
            _ => ProblemKind::Failed,
        };
        let hint = match &error {
            RecordError::Store(store) => store.hint(),
            RecordError::Overtaken { .. } => Some("try again"),
            _ => None,
        };
        let problem = Self::new(kind, error.to_string());
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

/// A record and the revision at which it was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Versioned<T> {
    pub(crate) value: T,
    pub(crate) revision: Revision,
}

/// Reads a value.
pub(crate) fn decode<T: DeserializeOwned>(kv: &KeyValue) -> Result<Versioned<T>, RecordError> {
    serde_json::from_slice(&kv.value)
        .map(|value| Versioned { value, revision: kv.mod_revision })
        .map_err(|source| RecordError::Malformed { key: kv.key.clone(), source })
}

/// Reads a lease, which carries the revision of its record.
pub(crate) fn decode_lease(kv: &KeyValue) -> Result<Lease, RecordError> {
    let Versioned { value, revision } = decode::<Lease>(kv)?;
    Ok(Lease { revision: revision.0, ..value })
}

/// Encodes a value. The records' maps have text keys, and their other types always have a JSON
/// form.
pub(crate) fn encode<T: Serialize>(record: &T) -> Value {
    serde_json::to_vec(record).expect("records are plain structs, enums and maps with text keys").into()
}

/// Returns the operation that writes a record or an index entry.
pub(crate) fn put<T: Serialize>(key: Key, record: &T) -> Op {
    Op::put(key, encode(record))
}

/// The result of a read-only transaction: the state at one revision.
pub(crate) struct Read {
    pub(crate) revision: Revision,
    responses: std::vec::IntoIter<OpResponse>,
}

impl Read {
    /// Returns the records of the next range.
    pub(crate) fn all<T: DeserializeOwned>(&mut self) -> Result<Vec<Versioned<T>>, RecordError> {
        match self.responses.next() {
            Some(OpResponse::Got(kvs)) => kvs.iter().map(decode).collect(),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the record of the next key.
    pub(crate) fn one<T: DeserializeOwned>(&mut self) -> Result<Option<Versioned<T>>, RecordError> {
        Ok(self.all()?.pop())
    }

    /// Returns the leases of the next range.
    pub(crate) fn leases(&mut self) -> Result<Vec<Lease>, RecordError> {
        match self.responses.next() {
            Some(OpResponse::Got(kvs)) => kvs.iter().map(decode_lease).collect(),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the fence of the next key: what to compare, and what to write.
    pub(crate) fn fence(&mut self, key: Key) -> Fence {
        let revision = match self.responses.next() {
            Some(OpResponse::Got(kvs)) => kvs.first().map_or(Revision::NEVER, |kv| kv.mod_revision),
            _ => Revision::NEVER,
        };
        Fence { key, revision, read_at: self.revision }
    }
}

/// A fence as read.
#[derive(Debug, Clone)]
pub(crate) struct Fence {
    key: Key,
    revision: Revision,
    read_at: Revision,
}

impl Fence {
    /// Returns the condition that the fence has not been written since it was read.
    pub(crate) fn unchanged(&self) -> Compare {
        Compare::mod_revision(self.key.clone(), self.revision)
    }

    /// Returns the operation that invalidates all other reads of the fence.
    pub(crate) fn advance(&self) -> Op {
        // Any value works: only the revision counts.
        Op::put(self.key.clone(), self.read_at.to_string())
    }
}

/// The store, with the model's types.
#[derive(Clone)]
pub(crate) struct Records {
    store: Arc<dyn Store>,
}

impl Records {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Reads several keys and ranges at one revision.
    pub(crate) async fn read(&self, ops: impl IntoIterator<Item = Op>) -> Result<Read, RecordError> {
        let outcome = self.store.txn(Txn::always(ops)).await?;
        Ok(Read { revision: outcome.revision, responses: outcome.responses.into_iter() })
    }

    /// Runs a transaction; returns `None` if a comparison failed.
    pub(crate) async fn commit(&self, txn: Txn) -> Result<Option<Revision>, RecordError> {
        let TxnOutcome { revision, succeeded, .. } = self.store.txn(txn).await?;
        Ok(succeeded.then_some(revision))
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        key: Key,
    ) -> Result<Option<Versioned<T>>, RecordError> {
        self.store.get(key).await?.as_ref().map(decode).transpose()
    }

    pub(crate) async fn cluster(&self) -> Result<Cluster, RecordError> {
        let key = keys::cluster();
        let cluster = self.get(key.clone()).await?.ok_or(RecordError::Missing { key })?;
        Ok(cluster.value)
    }

    pub(crate) async fn node(&self, id: &NodeId) -> Result<Option<Versioned<Node>>, RecordError> {
        self.get(keys::node(id)).await
    }

    pub(crate) async fn nodes(&self) -> Result<Vec<Versioned<Node>>, RecordError> {
        self.read([Op::get_range(keys::nodes())]).await?.all()
    }

    pub(crate) async fn networks(&self) -> Result<Vec<Versioned<Network>>, RecordError> {
        self.read([Op::get_range(keys::networks())]).await?.all()
    }

    pub(crate) async fn leases_of(&self, network: &NetworkId) -> Result<Vec<Lease>, RecordError> {
        self.read([Op::get_range(keys::leases_of(network))]).await?.leases()
    }
}

/// Counts the attempts of a transaction with concurrent changes.
#[derive(Debug, Default)]
pub(crate) struct Tries(usize);

impl Tries {
    /// Begins an attempt.
    pub(crate) fn next(&mut self) -> Result<(), RecordError> {
        if self.0 == limits::TRIES {
            return Err(RecordError::Overtaken { tries: self.0 });
        }
        self.0 += 1;
        Ok(())
    }
}
