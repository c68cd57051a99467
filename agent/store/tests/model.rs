//! Both stores give the same answers as a list of complete states.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use mesh_store::{
    Compare, EmbeddedStore, Event, Key, KeyRange, KeyValue, MemoryStore, Op, Revision, Store, Txn, Value,
};
use proptest::prelude::*;
use tempfile::TempDir;

/// One step of a test. Keys are small numbers, so that steps meet.
#[derive(Clone, Debug)]
enum Step {
    /// Puts and deletes of ranges when a key was last written at the revision that it has now, or
    /// at the one before.
    Txn { puts: BTreeMap<u8, u8>, deletes: Vec<(u8, u8)>, compare: Option<(u8, bool)> },
    /// To this part of the history that there is, in 255ths.
    Compact(u8),
    /// Closes and opens a store that can be.
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let puts = prop::collection::btree_map(0..12_u8, any::<u8>(), 0..4);
    let deletes = prop::collection::vec((0..12_u8, 0..12_u8), 0..2);
    let compare = prop::option::of((0..12_u8, any::<bool>()));
    let txn =
        (puts, deletes, compare).prop_map(|(puts, deletes, compare)| Step::Txn { puts, deletes, compare });
    let step = prop_oneof![12 => txn, 1 => any::<u8>().prop_map(Step::Compact), 1 => Just(Step::Compact(255)), 1 => Just(Step::Reopen)];
    prop::collection::vec(step, 1..40)
}

type State = BTreeMap<Key, KeyValue>;

/// Every state from revision 1 on.
struct Model {
    states: Vec<State>,
    compacted: Revision,
}

fn key(number: u8) -> Key {
    Key::from(format!("k/{number:02}"))
}

impl Model {
    fn new() -> Self {
        Self { states: vec![State::new()], compacted: Revision::FIRST }
    }

    fn revision(&self) -> Revision {
        Revision(self.states.len() as u64)
    }

    fn at(&self, revision: Revision) -> &State {
        &self.states[usize::try_from(revision.0).expect("a small number") - 1]
    }

    fn latest(&self) -> &State {
        self.at(self.revision())
    }

    /// Executes a transaction whose comparisons hold.
    fn write(&mut self, puts: &BTreeMap<u8, u8>, deletes: &[KeyRange]) {
        let revision = self.revision().next();
        let mut state = self.latest().clone();
        let before = state.len();
        state.retain(|key, _| !deletes.iter().any(|range| range.contains(key)));
        if state.len() == before && puts.is_empty() {
            return;
        }
        for (&number, &value) in puts {
            let old = state.get(&key(number));
            let new = KeyValue {
                key: key(number),
                value: Value::from(vec![value]),
                create_revision: old.map_or(revision, |kv| kv.create_revision),
                mod_revision: revision,
                version: old.map_or(1, |kv| kv.version + 1),
            };
            state.insert(new.key.clone(), new);
        }
        self.states.push(state);
    }

    /// The difference of a state and the one before, in order of keys.
    fn events(&self, revision: Revision) -> Vec<Event> {
        let state = self.at(revision);
        let put = state.values().filter(|kv| kv.mod_revision == revision).cloned().map(Event::Put);
        let gone = self.at(Revision(revision.0 - 1)).keys().filter(|key| !state.contains_key(*key));
        let mut events: Vec<_> =
            put.chain(gone.map(|key| Event::Delete { key: key.clone(), revision })).collect();
        events.sort_by(|a, b| a.key().cmp(b.key()));
        events
    }
}

/// A store that may be one to reopen.
struct Subject {
    store: Option<Arc<dyn Store>>,
    directory: Option<TempDir>,
}

impl Subject {
    fn memory() -> Self {
        Self { store: Some(Arc::new(MemoryStore::new())), directory: None }
    }

    fn embedded() -> Self {
        let mut subject =
            Self { store: None, directory: Some(TempDir::new().expect("a temporary directory")) };
        subject.reopen();
        subject
    }

    fn reopen(&mut self) {
        if let Some(directory) = &self.directory {
            self.store = None;
            let store = EmbeddedStore::open_or_create(directory.path().join("store")).expect("a store");
            self.store = Some(Arc::new(store));
        }
    }

    fn store(&self) -> &dyn Store {
        self.store.as_deref().expect("an open store")
    }
}

async fn execute(subject: &mut Subject, model: &mut Model, step: Step) {
    match step {
        Step::Reopen => subject.reopen(),
        Step::Compact(part) => {
            let span = model.revision().0 - model.compacted.0;
            let up_to = Revision(model.compacted.0 + span * u64::from(part) / 255);
            subject.store().compact(up_to).await.expect("a revision that exists");
            model.compacted = up_to;
        }
        Step::Txn { puts, deletes, compare } => {
            // A put and a delete of one key are refused: such deletes are left out.
            let deletes: Vec<_> = deletes
                .into_iter()
                .map(|(from, to)| KeyRange::new(key(from), key(to)))
                .filter(|range| !puts.keys().any(|&number| range.contains(&key(number))))
                .collect();
            let holds = compare.is_none_or(|(_, up_to_date)| up_to_date);
            let compare = compare.map(|(number, up_to_date)| {
                let current = model.latest().get(&key(number)).map_or(Revision::NEVER, |kv| kv.mod_revision);
                Compare::mod_revision(key(number), if up_to_date { current } else { current.next() })
            });
            let put_ops = puts.iter().map(|(&number, &value)| Op::put(key(number), vec![value]));
            let delete_ops = deletes.iter().cloned().map(Op::delete_range);
            let txn = Txn::when(compare).then(put_ops.chain(delete_ops));
            let outcome = subject.store().txn(txn).await.expect("a valid transaction");
            assert_eq!(outcome.succeeded, holds);
            if holds {
                model.write(&puts, &deletes);
            }
            assert_eq!(outcome.revision, model.revision());
        }
    }
}

async fn assert_same_latest(subject: &Subject, model: &Model) {
    let outcome = subject.store().range(KeyRange::all(), None, None).await.expect("the latest revision");
    assert_eq!(outcome.revision, model.revision());
    assert_eq!(outcome.kvs, model.latest().values().cloned().collect::<Vec<_>>());
}

async fn assert_same_history(subject: &Subject, model: &Model) {
    for revision in (model.compacted.0..=model.revision().0).map(Revision) {
        let outcome = subject.store().range(KeyRange::all(), Some(revision), None).await.expect("history");
        assert_eq!(outcome.kvs, model.at(revision).values().cloned().collect::<Vec<_>>());
    }
    // Nothing was written at the first revision.
    let first = model.compacted.max(Revision(2));
    let mut watch = subject.store().watch(KeyRange::all(), first);
    for revision in (first.0..=model.revision().0).map(Revision) {
        // What is history is there without waiting.
        let mut batch = watch.next().now_or_never().flatten().expect("a batch").expect("history");
        batch.events.sort_by(|a, b| a.key().cmp(b.key()));
        assert_eq!(batch.revision, revision);
        assert_eq!(batch.events, model.events(revision));
    }
}

fn behaves_as_the_model(mut subject: Subject, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut model = Model::new();
        for step in steps {
            execute(&mut subject, &mut model, step).await;
            assert_same_latest(&subject, &model).await;
        }
        subject.reopen();
        assert_same_latest(&subject, &model).await;
        assert_same_history(&subject, &model).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn the_memory_store_behaves_as_a_list_of_states(steps in steps()) {
        behaves_as_the_model(Subject::memory(), steps);
    }
}

proptest! {
    // Fewer, as each of these syncs a file some dozens of times.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn the_embedded_store_behaves_as_a_list_of_states(steps in steps()) {
        behaves_as_the_model(Subject::embedded(), steps);
    }
}
