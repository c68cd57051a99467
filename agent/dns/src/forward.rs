//! Questions for names that are not ours: asked of the host's resolvers, equal ones once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::time::timeout;

use crate::{
    exchange::{Question, Reply},
    upstreams::Upstreams,
};

/// How long one resolver has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often resolvers are asked for one question; a single one is asked twice, since datagrams get lost.
const MIN_ATTEMPTS: usize = 2;
const MAX_ATTEMPTS: usize = 3;

/// Most different questions of one network that wait for an answer, each of which holds a socket.
const MAX_IN_FLIGHT: usize = 128;

/// SERVFAIL, NOTIMP and REFUSED: another resolver may know better.
const PASSED: [u8; 3] = [2, 4, 5];

type Pending = Shared<BoxFuture<'static, Option<Arc<Reply>>>>;

/// What one network asks of the host's resolvers.
#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Arc<Upstreams>,
    in_flight: Mutex<HashMap<Question, Pending>>,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Arc<Upstreams>) -> Self {
        Self { upstreams, in_flight: Mutex::default() }
    }

    /// The answer to a question, or none: nobody answered, or too many questions are waiting.
    ///
    /// Who asks what is being asked already waits for that answer. So a question that comes back to us, because a resolver
    /// forwards to us, goes out no second time.
    pub(crate) async fn resolve(&self, question: &Question) -> Option<Arc<Reply>> {
        let pending = {
            let mut in_flight = self.in_flight();
            match in_flight.get(question) {
                Some(pending) => pending.clone(),
                None if in_flight.len() >= MAX_IN_FLIGHT => return None,
                None => {
                    let pending = ask(Arc::clone(&self.upstreams), question.clone()).boxed().shared();
                    in_flight.insert(question.clone(), pending.clone());
                    pending
                }
            }
        };
        let reply = pending.await;
        let mut in_flight = self.in_flight();
        // The first to see it done removes it; what is there by then may already be a later question.
        if in_flight.get(question).is_some_and(|pending| pending.peek().is_some()) {
            in_flight.remove(question);
        }
        reply
    }

    fn in_flight(&self) -> MutexGuard<'_, HashMap<Question, Pending>> {
        // Nothing panics while it is held; whatever is in the map can be waited for.
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks one resolver after the other until one knows. What one that does not know said is better than nothing.
async fn ask(upstreams: Arc<Upstreams>, question: Question) -> Option<Arc<Reply>> {
    let resolvers = upstreams.in_order().await;
    let attempts = resolvers.len().clamp(MIN_ATTEMPTS, MAX_ATTEMPTS);
    let mut passed = None;
    for resolver in resolvers.iter().cycle().take(attempts).copied() {
        match timeout(PATIENCE, question.ask(resolver)).await {
            Ok(Ok(reply)) => {
                upstreams.answered(resolver);
                if !PASSED.contains(&reply.code()) {
                    return Some(Arc::new(reply));
                }
                passed = Some(Arc::new(reply));
            }
            Ok(Err(error)) => {
                tracing::debug!(%resolver, %error, "the resolver cannot be asked");
                upstreams.silent(resolver);
            }
            Err(_) => {
                tracing::debug!(%resolver, "the resolver does not answer");
                upstreams.silent(resolver);
            }
        }
    }
    passed
}
