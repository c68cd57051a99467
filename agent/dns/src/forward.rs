//! Questions for names that are not ours: asked of the host's resolvers, equal ones once.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use hickory_proto::op::{Message, ResponseCode};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{exchange::Question, upstreams::Upstreams};

/// How long an answer may take. Resolvers that have to ask far away need some seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

/// When the next resolver is asked as well. The former may still answer.
const NEXT: Duration = Duration::from_secs(1);

/// Most resolvers that are asked for one question (resolv.conf(5), `MAXNS`).
const MAX_RESOLVERS: usize = 3;

/// Another resolver may know better.
const PASSED: [ResponseCode; 3] = [ResponseCode::ServFail, ResponseCode::NotImp, ResponseCode::Refused];

/// What is asked: nothing while it has no answer yet, then the answer or that there is none.
type Pending = watch::Receiver<Option<Option<Arc<Message>>>>;

/// What is asked of the host's resolvers, for all networks.
#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Arc<Upstreams>,
    in_flight: Arc<Mutex<HashMap<Question, Pending>>>,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Arc<Upstreams>) -> Self {
        Self { upstreams, in_flight: Arc::default() }
    }

    /// The answer to a question; `None` if no resolver answered.
    ///
    /// A question that is being asked already is not asked again. So one that comes back to us,
    /// because a resolver forwards to us, goes out no second time. A task of its own asks, so that
    /// it goes on when who asked first is gone.
    pub(crate) async fn resolve(&self, question: Question) -> Option<Arc<Message>> {
        let mut pending = {
            let mut in_flight = lock(&self.in_flight);
            if let Some(pending) = in_flight.get(&question) {
                pending.clone()
            } else {
                let (answer, pending) = watch::channel(None);
                in_flight.insert(question.clone(), pending.clone());
                let (upstreams, all) = (Arc::clone(&self.upstreams), Arc::clone(&self.in_flight));
                tokio::spawn(async move {
                    let reply = query(&upstreams, &question).await;
                    lock(&all).remove(&question);
                    let _ = answer.send(Some(reply));
                });
                pending
            }
        };
        let reply = pending.wait_for(Option::is_some).await.ok()?;
        reply.clone().flatten()
    }
}

fn lock(in_flight: &Mutex<HashMap<Question, Pending>>) -> MutexGuard<'_, HashMap<Question, Pending>> {
    // No code panics while it is held.
    in_flight.lock()
}

/// Asks the first resolver, and the next ones as well when there is no answer after a while or when
/// one does not know. The first answer is taken, also from one that is late. What a resolver that
/// does not know said is better than nothing.
async fn query(upstreams: &Upstreams, question: &Question) -> Option<Arc<Message>> {
    let resolvers: Vec<SocketAddr> = upstreams.in_order().await.into_iter().take(MAX_RESOLVERS).collect();
    let query =
        |resolver: SocketAddr| async move { (resolver, Instant::now(), question.query(resolver).await) };
    let mut asked = FuturesUnordered::new();
    let (mut passed, mut begun, mut next_at) = (None, 0, Instant::now());
    let end = sleep(PATIENCE);
    tokio::pin!(end);
    loop {
        if let Some(resolver) = resolvers.get(begun).filter(|_| Instant::now() >= next_at) {
            asked.push(query(*resolver));
            begun += 1;
            next_at = Instant::now() + NEXT;
        }
        if asked.is_empty() {
            return passed;
        }
        tokio::select! {
            Some((resolver, asked_at, reply)) = asked.next() => {
                match reply {
                    Ok(reply) => {
                        upstreams.answered(resolver);
                        if !PASSED.contains(&reply.metadata.response_code) {
                            return Some(Arc::new(reply));
                        }
                        passed.get_or_insert(Arc::new(reply));
                    }
                    Err(error) => {
                        tracing::debug!(%resolver, %error, "the resolver does not respond");
                        // One whose answers are malformed is not silent.
                        if error.kind() != io::ErrorKind::InvalidData {
                            upstreams.record_silence(resolver, asked_at);
                        }
                    }
                }
                next_at = Instant::now();
            }
            () = sleep_until(next_at), if begun < resolvers.len() => {
                upstreams.record_silence(resolvers[begun - 1], next_at - NEXT);
            }
            () = &mut end => return passed,
        }
    }
}
