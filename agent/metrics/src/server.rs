//! The metrics over HTTP: for one path, one request per connection, and within bounds, whoever
//! asks.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_handle::AgentHandle;
use mesh_host::Backoff;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::text;

/// Where the metrics are.
const PATH: &str = "/metrics";
/// Connections at a time. Another one takes the place of the one that has kept us waiting longest.
const CONNECTIONS: usize = 16;
/// Time that one of them has to end by itself: a client that sends its request at once needs a few
/// milliseconds.
const GRACE: Duration = Duration::from_millis(10);
/// How long a request's head may take to come.
const HEAD: Duration = Duration::from_secs(5);
/// Maximum duration of a connection.
const CONNECTION: Duration = Duration::from_secs(10);
/// The most that is kept of a request that has not been understood yet; the least that the library
/// allows.
const HEAD_BYTES: usize = 8 << 10;
/// What was collected serves all who ask within this time: scrapes of one host are seconds apart.
const AGE: Duration = Duration::from_secs(1);
/// Pauses before an address that could not be had is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Pause after a connection could not be taken: there may be no descriptor left, which does not
/// pass at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves the metrics on an address, for ever. While that cannot be had, `problem` says why:
/// packets need the agent, and not its metrics.
pub async fn serve(address: SocketAddr, agent: Arc<dyn AgentHandle>, problem: watch::Sender<Option<String>>) {
    let listener = bind(address, &problem).await;
    let source = Arc::new(Source { agent, last: Last::default() });
    let mut tasks = JoinSet::new();
    let mut open = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics could not be accepted");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if tasks.len() >= CONNECTIONS {
            let _ = timeout(GRACE, tasks.join_next()).await;
        }
        while tasks.try_join_next().is_some() {}
        open.retain(|connection: &Connection| !connection.task.is_finished());
        if open.len() >= CONNECTIONS {
            close_one(&mut open);
        }
        let asked = Arc::new(AtomicBool::new(false));
        let task = tasks.spawn(converse(stream, source.clone(), asked.clone()));
        open.push_back(Connection { task, asked });
    }
}

/// The socket, as soon as there can be one.
async fn bind(address: SocketAddr, problem: &watch::Sender<Option<String>>) -> TcpListener {
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    loop {
        let error = match TcpListener::bind(address).await {
            Ok(listener) => {
                problem.send_replace(None);
                tracing::info!(%address, "serving metrics");
                return listener;
            }
            Err(error) => explain(address, &error),
        };
        let is_new = problem.borrow().as_ref() != Some(&error);
        if is_new {
            tracing::warn!("{error}");
            problem.send_replace(Some(error));
        }
        sleep(backoff.pause()).await;
    }
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("; see who has the port with ss -ltnp 'sport = :{}'", address.port())
        }
        io::ErrorKind::AddrNotAvailable => "; metrics_addr must be an address of this host".to_owned(),
        _ => String::new(),
    };
    format!("cannot serve metrics on {address}: {error}{advice}")
}

/// The answer to all requests.
#[derive(Debug)]
struct Source {
    agent: Arc<dyn AgentHandle>,
    last: Last,
}

/// A connection that may have ended.
#[derive(Debug)]
struct Connection {
    task: AbortHandle,
    /// Whether its request has come.
    asked: Arc<AtomicBool>,
}

/// Ends a connection, the oldest of those that have asked nothing yet if there is one: who connects
/// and is silent, or does not read, keeps nobody else from asking.
fn close_one(open: &mut VecDeque<Connection>) {
    let silent = open.iter().position(|connection| !connection.asked.load(Ordering::Relaxed));
    if let Some(connection) = open.remove(silent.unwrap_or_default()) {
        connection.task.abort();
    }
}

async fn converse(stream: TcpStream, source: Arc<Source>, asked: Arc<AtomicBool>) {
    let service = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, &source).await) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A request that cannot be understood, or whose client closes, needs no answer.
    if let Ok(Err(error)) = timeout(CONNECTION, conversation).await {
        tracing::debug!(%error, "a connection for metrics failed");
    }
}

async fn answer(request: &Request<Incoming>, source: &Source) -> Response<String> {
    let mut response = Response::new(String::new());
    if request.uri().path() != PATH {
        *response.status_mut() = StatusCode::NOT_FOUND;
        *response.body_mut() = format!("not found: the metrics are at {PATH}\n");
    } else if [Method::GET, Method::HEAD].contains(request.method()) {
        let text = async { text::text(source.agent.status().await) };
        *response.body_mut() = source.last.get_or_collect(text).await;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(text::CONTENT_TYPE));
    } else {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        "method not allowed: use GET\n".clone_into(response.body_mut());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// The last answer, for requests at the same time.
#[derive(Debug, Default)]
struct Last(Mutex<Option<(Instant, String)>>);

impl Last {
    /// The text, made a moment ago or now. Who comes while it is made waits for it and makes none.
    async fn get_or_collect(&self, make: impl Future<Output = String>) -> String {
        let mut last = self.0.lock().await;
        if let Some((at, text)) = last.as_ref()
            && at.elapsed() < AGE
        {
            return text.clone();
        }
        let text = make.await;
        *last = Some((Instant::now(), text.clone()));
        text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_by_many_within_a_moment_is_collected_once() {
        let (last, times) = (Last::default(), AtomicUsize::new(0));
        let make = || async {
            sleep(Duration::from_millis(50)).await;
            times.fetch_add(1, Ordering::Relaxed).to_string()
        };
        let texts = join_all((0..100).map(|_| last.get_or_collect(make()))).await;
        assert!(texts.iter().all(|text| text == "0"), "{texts:?}");
        sleep(AGE).await;
        assert_eq!(last.get_or_collect(make()).await, "1");
    }
}
