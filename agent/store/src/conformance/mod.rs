//! What every [`Store`](crate::Store) must do, as tests that run against any of them
//!
//! [`conformance_tests!`](crate::conformance_tests) makes a `#[tokio::test]` of each check. A check
//! gets a store that is empty and that nobody else uses; it panics, or returns an error of the
//! store's, when the store does not conform.

pub mod compactions;
pub mod concurrency;
pub mod ranges;
pub mod transactions;
pub mod watches;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::{Event, Key, KeyRange, Op, Revision, Store, StoreError, Txn, WatchBatch, WatchStream};

/// The store under test.
pub type Subject = Arc<dyn Store>;

/// What a check returns; an error is one that the check did not expect.
pub type Verdict = Result<(), StoreError>;

/// A bound on waiting for an event that must come; only a store that fails reaches it.
const DEADLINE: Duration = Duration::from_secs(30);

/// Makes a test of each conformance check. Takes an expression that is called for each test and
/// awaited, and yields a guard (dropped after the store) and the
/// [`Subject`](crate::conformance::Subject). The caller's crate needs tokio with its macros and the
/// multi-thread runtime.
#[macro_export]
macro_rules! conformance_tests {
    ($fresh:expr) => {
        $crate::conformance_tests! { @checks $fresh;
            transactions {
                a_put_creates_then_updates,
                every_comparison_is_as_its_operator_says,
                comparisons_of_an_absent_key,
                all_comparisons_must_hold,
                only_the_chosen_branch_is_executed,
                writes_of_one_transaction_share_a_revision,
                a_transaction_that_changes_nothing_makes_no_revision,
                a_read_sees_the_writes_before_it,
                a_key_written_twice_is_refused_whole,
                the_empty_key_is_refused,
                a_deleted_key_starts_anew,
                values_may_be_any_bytes,
            }
            ranges {
                are_in_order_of_keys,
                have_no_key_outside,
                are_paged_by_a_limit,
                read_the_past,
                refuse_the_future,
                of_keys_are_deleted_at_once,
            }
            watches {
                replay_the_past_and_go_on_live,
                see_only_their_range,
                wait_for_a_revision_to_come,
                have_no_gap_while_writers_race,
                wait_for_slow_consumers_without_holding_up_writers,
            }
            compactions {
                keep_the_present_and_the_compacted_revision,
                refuse_reads_of_what_is_gone,
                refuse_watches_of_what_is_gone,
                end_watches_that_they_overtake,
                keep_the_events_of_the_compacted_revision,
                may_be_repeated_but_not_be_in_the_future,
            }
            concurrency {
                increments_are_never_lost,
                one_of_many_creates_a_key,
                what_is_acknowledged_is_read,
            }
        }
    };
    (@checks $fresh:expr; $($module:ident { $($check:ident,)* })*) => {
        $(
            mod $module {
                use super::*;

                $(
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $check() -> $crate::conformance::Verdict {
                        let (_guard, store) = ($fresh)().await;
                        $crate::conformance::$module::$check(store).await
                    }
                )*
            }
        )*
    };
}

async fn put(store: &Subject, key: &str, value: &str) -> Result<Revision, StoreError> {
    Ok(store.txn(Txn::always([Op::put(key, value)])).await?.revision)
}

async fn delete(store: &Subject, range: KeyRange) -> Result<Revision, StoreError> {
    Ok(store.txn(Txn::always([Op::delete_range(range)])).await?.revision)
}

/// `key=value` for each live key of `range`.
async fn contents(store: &Subject, range: KeyRange, at: Option<Revision>) -> Result<Vec<String>, StoreError> {
    let outcome = store.range(range, at, None).await?;
    Ok(outcome.kvs.iter().map(|kv| format!("{}={}", kv.key, kv.value.escape_ascii())).collect())
}

async fn value_of(store: &Subject, key: &str) -> Result<Option<String>, StoreError> {
    let kv = store.get(Key::from(key)).await?;
    Ok(kv.map(|kv| kv.value.escape_ascii().to_string()))
}

/// The next batch of a watch, which must come.
async fn next(watch: &mut WatchStream) -> Result<WatchBatch, StoreError> {
    tokio::time::timeout(DEADLINE, watch.next())
        .await
        .expect("the watch has a batch or an error before the deadline")
        .expect("a watch does not end without an error")
}

/// `key=value` or `-key` for each event, in order of the keys.
fn summary(batch: &WatchBatch) -> Vec<String> {
    let mut events: Vec<&Event> = batch.events.iter().collect();
    events.sort_by_key(|event| event.key());
    events
        .into_iter()
        .map(|event| match event {
            Event::Put(kv) => format!("{}={}", kv.key, kv.value.escape_ascii()),
            Event::Delete { key, .. } => format!("-{key}"),
        })
        .collect()
}

/// Asserts that `result` is an error of the given kind.
macro_rules! assert_error {
    ($result:expr, $kind:pat) => {
        match $result {
            Err($kind) => {}
            other => panic!("wanted {}, got {other:?}", stringify!($kind)),
        }
    };
}
use assert_error;
