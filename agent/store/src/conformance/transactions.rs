//! Comparisons, branches and writes

use super::{Subject, Verdict, assert_error, contents, delete, put, value_of};
use crate::{
    Compare, CompareOp, CompareTarget, Key, KeyRange, Op, OpResponse, Revision, StoreError, Txn, Value,
};

/// The first put makes version 1; the next ones keep the create revision and count up.
pub async fn a_put_creates_then_updates(store: Subject) -> Verdict {
    let before = store.revision().await?;
    let created = put(&store, "a", "1").await?;
    assert_eq!(created, before.next());
    let updated = put(&store, "a", "2").await?;
    assert_eq!(updated, created.next());
    assert_eq!(store.revision().await?, updated);

    let kv = store.get(Key::from("a")).await?.expect("the key was put");
    assert_eq!(kv.value, Value::from("2"));
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (created, updated, 2));
    assert_eq!(store.get(Key::from("b")).await?, None);
    Ok(())
}

/// Every target with every operator, for values below, at and above the key's.
pub async fn every_comparison_is_as_its_operator_says(store: Subject) -> Verdict {
    put(&store, "other", "x").await?;
    let created = put(&store, "a", "m").await?;
    put(&store, "a", "l").await?;
    let modified = put(&store, "a", "m").await?;
    let targets = [
        (-1, CompareTarget::CreateRevision(Revision(created.0 + 1))),
        (0, CompareTarget::CreateRevision(created)),
        (1, CompareTarget::CreateRevision(Revision(created.0 - 1))),
        (-1, CompareTarget::ModRevision(modified.next())),
        (0, CompareTarget::ModRevision(modified)),
        (1, CompareTarget::ModRevision(created)),
        (-1, CompareTarget::Version(4)),
        (0, CompareTarget::Version(3)),
        (1, CompareTarget::Version(2)),
        (-1, CompareTarget::Value(Value::from("ma"))),
        (0, CompareTarget::Value(Value::from("m"))),
        (1, CompareTarget::Value(Value::from("lz"))),
    ];
    for (ordering, target) in targets {
        let operators = [
            (CompareOp::Equal, ordering == 0),
            (CompareOp::NotEqual, ordering != 0),
            (CompareOp::Less, ordering < 0),
            (CompareOp::Greater, ordering > 0),
        ];
        for (op, holds) in operators {
            let compare = Compare::new("a", target.clone(), op);
            let outcome = store.txn(Txn::when([compare.clone()])).await?;
            assert_eq!(outcome.succeeded, holds, "{compare:?}");
        }
    }
    Ok(())
}

/// An absent key has revisions and a version of 0, and no value that any comparison holds for.
pub async fn comparisons_of_an_absent_key(store: Subject) -> Verdict {
    let value = |op| Compare::new("a", CompareTarget::Value(Value::from("")), op);
    let cases = [
        (Compare::absent("a"), true),
        (Compare::present("a"), false),
        (Compare::mod_revision("a", Revision::NEVER), true),
        (Compare::mod_revision("a", Revision::FIRST), false),
        (Compare::new("a", CompareTarget::Version(0), CompareOp::Equal), true),
        (Compare::new("a", CompareTarget::Version(1), CompareOp::Less), true),
        (value(CompareOp::Equal), false),
        (value(CompareOp::NotEqual), false),
        (value(CompareOp::Less), false),
        (value(CompareOp::Greater), false),
    ];
    for (compare, holds) in cases {
        let outcome = store.txn(Txn::when([compare.clone()])).await?;
        assert_eq!(outcome.succeeded, holds, "{compare:?}");
    }
    // A key that was deleted is as absent as one that never was.
    put(&store, "a", "1").await?;
    delete(&store, KeyRange::key("a")).await?;
    assert!(store.txn(Txn::when([Compare::absent("a")])).await?.succeeded);
    Ok(())
}

/// One comparison that does not hold is enough for the failure branch; none at all is success.
pub async fn all_comparisons_must_hold(store: Subject) -> Verdict {
    put(&store, "a", "1").await?;
    let both = |b| Txn::when([Compare::value("a", "1"), b]);
    assert!(store.txn(both(Compare::absent("b"))).await?.succeeded);
    assert!(!store.txn(both(Compare::present("b"))).await?.succeeded);
    assert!(store.txn(Txn::default()).await?.succeeded);
    Ok(())
}

/// The other branch leaves no trace, and the responses are those of the chosen one.
pub async fn only_the_chosen_branch_is_executed(store: Subject) -> Verdict {
    let txn =
        || {
            Txn::when([Compare::absent("lock")])
                .then([Op::put("lock", "held"), Op::put("won", "1")])
                .or_else([Op::get("lock"), Op::put("lost", "1"), Op::delete("nothing")])
        };
    let first = store.txn(txn()).await?;
    assert!(first.succeeded);
    assert_eq!(first.responses, [OpResponse::Put, OpResponse::Put]);
    assert_eq!(value_of(&store, "lost").await?, None);

    let second = store.txn(txn()).await?;
    assert!(!second.succeeded);
    assert_eq!(second.responses.len(), 3);
    assert_eq!(second.responses[1..], [OpResponse::Put, OpResponse::Deleted(0)]);
    let held: Vec<_> = second.reads().map(|kv| kv.value.clone()).collect();
    assert_eq!(held, [Value::from("held")]);
    assert_eq!(contents(&store, KeyRange::all(), None).await?, ["lock=held", "lost=1", "won=1"]);
    Ok(())
}

/// Puts and deletes of one transaction are one revision.
pub async fn writes_of_one_transaction_share_a_revision(store: Subject) -> Verdict {
    let before = put(&store, "old", "1").await?;
    let outcome = store.txn(Txn::always([Op::put("a", "1"), Op::delete("old"), Op::put("b", "2")])).await?;
    assert_eq!(outcome.revision, before.next());
    assert_eq!(store.revision().await?, before.next());
    let kvs = store.range(KeyRange::all(), None, None).await?.kvs;
    assert_eq!(kvs.len(), 2);
    assert!(kvs.iter().all(|kv| kv.mod_revision == before.next() && kv.create_revision == before.next()));
    Ok(())
}

/// Reads, and deletes that find nothing, leave the revision as it is.
pub async fn a_transaction_that_changes_nothing_makes_no_revision(store: Subject) -> Verdict {
    let before = put(&store, "a", "1").await?;
    let nothing = [Op::get("a"), Op::delete("b"), Op::delete_range(KeyRange::prefix("c/"))];
    let outcome = store.txn(Txn::always(nothing)).await?;
    assert_eq!(outcome.revision, before);
    assert_eq!(store.revision().await?, before);
    // A put of the value that is there is a change all the same.
    assert_eq!(put(&store, "a", "1").await?, before.next());
    Ok(())
}

/// Operations are executed in order.
pub async fn a_read_sees_the_writes_before_it(store: Subject) -> Verdict {
    put(&store, "a", "old").await?;
    let ops = [Op::get("a"), Op::put("a", "new"), Op::get("a"), Op::delete("b"), Op::get("b")];
    let outcome = store.txn(Txn::always(ops)).await?;
    let read: Vec<_> = outcome.reads().map(|kv| (kv.value.clone(), kv.version)).collect();
    assert_eq!(read, [(Value::from("old"), 1), (Value::from("new"), 2)]);
    Ok(())
}

/// In either branch, by two puts or by a put and a delete; deletes may overlap.
pub async fn a_key_written_twice_is_refused_whole(store: Subject) -> Verdict {
    let before = put(&store, "p/1", "1").await?;
    let twice = [
        vec![Op::put("other", "1"), Op::put("a", "1"), Op::put("a", "2")],
        vec![Op::put("p/1", "2"), Op::delete_range(KeyRange::prefix("p/"))],
        vec![Op::delete("p/1"), Op::put("p/1", "2")],
    ];
    for ops in twice {
        assert_error!(store.txn(Txn::always(ops.clone())).await, StoreError::DuplicateKey { .. });
        assert_error!(store.txn(Txn::default().or_else(ops)).await, StoreError::DuplicateKey { .. });
    }
    assert_eq!(store.revision().await?, before);
    assert_eq!(contents(&store, KeyRange::all(), None).await?, ["p/1=1"]);

    let overlapping = [Op::delete("p/1"), Op::delete_range(KeyRange::prefix("p/"))];
    let outcome = store.txn(Txn::always(overlapping)).await?;
    assert_eq!(outcome.responses, [OpResponse::Deleted(1), OpResponse::Deleted(0)]);
    Ok(())
}

/// It is the start of the range of all keys, not a key.
pub async fn the_empty_key_is_refused(store: Subject) -> Verdict {
    let before = store.revision().await?;
    assert_error!(store.txn(Txn::always([Op::put("", "1")])).await, StoreError::EmptyKey);
    assert_eq!(store.revision().await?, before);
    Ok(())
}

/// With version 1 and a create revision of its own.
pub async fn a_deleted_key_starts_anew(store: Subject) -> Verdict {
    put(&store, "a", "1").await?;
    put(&store, "a", "2").await?;
    delete(&store, KeyRange::key("a")).await?;
    assert_eq!(store.get(Key::from("a")).await?, None);
    let again = put(&store, "a", "3").await?;
    let kv = store.get(Key::from("a")).await?.expect("the key was put again");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1));
    Ok(())
}

/// Empty, with zeros, not UTF-8, and some hundred kilobytes.
pub async fn values_may_be_any_bytes(store: Subject) -> Verdict {
    let values = [vec![], vec![0, 0xff, 0, 0x80], vec![0xa5; 300_000]];
    for value in values {
        let key = vec![0, 0xff, b'k'];
        store.txn(Txn::always([Op::put(key.clone(), value.clone())])).await?;
        let kv = store.get(Key::from(key)).await?.expect("the key was put");
        assert_eq!(kv.value.as_bytes(), value);
    }
    Ok(())
}
