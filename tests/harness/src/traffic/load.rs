//! Many short connections: connect, request, close; what failed, who answered, and how long the
//! slowest took.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::client::{PATIENCE, request_once};
use crate::{Error, Netns, Result, eventually};

/// Failures that a report describes; all are counted.
const DESCRIBED: usize = 20;

/// Workers that each connect, ask, close and begin again, until stopped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Result<LoadReport>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Requests that were begun; with a limit, no more than that are.
    begun: AtomicU64,
    ended: AtomicU64,
}

/// What came of a load.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were not, for whatever reason.
    pub failed: u64,
    /// The first failures: when, after the beginning, and why.
    pub failures: Vec<String>,
    /// Answers of each backend.
    pub by_backend: BTreeMap<String, u64>,
    /// The client's addresses as the backends saw them.
    pub seen_clients: BTreeSet<IpAddr>,
    /// From the beginning to the last answer.
    pub elapsed: Duration,
    /// How long every answered request took, in microseconds, sorted.
    latencies: Vec<u32>,
}

impl Load {
    /// Starts `workers` workers in `netns`.
    pub fn start(netns: &Netns, target: SocketAddr, workers: usize) -> Self {
        Self::spawn(netns, target, workers, u64::MAX)
    }

    fn spawn(netns: &Netns, target: SocketAddr, workers: usize, limit: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let workers = (0..workers)
            .map(|_| {
                let (netns, shared) = (netns.clone(), Arc::clone(&shared));
                thread::spawn(move || {
                    netns.enter_for_good()?;
                    Ok(work(target, &shared, limit))
                })
            })
            .collect();
        Self { shared, workers }
    }

    /// Requests that have ended so far, well or not.
    pub fn ended(&self) -> u64 {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// Waits until `count` more requests than now have ended.
    pub fn wait_for_more(&self, count: u64, timeout: Duration) -> Result<()> {
        let wanted = self.ended() + count;
        eventually(&format!("{count} more requests"), timeout, || self.ended() >= wanted)
    }

    /// Lets every worker finish its request, and counts.
    pub fn stop(self) -> Result<LoadReport> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    fn finish(self) -> Result<LoadReport> {
        let mut all = LoadReport::default();
        for worker in self.workers {
            let report = match worker.join() {
                Ok(report) => report?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            all.add(report);
        }
        all.latencies.sort_unstable();
        Ok(all)
    }
}

/// Makes `count` connections from `netns` with `workers` workers and reports when all have ended.
pub fn load(netns: &Netns, target: SocketAddr, count: u64, workers: usize) -> Result<LoadReport> {
    Load::spawn(netns, target, workers, count).finish()
}

fn work(target: SocketAddr, shared: &Shared, limit: u64) -> LoadReport {
    let (begin, mut report) = (Instant::now(), LoadReport::default());
    while !shared.stop.load(Ordering::Relaxed) && shared.begun.fetch_add(1, Ordering::Relaxed) < limit {
        let start = Instant::now();
        match request_once(target, None, PATIENCE) {
            Ok(answer) => {
                report.latencies.push(u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX));
                report.answered += 1;
                report.seen_clients.insert(answer.client.ip());
                *report.by_backend.entry(answer.backend).or_default() += 1;
            }
            Err(error) => {
                report.failed += 1;
                if report.failures.len() < DESCRIBED {
                    let (at, took) = (start.duration_since(begin), start.elapsed());
                    report.failures.push(format!("at {at:.1?}, after {took:.1?}: {error}"));
                }
            }
        }
        shared.ended.fetch_add(1, Ordering::Relaxed);
    }
    report.elapsed = begin.elapsed();
    report
}

impl LoadReport {
    /// The time that `percent` of the answered requests did not exceed; zero without answers.
    pub fn percentile(&self, percent: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank among at most some millions"
        )]
        let rank = (self.latencies.len() as f64 * percent / 100.0).ceil() as usize;
        let latency = self.latencies.get(rank.clamp(1, self.latencies.len().max(1)) - 1);
        Duration::from_micros(latency.copied().unwrap_or(0).into())
    }

    /// The time of the slowest answered request.
    pub fn slowest(&self) -> Duration {
        self.percentile(100.0)
    }

    /// Answered requests per second.
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
        let answered = self.answered as f64;
        answered / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// The report itself when requests were made and all were answered, else an error.
    pub fn all_answered(self) -> Result<Self> {
        if self.failed == 0 && self.answered > 0 {
            return Ok(self);
        }
        let Self { answered, failed, failures, .. } = &self;
        Err(Error::Traffic(format!("{failed} of {} requests failed: {failures:#?}", answered + failed)))
    }

    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.failures.truncate(DESCRIBED);
        for (backend, count) in other.by_backend {
            *self.by_backend.entry(backend).or_default() += count;
        }
        self.seen_clients.extend(other.seen_clients);
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latencies.extend(other.latencies);
    }
}
