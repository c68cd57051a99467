//! A worker: one queue of the device and one socket, in both directions.

use std::{io, os::fd::AsFd, sync::Arc, thread, time::Instant};

use mesh_sys::{tap::Tap, udp::UdpSocket};

use super::{
    polling::{Next, Polling},
    receive::Receive,
    shared::{Shared, TableView},
    transmit::{Context, Transmit},
};
use crate::wake::{Ready, poll_now, wait};

/// Rounds in one direction before the other has its turn.
const ROUNDS: usize = 4;
/// A batch with more bytes indicates bulk transfer rather than request and response.
const MUCH: usize = 16 << 10;

/// The state of a worker's thread.
pub(super) struct Worker {
    index: usize,
    shared: Arc<Shared>,
    tap: Arc<Tap>,
    socket: Arc<UdpSocket>,
    view: TableView,
    transmit: Transmit,
    receive: Receive,
    polling: Polling,
}

impl Worker {
    /// Creates worker number `index`. `udp`: whether the device accepts UDP super-packets.
    pub(super) fn new(
        index: usize,
        shared: &Arc<Shared>,
        tap: &Arc<Tap>,
        socket: &Arc<UdpSocket>,
        udp: bool,
    ) -> Self {
        Self {
            index,
            shared: Arc::clone(shared),
            tap: Arc::clone(tap),
            socket: Arc::clone(socket),
            view: shared.view(),
            transmit: Transmit::new(),
            receive: Receive::new(udp),
            polling: Polling::new(),
        }
    }

    /// Processes packets until the engine stops.
    pub(super) fn run(mut self) -> io::Result<()> {
        while !self.shared.is_stopping() {
            let ready = self.wait()?;
            let table = self.shared.refresh(&mut self.view);
            let context = Context { tap: &self.tap, socket: &self.socket, table, shared: &self.shared };
            if ready.wake {
                self.shared.wake(self.index).clear();
                self.transmit.retry(context);
            }
            for _ in 0..ROUNDS {
                if !ready.socket || !self.receive.round(context)? {
                    break;
                }
            }
            for _ in 0..ROUNDS {
                if !ready.tap || !self.transmit.round(context)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Returns whether the last batch of either direction had many or long packets. An empty round,
    /// which ends every series of rounds, does not count as a batch.
    fn is_bulk(&self) -> bool {
        self.transmit.last_bytes().max(self.receive.last_bytes()) > MUCH
    }

    /// Waits for input; polls first if a packet may arrive soon.
    fn wait(&mut self) -> io::Result<Ready> {
        let (tap, socket, wake) = (self.tap.as_fd(), self.socket.as_fd(), self.shared.wake(self.index));
        let since = Instant::now();
        if self.polling.should_poll(since) && !self.is_bulk() {
            loop {
                let ready = poll_now(tap, socket, wake)?;
                if ready.any() {
                    self.polling.found_packet();
                    return Ok(ready);
                }
                let before = Instant::now();
                thread::yield_now();
                if self.polling.found_nothing(since, before, Instant::now()) == Next::Sleep {
                    break;
                }
            }
        }
        let asleep = Instant::now();
        let ready = wait(tap, socket, wake)?;
        self.polling.woken(asleep.elapsed());
        Ok(ready)
    }
}
