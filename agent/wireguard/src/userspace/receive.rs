//! From the network to the device: decrypt, check, coalesce, write.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use mesh_sys::udp::{Datagram, Receiver};

use super::{handshake::Handshakes, link::Received, peer::Peer, transmit::Context};
use crate::{
    DropReason,
    packet::{Joiner, NotOurs},
};

/// Type of a data message; the three bytes after it are zero.
const DATA: [u8; 4] = [4, 0, 0, 0];
/// Space that a reply to a handshake may need beyond a datagram's own length.
const SLACK: usize = 256;

/// Buffers and state of receiving, one per worker.
pub(super) struct Receive {
    receiver: Receiver,
    joiner: Joiner,
    handshakes: Handshakes,
    last_bytes: usize,
}

impl Receive {
    /// `udp`: whether the device accepts UDP super-packets.
    pub(super) fn new(udp: bool) -> Self {
        Self {
            receiver: Receiver::default(),
            joiner: Joiner::new(Receiver::CAPACITY + SLACK, udp),
            handshakes: Handshakes::default(),
            last_bytes: 0,
        }
    }

    /// Returns the bytes of the last non-empty batch, as UDP payload.
    pub(super) fn last_bytes(&self) -> usize {
        self.last_bytes
    }

    /// Receives up to one batch. Returns false if there are no more datagrams.
    pub(super) fn round(&mut self, context: Context<'_>) -> io::Result<bool> {
        let more = self.receiver.receive(context.socket)?;
        let datagrams = self.receiver.datagrams();
        if !datagrams.is_empty() {
            self.last_bytes = datagrams.iter().map(|datagram| self.receiver.bytes(*datagram).len()).sum();
        }
        let session = |datagram: &Datagram| session(self.receiver.bytes(*datagram));
        for run in datagrams.chunk_by(|a, b| session(a).is_some() && session(a) == session(b)) {
            let Some(index) = session(&run[0]) else {
                for datagram in run {
                    let bytes = self.receiver.bytes(*datagram);
                    self.handshakes.receive(bytes, datagram.from, context);
                }
                continue;
            };
            let Some((link, peer)) = context.table.session(index) else {
                context.shared.counters.add(DropReason::UnknownSession, run.len() as u64);
                continue;
            };
            let messages = run.iter().map(|datagram| (self.receiver.bytes(*datagram), datagram.from));
            open(&mut self.joiner, context, peer, link, messages);
        }
        self.joiner.drain(|frame| {
            if let Err(error) = context.tap.write(frame.slices) {
                tracing::trace!(%error, "the device refused a frame");
                context.shared.counters.count(DropReason::DeviceRefused);
            }
        });
        Ok(more)
    }
}

/// Returns the session index of a data message.
fn session(message: &[u8]) -> Option<u32> {
    let (kind, rest) = message.split_first_chunk::<4>()?;
    let index = u32::from_le_bytes(*rest.first_chunk()?);
    (*kind == DATA && message.len() >= 32).then_some(index)
}

/// Decrypts messages of one session and passes them to `joiner`.
fn open<'m>(
    joiner: &mut Joiner,
    context: Context<'_>,
    peer: &Arc<Peer>,
    link: u32,
    messages: impl Iterator<Item = (&'m [u8], SocketAddr)>,
) {
    let counters = &context.shared.counters;
    let mut state = peer.lock();
    let now = Instant::now();
    let mut out = [0; SLACK];
    state.catch_up(now, &mut out, |message, to| {
        let _ = context.socket.send(message, to);
    });
    let was_live = state.is_live();
    let sources = state.sources;
    let (mut bytes, mut source) = (0, None);
    let Some(session) = state.link(link) else {
        counters.add(DropReason::UnknownSession, messages.count() as u64);
        return;
    };
    let from_address = sources.of(session.generations.1);
    for (message, from) in messages {
        match session.receive(message, now, joiner.room()) {
            Received::Packet(len) => {
                (bytes, source) = (bytes + message.len() as u64, Some(from));
                let own = context.table.tunnel;
                if let Err(why) = joiner.push(len, peer.index, from_address, own, context.table.vxlan_port) {
                    counters.count(match why {
                        NotOurs::Address => DropReason::WrongAddress,
                        NotOurs::NotVxlan => DropReason::NotVxlan,
                        NotOurs::Fragment => DropReason::Fragment,
                    });
                }
            }
            Received::Nothing => (bytes, source) = (bytes + message.len() as u64, Some(from)),
            Received::Drop(reason) => counters.count(reason),
            // Data messages never have these results.
            Received::Reply(_) | Received::Initiate(_) | Received::Cookie => {}
        }
    }
    state.rx_bytes += bytes;
    let Some(source) = source else { return };
    state.moved_to(source);
    context.shared.start_timers(peer);
    if !was_live && state.is_live() {
        context.shared.wake_workers();
    }
}
