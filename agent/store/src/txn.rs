//! Transactions: comparisons, then one of two lists of operations, at once

use std::collections::BTreeSet;

use crate::{Key, KeyRange, KeyValue, Revision, StoreError, Value};

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key that is looked at.
    pub key: Key,
    /// What of the key is compared, and with what.
    pub target: CompareTarget,
    /// How the key's side (left) must relate to the target's (right).
    pub op: CompareOp,
}

/// What of a key a [`Compare`] looks at, with the right-hand side of the comparison.
///
/// For an absent key, both revisions and the version are 0, and a comparison of the value is false
/// whatever its operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    /// [`KeyValue::create_revision`].
    CreateRevision(Revision),
    /// [`KeyValue::mod_revision`].
    ModRevision(Revision),
    /// [`KeyValue::value`], ordered bytewise.
    Value(Value),
    /// [`KeyValue::version`].
    Version(u64),
}

/// The operator of a [`Compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `>`
    Greater,
}

impl Compare {
    /// A comparison of any kind.
    pub fn new(key: impl Into<Key>, target: CompareTarget, op: CompareOp) -> Self {
        Self { key: key.into(), target, op }
    }

    /// The key does not exist.
    pub fn absent(key: impl Into<Key>) -> Self {
        Self::new(key, CompareTarget::CreateRevision(Revision::NEVER), CompareOp::Equal)
    }

    /// The key exists.
    pub fn present(key: impl Into<Key>) -> Self {
        Self::new(key, CompareTarget::CreateRevision(Revision::NEVER), CompareOp::Greater)
    }

    /// The key was last written at `revision`, and not since.
    pub fn mod_revision(key: impl Into<Key>, revision: Revision) -> Self {
        Self::new(key, CompareTarget::ModRevision(revision), CompareOp::Equal)
    }

    /// The key came to be at `revision`, and has not been deleted since.
    pub fn create_revision(key: impl Into<Key>, revision: Revision) -> Self {
        Self::new(key, CompareTarget::CreateRevision(revision), CompareOp::Equal)
    }

    /// The key exists with this value.
    pub fn value(key: impl Into<Key>, value: impl Into<Value>) -> Self {
        Self::new(key, CompareTarget::Value(value.into()), CompareOp::Equal)
    }

    /// Whether the condition holds for the state of its key.
    pub(crate) fn holds(&self, current: Option<&KeyValue>) -> bool {
        let ordering = match &self.target {
            CompareTarget::CreateRevision(wanted) => {
                current.map_or(Revision::NEVER, |kv| kv.create_revision).cmp(wanted)
            }
            CompareTarget::ModRevision(wanted) => {
                current.map_or(Revision::NEVER, |kv| kv.mod_revision).cmp(wanted)
            }
            CompareTarget::Version(wanted) => current.map_or(0, |kv| kv.version).cmp(wanted),
            CompareTarget::Value(wanted) => match current {
                Some(kv) => kv.value.cmp(wanted),
                None => return false,
            },
        };
        match self.op {
            CompareOp::Equal => ordering.is_eq(),
            CompareOp::NotEqual => ordering.is_ne(),
            CompareOp::Less => ordering.is_lt(),
            CompareOp::Greater => ordering.is_gt(),
        }
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write a key, present or not.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Value,
    },
    /// Delete every key of a range that exists.
    Delete {
        /// The range.
        range: KeyRange,
    },
    /// Read a range as the operations before this one in the transaction leave it.
    Get {
        /// The range.
        range: KeyRange,
    },
}

impl Op {
    /// Write `key`.
    pub fn put(key: impl Into<Key>, value: impl Into<Value>) -> Self {
        Self::Put { key: key.into(), value: value.into() }
    }

    /// Delete `key`.
    pub fn delete(key: impl Into<Key>) -> Self {
        Self::Delete { range: KeyRange::key(key) }
    }

    /// Delete every key of `range`.
    pub fn delete_range(range: KeyRange) -> Self {
        Self::Delete { range }
    }

    /// Read `key`.
    pub fn get(key: impl Into<Key>) -> Self {
        Self::Get { range: KeyRange::key(key) }
    }

    /// Read every key of `range`.
    pub fn get_range(range: KeyRange) -> Self {
        Self::Get { range }
    }
}

/// A transaction: when all `compares` hold, `success` is executed, else `failure`; nothing else
/// happens in between.
///
/// All writes of a transaction share one revision. A key may be written at most once in a branch,
/// by a put or by deletes but not by both; otherwise the whole transaction is refused with
/// [`StoreError::DuplicateKey`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// Conditions, all of which must hold for `success`; with none it is always `success`.
    pub compares: Vec<Compare>,
    /// Executed in order when all conditions hold.
    pub success: Vec<Op>,
    /// Executed in order when a condition does not hold.
    pub failure: Vec<Op>,
}

impl Txn {
    /// A transaction with conditions.
    pub fn when(compares: impl IntoIterator<Item = Compare>) -> Self {
        Self { compares: compares.into_iter().collect(), ..Self::default() }
    }

    /// A transaction without conditions.
    pub fn always(ops: impl IntoIterator<Item = Op>) -> Self {
        Self::default().then(ops)
    }

    /// Adds operations for when all conditions hold.
    #[must_use]
    pub fn then(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.success.extend(ops);
        self
    }

    /// Adds operations for when a condition does not hold.
    #[must_use]
    pub fn or_else(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.failure.extend(ops);
        self
    }

    /// Checks what can be checked without a store: every implementation calls this before it
    /// executes anything.
    pub fn validate(&self) -> Result<(), StoreError> {
        validate_branch(&self.success)?;
        validate_branch(&self.failure)
    }
}

fn validate_branch(ops: &[Op]) -> Result<(), StoreError> {
    let mut puts = BTreeSet::new();
    for op in ops {
        if let Op::Put { key, .. } = op {
            if key.is_empty() {
                return Err(StoreError::EmptyKey);
            }
            if !puts.insert(key) {
                return Err(StoreError::DuplicateKey { key: key.clone() });
            }
        }
    }
    for op in ops {
        if let Op::Delete { range } = op
            && let Some(key) = puts.range::<&Key, _>(&range.start..).next().filter(|key| range.contains(key))
        {
            return Err(StoreError::DuplicateKey { key: Key::clone(key) });
        }
    }
    Ok(())
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    /// The store's revision after the transaction: a new one when it changed something, else the
    /// one it found.
    pub revision: Revision,
    /// Whether all conditions held.
    pub succeeded: bool,
    /// One response for each operation of the branch that was executed, in order.
    pub responses: Vec<OpResponse>,
}

/// What one operation of a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResponse {
    /// The key was written.
    Put,
    /// Number of keys that existed and were deleted.
    Deleted(u64),
    /// The live keys of the range, in order.
    Got(Vec<KeyValue>),
}

impl TxnOutcome {
    /// The keys read by every [`Op::Get`] of the branch that was executed, in the order of the
    /// operations.
    pub fn reads(&self) -> impl Iterator<Item = &KeyValue> {
        self.responses.iter().flat_map(|response| match response {
            OpResponse::Got(kvs) => kvs.as_slice(),
            OpResponse::Put | OpResponse::Deleted(_) => &[],
        })
    }
}
