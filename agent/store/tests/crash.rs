//! A process that is killed while it writes loses nothing that it acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use mesh_store::{EmbeddedStore, Key, KeyRange, Op, Store, Txn};
use tempfile::TempDir;

/// Where the killed process has its store: `PATH`, and the number of the round.
const STORE: &str = "CRASH_TEST_STORE";
const ROUND: &str = "CRASH_TEST_ROUND";
const WRITERS: usize = 4;

#[test]
fn kill_9_while_writing_loses_nothing_acknowledged() {
    if let (Some(path), Ok(round)) = (env::var_os(STORE), env::var(ROUND)) {
        write_until_killed(Path::new(&path), &round);
    }
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("store");
    let mut acknowledged = BTreeMap::new();
    for round in 0..12 {
        // The first rounds die while they create or open the store.
        let acknowledgements = if round < 3 { 0 } else { random() % 150 };
        let report = run_and_kill(&path, round, acknowledgements);
        println!("round {round}: killed after {acknowledgements}, had acknowledged {}", report.len());
        acknowledged.extend(report);
        assert_all_there(&path, &acknowledged);
    }
    assert!(!acknowledged.is_empty());
}

/// The process that is killed. Prints a line for each transaction that was acknowledged: key and
/// revision.
fn write_until_killed(path: &Path, round: &str) -> ! {
    say("\nstarted");
    let store = Arc::new(EmbeddedStore::open_or_create(path).expect("a store"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    runtime.block_on(async {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(Arc::clone(&store), format!("{round}/{writer}"), writer)))
            .collect();
        for writer in writers {
            writer.await.expect("a writer writes until it is killed");
        }
    });
    unreachable!("the writers do not end")
}

async fn write(store: Arc<EmbeddedStore>, prefix: String, writer: usize) {
    for count in 0_u64.. {
        let key = format!("written/{prefix}/{count:06}");
        let latest = format!("latest/{prefix}");
        let ops = [
            Op::put(key.as_str(), vec![b'v'; 500]),
            Op::put(latest, key.as_str()),
            Op::delete(format!("doomed/{prefix}/{}", count.wrapping_sub(1))),
            Op::put(format!("doomed/{prefix}/{count}"), "1"),
        ];
        let outcome = store.txn(Txn::always(ops)).await.expect("a transaction");
        say(&format!("{key} {}", outcome.revision));
        if writer == 0 && count % 20 == 19 {
            store.compact(outcome.revision).await.expect("a compaction");
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("the parent reads");
}

/// A child process that is killed when the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // `kill` is SIGKILL; an error says that the child is dead already.
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.0.wait();
    }
}

/// Kills a child once it has acknowledged this many transactions; all that it acknowledged, with
/// their revisions.
fn run_and_kill(path: &Path, round: u32, acknowledgements: u64) -> BTreeMap<String, u64> {
    let mut child = Command::new(env::current_exe().expect("the test's own path"))
        .args(["--exact", "kill_9_while_writing_loses_nothing_acknowledged", "--nocapture"])
        .env(STORE, path)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .map(Killed)
        .expect("a child");
    let mut lines = BufReader::new(child.0.stdout.take().expect("a pipe"));
    let mut acknowledged = BTreeMap::new();
    let mut killed = false;
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).expect("the child's output");
        // The last line may have been cut short by the kill.
        let Some(line) = line.strip_suffix('\n') else { break };
        if let Some((key, revision)) = line.strip_prefix("written/").and_then(|rest| rest.split_once(' ')) {
            acknowledged.insert(format!("written/{key}"), revision.parse().expect("a revision"));
        }
        let alive = line == "started" || !acknowledged.is_empty();
        if alive && !killed && acknowledged.len() as u64 >= acknowledgements {
            child.0.kill().expect("the child runs");
            killed = true;
        }
    }
    assert!(killed, "the child ended by itself");
    drop(child);
    acknowledged
}

fn assert_all_there(path: &Path, acknowledged: &BTreeMap<String, u64>) {
    let store = EmbeddedStore::open_or_create(path).expect("the store is whole");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let everything = store.range(KeyRange::all(), None, None).await.expect("the latest revision");
        let mut revisions = BTreeSet::new();
        for (key, &revision) in acknowledged {
            let kv = store.get(Key::from(key.as_str())).await.expect("a read");
            let kv = kv.unwrap_or_else(|| panic!("{key} of revision {revision} is lost"));
            assert_eq!((kv.mod_revision.0, kv.value.len()), (revision, 500), "{key}");
            assert!(revisions.insert(revision), "revision {revision} was given twice");
            assert!(revision <= everything.revision.0);
        }
        // Transactions are there whole or not at all: the last write of each writer, and one doomed
        // key, not two.
        let latest = store.range(KeyRange::prefix("latest/"), None, None).await.expect("a read").kvs;
        for latest in &latest {
            let written = store.get(Key::from(latest.value.as_bytes())).await.expect("a read");
            assert_eq!(written.expect("what is latest was written").mod_revision, latest.mod_revision);
        }
        let doomed = store.range(KeyRange::prefix("doomed/"), None, None).await.expect("a read").kvs;
        assert_eq!(doomed.len(), latest.len());
    });
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Set in the process that has a small file system of its own: where that is.
const SMALL_DISK: &str = "CRASH_TEST_SMALL_DISK";

#[test]
fn a_full_disk_refuses_writes_until_there_is_space_again() {
    if let Some(directory) = env::var_os(SMALL_DISK) {
        return fill_the_disk(&PathBuf::from(directory));
    }
    let directory = TempDir::new().expect("a temporary directory");
    // Mounted in a namespace of the child's own, the file system goes away with it.
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-ec", "mount -t tmpfs -o size=8m tmpfs \"$1\"; shift; exec \"$@\"", "sh"])
        .args([directory.path().as_os_str(), env::current_exe().expect("the test's own path").as_os_str()])
        .args(
            ["--exact", "a_full_disk_refuses_writes_until_there_is_space_again", "--nocapture"]
                .map(OsStr::new),
        )
        .env(SMALL_DISK, directory.path())
        .status()
        .expect("unshare of util-linux");
    assert!(status.success(), "run as root, and see the output above");
}

fn fill_the_disk(directory: &Path) {
    let ballast = directory.join("ballast");
    std::fs::write(&ballast, vec![1; 4 << 20]).expect("space for the ballast");
    let store = EmbeddedStore::create(directory.join("store")).expect("space for a store");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let put = |count: usize| store.txn(Txn::always([Op::put(format!("{count:04}"), vec![2; 100_000])]));
        let mut written = 0;
        let error = loop {
            match put(written).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 100, "more was written than there is space for");
        };
        println!("{written} written, then: {error}");
        assert!(error.hint().is_some());
        assert!(!error.to_string().contains('\n'));
        let readable = store.range(KeyRange::all(), None, None).await.expect("reads go on").kvs;
        assert_eq!(readable.len(), written);
        assert!(put(written).await.is_err(), "there is still no space");

        std::fs::remove_file(&ballast).expect("the ballast");
        let outcome = put(written).await.expect("there is space again");
        let readable = store.range(KeyRange::all(), None, None).await.expect("a read");
        assert_eq!((readable.kvs.len(), readable.revision), (written + 1, outcome.revision));
    });
}
