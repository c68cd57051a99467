//! A steady low rate of numbered datagrams, and which of them are missing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use super::udp::bind;
use crate::{Error, Netns, Result, eventually, poll_until};

/// How long the last datagrams may take.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes of the receiver's buffer: seconds of the fastest meter.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Numbered datagrams that flow one way from when it starts until it is stopped.
#[derive(Debug)]
pub struct LossMeter {
    stop_sending: Arc<AtomicBool>,
    stop_receiving: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Sent>,
    receiver: JoinHandle<Vec<u64>>,
}

#[derive(Debug, Default)]
struct Sent {
    count: u64,
    errors: u64,
}

/// What a [`LossMeter`] saw.
#[derive(Debug, Clone)]
pub struct LossReport {
    /// Datagrams that the sender's kernel took.
    pub sent: u64,
    /// Datagrams that it refused.
    pub send_errors: u64,
    /// Different datagrams that arrived.
    pub received: u64,
    /// Numbers of those that did not, in order.
    pub lost: Vec<u64>,
    /// Datagrams that arrived more than once.
    pub duplicates: u64,
}

impl LossMeter {
    /// Sends from `client` to `server_address` in `server`, one datagram every `interval`; returns
    /// once the first has arrived.
    pub fn start(client: &Netns, server: &Netns, server_address: IpAddr, interval: Duration) -> Result<Self> {
        let receiving = bind(server, SocketAddr::new(server_address, 0))?;
        // A reader that does not get the processor for a while is no loss on the way.
        setsockopt(&receiving, RcvBufForce, &RECEIVE_BUFFER).map_err(Error::system("size socket"))?;
        let target = receiving.local_addr().map_err(Error::system("read socket's address"))?;
        let any: IpAddr = match server_address {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let sending = bind(client, SocketAddr::new(any, 0))?;
        sending.connect(target).map_err(Error::system(format!("send to {target} from {}", client.name())))?;

        let (stop_sending, stop_receiving) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let received = Arc::new(AtomicU64::new(0));
        let receiving_thread = {
            let (stop, received) = (Arc::clone(&stop_receiving), Arc::clone(&received));
            thread::spawn(move || {
                let (mut numbers, mut buffer) = (Vec::new(), [0; 8]);
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(8) = receiving.recv(&mut buffer) {
                        numbers.push(u64::from_be_bytes(buffer));
                        received.fetch_add(1, Ordering::Relaxed);
                    }
                }
                numbers
            })
        };
        let sender = {
            let stop = Arc::clone(&stop_sending);
            thread::spawn(move || {
                let (mut sent, mut next) = (Sent::default(), Instant::now());
                while !stop.load(Ordering::Relaxed) {
                    match sending.send(&sent.count.to_be_bytes()) {
                        Ok(_) => sent.count += 1,
                        Err(_) => sent.errors += 1,
                    }
                    // What could not be sent in time is not made up for: a burst would measure
                    // queues.
                    let now = Instant::now();
                    next = (next + interval).max(now);
                    thread::sleep(next - now);
                }
                sent
            })
        };
        let meter = Self { stop_sending, stop_receiving, received, sender, receiver: receiving_thread };
        let flows = eventually(&format!("datagrams to {target}"), GRACE, || meter.received() > 0);
        match flows {
            Ok(()) => Ok(meter),
            Err(error) => {
                meter.stop()?;
                Err(error)
            }
        }
    }

    /// Datagrams that have arrived so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until `count` more datagrams than now have arrived.
    pub fn wait_for_more(&self, count: u64, timeout: Duration) -> Result<()> {
        let wanted = self.received() + count;
        eventually(&format!("{count} more datagrams"), timeout, || self.received() >= wanted)
    }

    /// Stops sending, gives the last datagrams some seconds to arrive, and counts.
    pub fn stop(self) -> Result<LossReport> {
        self.stop_sending.store(true, Ordering::Relaxed);
        let panicked = |_| Error::Traffic("a thread of the loss meter panicked".to_owned());
        let sent = self.sender.join().map_err(panicked)?;
        // Fewer than all is what the report is to say; it is not an error here.
        let _ = poll_until(GRACE, || (self.received.load(Ordering::Relaxed) >= sent.count).then_some(()));
        self.stop_receiving.store(true, Ordering::Relaxed);
        let mut numbers = self.receiver.join().map_err(panicked)?;
        numbers.sort_unstable();
        let arrived = numbers.len() as u64;
        numbers.dedup();
        let received = numbers.len() as u64;
        let lost = (0..sent.count).filter(|number| numbers.binary_search(number).is_err()).collect();
        Ok(LossReport {
            sent: sent.count,
            send_errors: sent.errors,
            received,
            lost,
            duplicates: arrived - received,
        })
    }
}

impl LossReport {
    /// The report itself when every datagram was sent and arrived, else an error.
    pub fn nothing_lost(self) -> Result<Self> {
        if self.lost.is_empty() && self.send_errors == 0 {
            return Ok(self);
        }
        let Self { sent, send_errors, lost, .. } = &self;
        Err(Error::Traffic(format!(
            "{} of {sent} datagrams lost, {send_errors} could not be sent; lost numbers begin {:?}",
            lost.len(),
            &lost[..lost.len().min(20)]
        )))
    }
}
