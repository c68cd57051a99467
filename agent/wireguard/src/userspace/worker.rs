//! A worker: one queue of the device and one socket, both ways.

use std::{io, os::fd::AsFd, sync::Arc, thread, time::Instant};

use mesh_sys::{tap::Tap, udp::UdpSocket};

use super::{
    patience::{Next, Patience},
    receive::Receive,
    shared::{Shared, TableView},
    transmit::{Context, Transmit},
};
use crate::wake::{Ready, look, wait};

/// Rounds in one direction before the other has its turn.
const ROUNDS: usize = 4;
/// A batch of more bytes is part of a stream rather than of a conversation.
const MUCH: usize = 16 << 10;

/// Everything a worker's thread owns.
pub(super) struct Worker {
    index: usize,
    shared: Arc<Shared>,
    tap: Arc<Tap>,
    socket: Arc<UdpSocket>,
    view: TableView,
    transmit: Transmit,
    receive: Receive,
    patience: Patience,
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
            patience: Patience::new(),
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

    /// Whether the last batch of either direction was one of many packets or long ones. A round
    /// that finds nothing, as every direction's last one does, is no batch.
    fn moves_much(&self) -> bool {
        self.transmit.last_bytes().max(self.receive.last_bytes()) > MUCH
    }

    /// Waits for input, at first by looking for it if it may come soon.
    fn wait(&mut self) -> io::Result<Ready> {
        let (tap, socket, wake) = (self.tap.as_fd(), self.socket.as_fd(), self.shared.wake(self.index));
        let since = Instant::now();
        if self.patience.begins(since) && !self.moves_much() {
            loop {
                let ready = look(tap, socket, wake)?;
                if ready.any() {
                    self.patience.seen();
                    return Ok(ready);
                }
                let before = Instant::now();
                thread::yield_now();
                if self.patience.vain(since, before, Instant::now()) == Next::Sleep {
                    break;
                }
            }
        }
        let asleep = Instant::now();
        let ready = wait(tap, socket, wake)?;
        self.patience.woken(asleep.elapsed());
        Ok(ready)
    }
}
