//! Many clients at once

use std::sync::Arc;

use super::{Subject, Verdict, value_of};
use crate::{Compare, Key, Op, Revision, StoreError, Txn};

const TASKS: usize = 8;
const INCREMENTS: usize = 20;

/// Increments a counter by compare-and-swap, repeated until no other write intervened.
async fn increment(store: &Subject) -> Result<(), StoreError> {
    loop {
        let current = store.get(Key::from("counter")).await?;
        let revision = current.as_ref().map_or(Revision::NEVER, |kv| kv.mod_revision);
        let count: usize =
            current.map_or(0, |kv| kv.value.escape_ascii().to_string().parse().expect("a number"));
        let txn = Txn::when([Compare::mod_revision("counter", revision)])
            .then([Op::put("counter", (count + 1).to_string())]);
        if store.txn(txn).await?.succeeded {
            return Ok(());
        }
    }
}

/// Compare-and-swap of many tasks on one key adds up.
pub async fn increments_are_never_lost(store: Subject) -> Verdict {
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..INCREMENTS {
                    increment(&store).await?;
                }
                Ok::<_, StoreError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task does not panic")?;
    }
    assert_eq!(value_of(&store, "counter").await?, Some((TASKS * INCREMENTS).to_string()));
    Ok(())
}

/// Of many tasks that create a key which must be absent, one succeeds, and it is the one whose
/// value is there.
pub async fn one_of_many_creates_a_key(store: Subject) -> Verdict {
    for round in 0..10 {
        let key = format!("key/{round}");
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (store, key) = (Arc::clone(&store), key.clone());
                tokio::spawn(async move {
                    let put = Op::put(key.as_str(), task.to_string());
                    store.txn(Txn::when([Compare::absent(key)]).then([put])).await
                })
            })
            .collect();
        let mut winners = Vec::new();
        for (number, task) in tasks.into_iter().enumerate() {
            if task.await.expect("a task does not panic")?.succeeded {
                winners.push(number.to_string());
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?} all created {key}");
        assert_eq!(value_of(&store, &key).await?, winners.pop());
    }
    Ok(())
}

/// A read that starts after an acknowledgement has what was acknowledged, or something later.
pub async fn what_is_acknowledged_is_read(store: Subject) -> Verdict {
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let key = format!("task/{task}");
                for count in 0..INCREMENTS {
                    let value = count.to_string();
                    let outcome = store.txn(Txn::always([Op::put(key.as_str(), value.as_str())])).await?;
                    assert_eq!(value_of(&store, &key).await?, Some(value));
                    assert!(store.revision().await? >= outcome.revision);
                }
                Ok::<_, StoreError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task does not panic")?;
    }
    Ok(())
}
