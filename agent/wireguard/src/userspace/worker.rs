//! A worker: one queue of the device and one socket, both ways.

use std::{
    io,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    receive::Receive,
    shared::{Shared, TableView},
    transmit::{Context, Transmit},
};
use crate::sys::{Ready, Tap, UdpSocket, wait};

/// Rounds in one direction before the other has its turn.
const ROUNDS: usize = 4;
/// How long to look for input before sleeping, when input has lately come that soon.
const SPIN: Duration = Duration::from_micros(50);
/// After so many fruitless looks in a row there is no more looking until input comes soon again.
const FRUITLESS: u32 = 4;

/// Everything a worker's thread owns.
pub(super) struct Worker {
    index: usize,
    shared: Arc<Shared>,
    tap: Arc<Tap>,
    socket: Arc<UdpSocket>,
    view: TableView,
    transmit: Transmit,
    receive: Receive,
    fruitless: u32,
}

impl Worker {
    /// Worker number `index`. `udp`: whether the device takes UDP super-packets.
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
            fruitless: FRUITLESS,
        }
    }

    /// Moves packets until the engine stops.
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

    /// Waits for input: looking for a short time first if that has lately paid, as it does for request and answer.
    fn wait(&mut self) -> io::Result<Ready> {
        let look =
            |timeout| wait(self.tap.as_fd(), self.socket.as_fd(), self.shared.wake(self.index), timeout);
        let ready = look(Some(Duration::ZERO))?;
        if ready.any() {
            return Ok(ready);
        }
        let begin = Instant::now();
        if self.fruitless < FRUITLESS {
            while begin.elapsed() < SPIN {
                let ready = look(Some(Duration::ZERO))?;
                if ready.any() {
                    self.fruitless = 0;
                    return Ok(ready);
                }
            }
            self.fruitless += 1;
        }
        let ready = look(None)?;
        if begin.elapsed() < SPIN {
            self.fruitless = 0;
        }
        Ok(ready)
    }
}
