//! Reads of many keys, now and in the past

use super::{Subject, Verdict, assert_error, contents, delete, put};
use crate::{Key, KeyRange, Op, OpResponse, StoreError, Txn};

/// Keys are ordered bytewise, independent of the order of the writes.
pub async fn are_in_order_of_keys(store: Subject) -> Verdict {
    let keys: [&[u8]; 6] = [b"b", b"a/2", b"\xff", b"a", b"a/10", b"\x01"];
    for key in keys {
        store.txn(Txn::always([Op::put(key, "1")])).await?;
    }
    let read = store.range(KeyRange::all(), None, None).await?;
    assert!(!read.more);
    let read: Vec<_> = read.kvs.iter().map(|kv| kv.key.to_vec()).collect();
    let mut wanted = keys.map(<[u8]>::to_vec);
    wanted.sort();
    assert_eq!(read, wanted);
    Ok(())
}

/// The start is in a range, the end is not, and an end before the start leaves nothing.
pub async fn have_no_key_outside(store: Subject) -> Verdict {
    for key in ["a", "b", "b/1", "b/2", "c"] {
        put(&store, key, "1").await?;
    }
    let cases: [(KeyRange, &[&str]); 7] = [
        (KeyRange::new("b", "c"), &["b=1", "b/1=1", "b/2=1"]),
        (KeyRange::prefix("b/"), &["b/1=1", "b/2=1"]),
        (KeyRange::key("b"), &["b=1"]),
        (KeyRange::from_key("b/2"), &["b/2=1", "c=1"]),
        (KeyRange::key("bb"), &[]),
        (KeyRange::new("b", "b"), &[]),
        (KeyRange::new("c", "a"), &[]),
    ];
    for (range, wanted) in cases {
        assert_eq!(contents(&store, range.clone(), None).await?, wanted, "{range:?}");
    }
    Ok(())
}

/// `more` says that there is a next page, also when the last page is full.
pub async fn are_paged_by_a_limit(store: Subject) -> Verdict {
    for number in 0..6 {
        put(&store, &format!("k/{number}"), "1").await?;
    }
    let mut range = KeyRange::prefix("k/");
    let first = store.range(range.clone(), None, Some(2)).await?;
    // Later pages fit the first one when they are read at its revision.
    put(&store, "k/55", "1").await?;
    let mut pages = vec![first.clone()];
    while pages.last().is_some_and(|page| page.more) {
        let last = pages.iter().flat_map(|page| &page.kvs).next_back().map(|kv| kv.key.successor());
        range = range.starting_at(last.expect("a page that has more has keys"));
        pages.push(store.range(range.clone(), Some(first.revision), Some(2)).await?);
    }
    let sizes: Vec<_> = pages.iter().map(|page| page.kvs.len()).collect();
    assert_eq!(sizes, [2, 2, 2]);
    assert!(pages.iter().flat_map(|page| &page.kvs).is_sorted_by(|a, b| a.key < b.key));
    Ok(())
}

/// Every revision is read as it was, deleted keys included.
pub async fn read_the_past(store: Subject) -> Verdict {
    let empty = store.revision().await?;
    let one = put(&store, "a", "1").await?;
    let two = put(&store, "b", "2").await?;
    let three = put(&store, "a", "3").await?;
    let four = delete(&store, KeyRange::all()).await?;
    let five = put(&store, "a", "5").await?;
    let cases: [(_, &[&str]); 6] = [
        (empty, &[]),
        (one, &["a=1"]),
        (two, &["a=1", "b=2"]),
        (three, &["a=3", "b=2"]),
        (four, &[]),
        (five, &["a=5"]),
    ];
    for (revision, wanted) in cases {
        assert_eq!(contents(&store, KeyRange::all(), Some(revision)).await?, wanted, "revision {revision}");
    }
    let past = store.range(KeyRange::key("a"), Some(three), None).await?;
    assert_eq!(past.revision, three);
    assert_eq!((past.kvs[0].create_revision, past.kvs[0].mod_revision, past.kvs[0].version), (one, three, 2));
    assert_eq!(store.range(KeyRange::all(), None, None).await?.revision, five);
    Ok(())
}

/// A revision that does not exist yet cannot be read.
pub async fn refuse_the_future(store: Subject) -> Verdict {
    let now = put(&store, "a", "1").await?;
    let read = store.range(KeyRange::all(), Some(now.next()), None).await;
    assert_error!(read, StoreError::FutureRevision { .. });
    Ok(())
}

/// One revision, a count, and nothing outside of the range.
pub async fn of_keys_are_deleted_at_once(store: Subject) -> Verdict {
    for key in ["net/1", "net/2", "net/3", "net0", "node/1"] {
        put(&store, key, "1").await?;
    }
    let before = store.revision().await?;
    let outcome = store.txn(Txn::always([Op::delete_range(KeyRange::prefix("net/"))])).await?;
    assert_eq!(outcome.responses, [OpResponse::Deleted(3)]);
    assert_eq!(outcome.revision, before.next());
    assert_eq!(contents(&store, KeyRange::all(), None).await?, ["net0=1", "node/1=1"]);
    assert_eq!(store.get(Key::from("net/2")).await?, None);
    Ok(())
}
