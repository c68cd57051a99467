//! Forgetting the past

use super::{Subject, Verdict, assert_error, contents, delete, next, put, summary};
use crate::{KeyRange, Revision, StoreError};

/// Five revisions, of which the fourth deletes: `a=1`, `b=2`, `a=3`, `-b`, `c=5`.
async fn history(store: &Subject) -> Result<[Revision; 5], StoreError> {
    Ok([
        put(store, "a", "1").await?,
        put(store, "b", "2").await?,
        put(store, "a", "3").await?,
        delete(store, KeyRange::key("b")).await?,
        put(store, "c", "5").await?,
    ])
}

/// What is readable after a compaction reads as before it.
pub async fn keep_the_present_and_the_compacted_revision(store: Subject) -> Verdict {
    let [_, _, three, four, five] = history(&store).await?;
    store.compact(three).await?;
    for (revision, wanted) in [(three, vec!["a=3", "b=2"]), (four, vec!["a=3"]), (five, vec!["a=3", "c=5"])] {
        assert_eq!(contents(&store, KeyRange::all(), Some(revision)).await?, wanted, "revision {revision}");
    }
    store.compact(five).await?;
    assert_eq!(contents(&store, KeyRange::all(), None).await?, ["a=3", "c=5"]);
    assert_eq!(store.revision().await?, five);
    assert_eq!(put(&store, "b", "6").await?, five.next());
    Ok(())
}

/// With the revision from which on there is history.
pub async fn refuse_reads_of_what_is_gone(store: Subject) -> Verdict {
    let [_, two, three, ..] = history(&store).await?;
    store.compact(three).await?;
    match store.range(KeyRange::all(), Some(two), None).await {
        Err(StoreError::Compacted { requested, compacted }) => {
            assert_eq!((requested, compacted), (two, three));
        }
        other => panic!("wanted Compacted, got {other:?}"),
    }
    Ok(())
}

/// Rather than leaving out what is gone.
pub async fn refuse_watches_of_what_is_gone(store: Subject) -> Verdict {
    let [one, two, three, ..] = history(&store).await?;
    store.compact(three).await?;
    for from in [one, two] {
        let mut watch = store.watch(KeyRange::all(), from);
        assert_error!(next(&mut watch).await, StoreError::Compacted { .. });
        assert!(futures::StreamExt::next(&mut watch).await.is_none(), "the error ends the watch");
    }
    Ok(())
}

/// A watch reports compaction if it had not read the compacted revisions; otherwise it continues.
pub async fn end_watches_that_they_overtake(store: Subject) -> Verdict {
    let first = store.revision().await?.next();
    let mut behind = store.watch(KeyRange::all(), first);
    let mut ahead = store.watch(KeyRange::all(), first);
    let [_, _, _, _, five] = history(&store).await?;
    for _ in 0..5 {
        next(&mut ahead).await?;
    }
    store.compact(five).await?;
    // An implementation may have read ahead, but may not leave out anything before it gives up.
    let mut expected = first;
    let error = loop {
        match next(&mut behind).await {
            Ok(batch) => assert_eq!(batch.revision, expected),
            error => break error,
        }
        expected = expected.next();
        if expected > five {
            return Ok(());
        }
    };
    assert_error!(error, StoreError::Compacted { .. });
    put(&store, "d", "6").await?;
    assert_eq!(summary(&next(&mut ahead).await?), ["d=6"]);
    Ok(())
}

/// Also when it is a deletion.
pub async fn keep_the_events_of_the_compacted_revision(store: Subject) -> Verdict {
    let [_, _, _, four, five] = history(&store).await?;
    store.compact(four).await?;
    let mut watch = store.watch(KeyRange::all(), four);
    let batch = next(&mut watch).await?;
    assert_eq!((batch.revision, summary(&batch)), (four, vec!["-b".to_owned()]));
    let batch = next(&mut watch).await?;
    assert_eq!((batch.revision, summary(&batch)), (five, vec!["c=5".to_owned()]));
    Ok(())
}

/// A compaction that was done, also by a later one, is done.
pub async fn may_be_repeated_but_not_be_in_the_future(store: Subject) -> Verdict {
    let [_, two, three, _, five] = history(&store).await?;
    assert_error!(store.compact(five.next()).await, StoreError::FutureRevision { .. });
    store.compact(three).await?;
    store.compact(three).await?;
    store.compact(two).await?;
    assert_eq!(contents(&store, KeyRange::all(), Some(three)).await?, ["a=3", "b=2"]);
    Ok(())
}
