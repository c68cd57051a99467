//! What a person sees of a file that cannot be opened, and what is not lost by it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mesh_store::{EmbeddedStore, Event, KeyRange, KeyValue, Op, OpenError, Revision, Store, StoreError, Txn};
use redb::{Database, ReadableDatabase, TableDefinition};
use tempfile::TempDir;

fn directory() -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("store");
    (directory, path)
}

/// Writes some keys, closes the store, and returns what it had.
fn written(path: &Path) -> Vec<KeyValue> {
    let store = EmbeddedStore::create(path).expect("a new store");
    runtime().block_on(async {
        for count in 0..40 {
            let put = Op::put(format!("key/{count:02}"), vec![count; 300]);
            store.txn(Txn::always([put, Op::put("latest", vec![count])])).await.expect("a transaction");
        }
    });
    contents(&store)
}

fn contents(store: &EmbeddedStore) -> Vec<KeyValue> {
    runtime().block_on(store.range(KeyRange::all(), None, None)).expect("the latest revision").kvs
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

fn assert_clear(error: &OpenError, path: &Path) {
    let message = error.to_string();
    assert!(message.contains(&path.display().to_string()), "{message} does not name the file");
    assert!(!message.contains('\n'), "{message} has more than one line");
    assert!(error.hint().is_some(), "{message} has no hint");
}

fn refused(path: &Path) -> OpenError {
    let error = EmbeddedStore::open(path).expect_err("the file is no store");
    assert_clear(&error, path);
    error
}

#[test]
fn a_missing_store_is_not_made_by_opening_it() {
    let (_directory, path) = directory();
    assert!(matches!(refused(&path), OpenError::Missing { .. }));
    assert!(!path.exists());
    EmbeddedStore::open_or_create(&path).expect("a new store");
    EmbeddedStore::open(&path).expect("the store that was made");
}

#[test]
fn a_store_is_made_only_where_nothing_is_and_for_its_owner_only() {
    let (directory, path) = directory();
    drop(EmbeddedStore::create(&path).expect("a new store"));
    let mode = fs::metadata(&path).expect("the store").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = EmbeddedStore::create(&path).expect_err("there is a store");
    assert!(matches!(error, OpenError::Exists { .. }));
    assert_clear(&error, &path);
    assert_eq!(fs::read_dir(directory.path()).expect("the directory").count(), 1, "something is left behind");
}

#[test]
fn a_closed_store_opens_with_its_history() {
    let (_directory, path) = directory();
    let before = written(&path);
    let store = EmbeddedStore::open(&path).expect("the store");
    assert_eq!(contents(&store), before);
    let old = runtime().block_on(store.range(KeyRange::all(), Some(Revision(11)), None)).expect("history");
    assert_eq!(old.kvs.len(), 11);
}

#[test]
fn a_compaction_survives_closing_with_the_events_it_keeps() {
    use futures::{FutureExt, StreamExt};
    let (_directory, path) = directory();
    let txn = |op| Txn::always([op, Op::put("other", "1")]);
    let store = EmbeddedStore::create(&path).expect("a new store");
    let (created, deleted) = runtime().block_on(async {
        let created = store.txn(txn(Op::put("a", "1"))).await.expect("a transaction").revision;
        let deleted = store.txn(txn(Op::delete("a"))).await.expect("a transaction").revision;
        store.compact(deleted).await.expect("a revision that exists");
        (created, deleted)
    });
    drop(store);
    let store = EmbeddedStore::open(&path).expect("the store");
    runtime().block_on(async {
        let past = store.range(KeyRange::all(), Some(created), None).await;
        assert!(matches!(past, Err(StoreError::Compacted { compacted, .. }) if compacted == deleted));
        // What is history is there without waiting.
        let batch = store.watch(KeyRange::key("a"), deleted).next().now_or_never().flatten();
        let batch = batch.expect("a batch").expect("history");
        assert!(matches!(batch.events.as_slice(), [Event::Delete { revision, .. }] if *revision == deleted));
    });
}

#[test]
fn a_store_in_use_is_not_opened_twice() {
    let (_directory, path) = directory();
    let store = EmbeddedStore::create(&path).expect("a new store");
    assert!(matches!(refused(&path), OpenError::Locked { .. }));
    drop(store);
    EmbeddedStore::open(&path).expect("nobody uses it any more");
}

#[test]
fn closing_a_store_ends_its_watches_after_what_was_written() {
    use futures::StreamExt;
    let (_directory, path) = directory();
    let store = EmbeddedStore::create(&path).expect("a new store");
    runtime().block_on(async {
        let mut watch = store.watch(KeyRange::all(), Revision::FIRST);
        store.txn(Txn::always([Op::put("a", "1")])).await.expect("a transaction");
        drop(store);
        assert!(watch.next().await.is_some_and(|batch| batch.is_ok()));
        assert!(matches!(watch.next().await, Some(Err(StoreError::Closed))));
        assert!(watch.next().await.is_none());
    });
}

#[test]
fn a_place_that_may_not_be_written_is_named() {
    // Not even root may make files here.
    let path = Path::new("/sys/a-store-of-a-test");
    let error = EmbeddedStore::create(path).expect_err("no files can be made here");
    assert!(matches!(error, OpenError::Permission { .. }), "{error:?}");
    assert_clear(&error, path);
}

#[test]
fn a_truncated_store_is_damaged() {
    let (_directory, path) = directory();
    written(&path);
    let whole = fs::read(&path).expect("the store");
    for length in [0, 1, 100, 511, 4096, 10_000, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        fs::write(&path, &whole[..length]).expect("a truncated store");
        let error = refused(&path);
        assert!(matches!(error, OpenError::Damaged { .. }), "at {length}: {error:?}");
    }
}

#[test]
fn a_file_of_something_else_is_damaged() {
    let (_directory, path) = directory();
    for content in ["", "hello\n", &"no database ".repeat(10_000)] {
        fs::write(&path, content).expect("a file");
        assert!(matches!(refused(&path), OpenError::Damaged { .. }));
        assert_eq!(fs::read_to_string(&path).expect("the file"), content, "the file was changed");
    }
    fs::remove_file(&path).expect("the file");
    drop(Database::create(&path).expect("a database without tables"));
    assert!(matches!(refused(&path), OpenError::Damaged { .. }));
}

#[test]
fn a_store_of_another_format_is_refused_and_left_alone() {
    const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
    let (_directory, path) = directory();
    written(&path);
    for format in [0, 2] {
        let database = Database::create(&path).expect("the store's database");
        let transaction = database.begin_write().expect("a transaction");
        transaction.open_table(META).expect("the table").insert("format", format).expect("an insert");
        transaction.commit().expect("a commit");
        drop(database);
        let error = refused(&path);
        assert!(
            matches!(error, OpenError::OtherFormat { found, expected: 1, .. } if found == format),
            "{error:?}"
        );
    }
    let database = Database::open(&path).expect("the store's database");
    let transaction = database.begin_read().expect("a transaction");
    let meta = transaction.open_table(META).expect("the table");
    assert_eq!(meta.get("revision").expect("a read").expect("the revision").value(), 41);
}

#[test]
fn a_changed_byte_is_noticed_or_does_not_matter() {
    let (_directory, path) = directory();
    let before = written(&path);
    let whole = fs::read(&path).expect("the store");
    let in_use: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] != 0).collect();
    let mut noticed = 0;
    // The first bytes are the header; a prime number of steps goes to different places of the
    // pages.
    let places = in_use.iter().take(40).chain(in_use.iter().step_by(211));
    for &place in places.clone() {
        let mut changed = whole.clone();
        changed[place] ^= 0x55;
        fs::write(&path, &changed).expect("a changed store");
        match EmbeddedStore::open(&path) {
            Ok(store) => assert_eq!(contents(&store), before, "the byte at {place} changed the contents"),
            Err(error) => {
                assert!(matches!(error, OpenError::Damaged { .. }), "the byte at {place}: {error:?}");
                assert_clear(&error, &path);
                noticed += 1;
            }
        }
    }
    assert!(noticed > 20, "of {} changes only {noticed} were noticed", places.count());
}
