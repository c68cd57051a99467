//! Streams of changes

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;

use super::{DEADLINE, Subject, Verdict, delete, next, put, summary};
use crate::{Event, KeyRange, Op, Revision, StoreError, Txn, WatchStream};

/// The revision asked for is the first; then everything, in order, once.
pub async fn replay_the_past_and_go_on_live(store: Subject) -> Verdict {
    put(&store, "a", "before").await?;
    let from = put(&store, "a", "1").await?;
    store.txn(Txn::always([Op::put("b", "2"), Op::put("c", "2")])).await?;
    let mut watch = store.watch(KeyRange::all(), from);
    for (offset, wanted) in [vec!["a=1"], vec!["b=2", "c=2"]].into_iter().enumerate() {
        let batch = next(&mut watch).await?;
        assert_eq!(batch.revision, Revision(from.0 + offset as u64));
        assert_eq!(summary(&batch), wanted);
    }
    let deleted = delete(&store, KeyRange::new("b", "d")).await?;
    let batch = next(&mut watch).await?;
    assert_eq!((batch.revision, summary(&batch)), (deleted, vec!["-b".to_owned(), "-c".to_owned()]));
    let again = put(&store, "b", "3").await?;
    let batch = next(&mut watch).await?;
    let [Event::Put(kv)] = batch.events.as_slice() else { panic!("one put, not {batch:?}") };
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1));
    Ok(())
}

/// A revision that changes keys inside and outside comes with those inside; others do not come at
/// all.
pub async fn see_only_their_range(store: Subject) -> Verdict {
    let from = store.revision().await?.next();
    let mut watch = store.watch(KeyRange::prefix("b/"), from);
    put(&store, "a/1", "1").await?;
    assert!(futures::poll!(watch.next()).is_pending(), "a change outside of the range is sent");
    put(&store, "b", "2").await?;
    let both = store.txn(Txn::always([Op::put("a/1", "3"), Op::put("b/1", "3")])).await?.revision;
    put(&store, "c", "4").await?;
    let batch = next(&mut watch).await?;
    assert_eq!((batch.revision, summary(&batch)), (both, vec!["b/1=3".to_owned()]));
    assert!(futures::poll!(watch.next()).is_pending(), "a change outside of the range is sent");
    // The revision right after one that the watch has nothing of.
    let last = delete(&store, KeyRange::all()).await?;
    let batch = next(&mut watch).await?;
    assert_eq!((batch.revision, summary(&batch)), (last, vec!["-b/1".to_owned()]));
    Ok(())
}

/// What comes before it is not sent.
pub async fn wait_for_a_revision_to_come(store: Subject) -> Verdict {
    let now = store.revision().await?;
    let mut watch = store.watch(KeyRange::all(), Revision(now.0 + 3));
    for value in ["1", "2", "3"] {
        put(&store, "a", value).await?;
    }
    let batch = next(&mut watch).await?;
    assert_eq!((batch.revision, summary(&batch)), (Revision(now.0 + 3), vec!["a=3".to_owned()]));
    Ok(())
}

/// What one revision wrote, as [`summary`] has it.
type Expected = BTreeMap<Revision, Vec<String>>;

const WRITERS: usize = 4;
const WRITES: usize = 40;

/// Writers that race with each other and with the start of watches, each with two keys of its own
/// and one of all.
async fn race(store: &Subject) -> Result<Expected, StoreError> {
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut done = Expected::new();
                for count in 0..WRITES {
                    let value = format!("{writer}.{count}");
                    let keys = [format!("own/{writer}/a"), format!("own/{writer}/b"), "shared".to_owned()];
                    let ops = keys.clone().map(|key| Op::put(key, value.as_str()));
                    let outcome = store.txn(Txn::always(ops)).await?;
                    let events = keys.iter().map(|key| format!("{key}={value}")).collect();
                    done.insert(outcome.revision, events);
                }
                Ok::<_, StoreError>(done)
            })
        })
        .collect();
    let mut all = Expected::new();
    for writer in writers {
        all.extend(writer.await.expect("a writer does not panic")?);
    }
    assert_eq!(all.len(), WRITERS * WRITES, "two transactions got one revision");
    Ok(all)
}

async fn collect(mut watch: WatchStream, count: usize) -> Result<Vec<(Revision, Vec<String>)>, StoreError> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = next(&mut watch).await?;
        seen.push((batch.revision, summary(&batch)));
    }
    Ok(seen)
}

/// Watches that start before, during and after the writes see all of them from their first revision
/// on.
pub async fn have_no_gap_while_writers_race(store: Subject) -> Verdict {
    let first = store.revision().await?.next();
    let total = WRITERS * WRITES;
    let early = tokio::spawn(collect(store.watch(KeyRange::all(), first), total));
    let narrow = tokio::spawn(collect(store.watch(KeyRange::prefix("own/1/"), first), WRITES));
    let racing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { race(&store).await }
    });
    let mut during = Vec::new();
    while !racing.is_finished() {
        // Half from the beginning, half from now on.
        let now = store.revision().await?;
        let skipped =
            if during.len() % 2 == 0 { 0 } else { usize::try_from(now.next().0 - first.0).unwrap_or(total) };
        let from = Revision(first.0 + skipped as u64);
        let watch = store.watch(KeyRange::all(), from);
        during.push((skipped, tokio::spawn(collect(watch, total - skipped))));
        // The next one starts after more was written.
        let wait = async {
            while !racing.is_finished() && store.revision().await? < Revision(now.0 + 16) {
                tokio::task::yield_now().await;
            }
            Ok::<_, StoreError>(())
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("writers go on")?;
    }
    let expected: Vec<_> = racing.await.expect("the race does not panic")?.into_iter().collect();
    assert_eq!(early.await.expect("a watch does not panic")?, expected);
    let own = |(revision, events): &(Revision, Vec<String>)| {
        let own: Vec<_> = events.iter().filter(|event| event.starts_with("own/1/")).cloned().collect();
        (!own.is_empty()).then_some((*revision, own))
    };
    let of_one_writer: Vec<_> = expected.iter().filter_map(own).collect();
    assert_eq!(narrow.await.expect("a watch does not panic")?, of_one_writer);
    for (skipped, watch) in during {
        assert_eq!(watch.await.expect("a watch does not panic")?, expected[skipped..]);
    }
    assert_eq!(collect(store.watch(KeyRange::all(), first), total).await?, expected);
    Ok(())
}

/// A watch that is not read while thousands of events pile up loses none, and the writes do not
/// wait for it.
pub async fn wait_for_slow_consumers_without_holding_up_writers(store: Subject) -> Verdict {
    const KEYS: usize = 100;
    let first = store.revision().await?.next();
    let mut watch = store.watch(KeyRange::all(), first);
    for count in 0..30 {
        let ops = (0..KEYS).map(|key| Op::put(format!("k/{key:03}"), format!("{count}")));
        let write = store.txn(Txn::always(ops));
        tokio::time::timeout(DEADLINE, write).await.expect("a write does not wait for a watch")?;
    }
    for count in 0..30 {
        let batch = next(&mut watch).await?;
        assert_eq!(batch.revision, Revision(first.0 + count));
        assert_eq!(batch.events.len(), KEYS);
    }
    Ok(())
}
