//! The pure core that the stores share: every key's history, and what a transaction does to it
//!
//! Transactions are applied at the head; readers see what is committed. In between, a store makes
//! the pending records durable, or discards the whole core when that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::{
    Event, Key, KeyRange, KeyValue, Op, OpResponse, RangeOutcome, Revision, StoreError, Txn, TxnOutcome,
    Value, WatchBatch,
};

/// Number of revisions that one look for a watch's next batch goes through, to keep writers' wait
/// for the lock short.
const WATCH_SCAN: usize = 1024;

/// One write of a key: a revision writes a key at most once, so the two identify it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) mod_revision: Revision,
    pub(crate) create_revision: Revision,
    pub(crate) version: u64,
    /// `None` is a deletion.
    pub(crate) value: Option<Value>,
}

impl Record {
    fn live(&self, key: &Key) -> Option<KeyValue> {
        Some(KeyValue {
            key: key.clone(),
            value: self.value.clone()?,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
        })
    }
}

/// What a look for a watch's next batch found.
pub(crate) struct WatchStep {
    /// The first change of the range, if there was one.
    pub(crate) batch: Option<WatchBatch>,
    /// The first revision that was not looked at.
    pub(crate) next: Revision,
}

/// The state of a store with its history from the compacted revision on.
#[derive(Debug)]
pub(crate) struct Mvcc {
    /// The records of each key, oldest first; never empty.
    histories: BTreeMap<Key, Vec<Record>>,
    /// The keys that each revision from `compacted` on wrote.
    changes: BTreeMap<Revision, BTreeSet<Key>>,
    compacted: Revision,
    committed: Revision,
    head: Revision,
}

impl Default for Mvcc {
    fn default() -> Self {
        Self::restored(Revision::FIRST, Revision::FIRST)
    }
}

impl Mvcc {
    /// A store without keys at `head`; [`load`](Self::load) adds its records.
    pub(crate) fn restored(compacted: Revision, head: Revision) -> Self {
        Self { histories: BTreeMap::new(), changes: BTreeMap::new(), compacted, committed: head, head }
    }

    /// Adds a record that was made durable before; in the order of their revisions.
    pub(crate) fn load(&mut self, key: Key, record: Record) {
        if record.mod_revision >= self.compacted {
            self.changes.entry(record.mod_revision).or_default().insert(key.clone());
        }
        self.histories.entry(key).or_default().push(record);
    }

    /// The latest revision that readers see.
    pub(crate) fn committed(&self) -> Revision {
        self.committed
    }

    /// The latest revision, committed or not.
    pub(crate) fn head(&self) -> Revision {
        self.head
    }

    /// Reads committed state; see [`Store::range`](crate::Store::range).
    pub(crate) fn range(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        limit: Option<usize>,
    ) -> Result<RangeOutcome, StoreError> {
        let revision = at.unwrap_or(self.committed);
        if revision > self.committed {
            return Err(StoreError::FutureRevision { requested: revision, current: self.committed });
        }
        if revision < self.compacted {
            return Err(StoreError::Compacted { requested: revision, compacted: self.compacted });
        }
        let mut live = self.live_in(range, revision);
        let kvs = live.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
        let more = live.next().is_some();
        Ok(RangeOutcome { revision, kvs, more })
    }

    /// Looks for the first committed change of `range` from revision `from` on.
    pub(crate) fn next_change(&self, range: &KeyRange, from: Revision) -> Result<WatchStep, StoreError> {
        if from < self.compacted {
            return Err(StoreError::Compacted { requested: from, compacted: self.compacted });
        }
        if from > self.committed {
            return Ok(WatchStep { batch: None, next: from });
        }
        let mut last_looked_at = self.committed;
        for (scanned, (&revision, keys)) in self.changes.range(from..=self.committed).enumerate() {
            let events: Vec<Event> = keys_in(keys, range).map(|key| self.event(key, revision)).collect();
            if !events.is_empty() {
                return Ok(WatchStep { batch: Some(WatchBatch { revision, events }), next: revision.next() });
            }
            if scanned + 1 == WATCH_SCAN {
                last_looked_at = revision;
                break;
            }
        }
        Ok(WatchStep { batch: None, next: last_looked_at.next() })
    }

    /// Executes a transaction on top of the head. It stays pending until [`commit`](Self::commit).
    pub(crate) fn apply(&mut self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        txn.validate()?;
        let succeeded =
            txn.compares.iter().all(|compare| compare.holds(self.live_at(&compare.key, self.head).as_ref()));
        let revision = self.head.next();
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let responses = branch.iter().map(|op| self.execute(op, revision)).collect();
        if self.changes.contains_key(&revision) {
            self.head = revision;
        }
        Ok(TxnOutcome { revision: self.head, succeeded, responses })
    }

    /// The records that were applied since the last commit.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (&Key, &Record)> {
        self.changes.range(self.committed.next()..).flat_map(move |(&revision, keys)| {
            keys.iter().filter_map(move |key| self.record_at(key, revision))
        })
    }

    /// Shows readers what was applied.
    pub(crate) fn commit(&mut self) {
        self.committed = self.head;
    }

    /// Checks a compaction; `false` when it was done before.
    pub(crate) fn must_compact(&self, up_to: Revision) -> Result<bool, StoreError> {
        if up_to > self.committed {
            return Err(StoreError::FutureRevision { requested: up_to, current: self.committed });
        }
        Ok(up_to > self.compacted)
    }

    /// The records that a compaction removes.
    pub(crate) fn superseded(&self, up_to: Revision) -> Vec<(Revision, Key)> {
        self.histories
            .iter()
            .flat_map(|(key, history)| {
                history[..superseded_count(history, up_to)]
                    .iter()
                    .map(|record| (record.mod_revision, key.clone()))
            })
            .collect()
    }

    /// Removes the history before `up_to`, a committed revision.
    pub(crate) fn compact(&mut self, up_to: Revision) {
        self.histories.retain(|_, history| {
            history.drain(..superseded_count(history, up_to));
            !history.is_empty()
        });
        self.changes = self.changes.split_off(&up_to);
        self.compacted = up_to;
    }

    fn execute(&mut self, op: &Op, revision: Revision) -> OpResponse {
        match op {
            Op::Put { key, value } => {
                let (create_revision, version) = match self.live_at(key, revision) {
                    Some(current) => (current.create_revision, current.version + 1),
                    None => (revision, 1),
                };
                let value = Some(value.clone());
                self.write(key.clone(), Record { mod_revision: revision, create_revision, version, value });
                OpResponse::Put
            }
            Op::Delete { range } => {
                let doomed: Vec<Key> = self.live_in(range, revision).map(|kv| kv.key).collect();
                let count = doomed.len() as u64;
                for key in doomed {
                    let create_revision = Revision::NEVER;
                    self.write(
                        key,
                        Record { mod_revision: revision, create_revision, version: 0, value: None },
                    );
                }
                OpResponse::Deleted(count)
            }
            Op::Get { range } => OpResponse::Got(self.live_in(range, revision).collect()),
        }
    }

    fn write(&mut self, key: Key, record: Record) {
        self.changes.entry(record.mod_revision).or_default().insert(key.clone());
        self.histories.entry(key).or_default().push(record);
    }

    fn live_at(&self, key: &Key, at: Revision) -> Option<KeyValue> {
        newest(self.histories.get(key)?, at)?.live(key)
    }

    fn live_in(&self, range: &KeyRange, at: Revision) -> impl Iterator<Item = KeyValue> {
        // BTreeMap does not take bounds in the wrong order, which an empty range may have.
        let end = range.end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(end.max(&range.start)));
        self.histories
            .range::<Key, _>((Bound::Included(&range.start), end))
            .filter_map(move |(key, history)| newest(history, at)?.live(key))
    }

    fn record_at(&self, key: &Key, revision: Revision) -> Option<(&Key, &Record)> {
        let (key, history) = self.histories.get_key_value(key)?;
        Some((key, newest(history, revision).filter(|record| record.mod_revision == revision)?))
    }

    fn event(&self, key: &Key, revision: Revision) -> Event {
        match self.live_at(key, revision) {
            Some(kv) => Event::Put(kv),
            None => Event::Delete { key: key.clone(), revision },
        }
    }
}

fn keys_in<'a>(keys: &'a BTreeSet<Key>, range: &'a KeyRange) -> impl Iterator<Item = &'a Key> {
    keys.range::<Key, _>(&range.start..).take_while(|key| range.contains(key))
}

/// The newest record at a revision.
fn newest(history: &[Record], at: Revision) -> Option<&Record> {
    history[..history.partition_point(|record| record.mod_revision <= at)].last()
}

/// Number of oldest records of a key that no read or watch from `up_to` on needs.
fn superseded_count(history: &[Record], up_to: Revision) -> usize {
    let known = history.partition_point(|record| record.mod_revision <= up_to);
    match history[..known].last() {
        None => 0,
        // A deletion before `up_to` is as good as no record; one at `up_to` is still an event of
        // that revision.
        Some(last) if last.value.is_none() && last.mod_revision < up_to => known,
        Some(_) => known - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(mvcc: &mut Mvcc, key: &str, value: &str) -> Revision {
        mvcc.apply(&Txn::always([Op::put(key, value)])).expect("a valid transaction").revision
    }

    fn values(mvcc: &Mvcc) -> Vec<String> {
        let outcome = mvcc.range(&KeyRange::all(), None, None).expect("the latest revision");
        outcome.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).collect()
    }

    #[test]
    fn readers_do_not_see_what_is_pending() {
        let mut mvcc = Mvcc::default();
        put(&mut mvcc, "a", "1");
        assert_eq!(values(&mvcc), Vec::<String>::new());
        assert!(mvcc.next_change(&KeyRange::all(), Revision::FIRST).expect("not compacted").batch.is_none());
        assert_eq!(mvcc.pending().count(), 1);
        mvcc.commit();
        assert_eq!(values(&mvcc), ["1"]);
        assert_eq!(mvcc.pending().count(), 0);
    }

    #[test]
    fn a_compaction_removes_what_it_says_and_no_more() {
        let mut mvcc = Mvcc::default();
        put(&mut mvcc, "a", "1");
        put(&mut mvcc, "b", "2");
        let up_to = put(&mut mvcc, "a", "3");
        put(&mut mvcc, "a", "4");
        mvcc.commit();
        assert_eq!(mvcc.superseded(up_to), [(Revision(2), Key::from("a"))]);
        mvcc.compact(up_to);
        assert_eq!(mvcc.superseded(up_to), []);
        assert_eq!(values(&mvcc), ["4", "2"]);
    }
}
