//! A worker: one queue of the device and one socket, both ways.

use std::{io, os::fd::AsFd, sync::Arc};

use super::{
    receive::Receive,
    shared::{Shared, TableView},
    transmit::{Context, Transmit},
};
use crate::sys::{Ready, Tap, UdpSocket, wait};

/// Rounds in one direction before the other has its turn.
const ROUNDS: usize = 4;

/// Everything a worker's thread owns.
pub(super) struct Worker {
    index: usize,
    shared: Arc<Shared>,
    tap: Arc<Tap>,
    socket: Arc<UdpSocket>,
    view: TableView,
    transmit: Transmit,
    receive: Receive,
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

    /// Waits for input. Looking for some time before sleeping was measured and does harm where cores are few: on two,
    /// with both ends of a connection on them, it takes a third of the throughput, and no less of the latency.
    fn wait(&self) -> io::Result<Ready> {
        wait(self.tap.as_fd(), self.socket.as_fd(), self.shared.wake(self.index))
    }
}
