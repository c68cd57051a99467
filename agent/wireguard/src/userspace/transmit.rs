//! From the device to the network: segment, encapsulate in VXLAN, encrypt, send in batches.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use mesh_sys::{
    tap::Tap,
    udp::{SendQueue, UdpSocket},
};

use super::{
    link::{HANDSHAKE, Link},
    peer::{Peer, PeerState},
    shared::Shared,
    table::Table,
    waiting::Waiting,
};
use crate::{
    DropReason, FrameTag,
    packet::{
        Cut, Fragments, flow_hash, may_be_fragmented, virtio, virtio::VnetHeader, vxlan, vxlan::Encapsulation,
    },
};

/// Largest frame from the device, with its virtio header.
const MAX_FRAME: usize = virtio::LEN + 14 + 65535 + 4;
/// Send as soon as this many bytes were read. Less would waste calls; more would leave the cache
/// and let the peer idle.
const ENOUGH: usize = 60 << 10;
/// Maximum number of frames read before sending.
const MAX_FRAMES: usize = 64;
/// If frames arrive one by one, only every n-th time is a second read tried before sending.
const CHECK: u8 = 4;
/// A frame with fewer bytes may be one that arrives alone.
const SMALL: usize = 4096;
/// Maximum bytes of encrypted messages that wait before sending.
const BATCH: usize = 192 << 10;
/// Bytes that WireGuard adds to a packet: header and tag.
const OVERHEAD: usize = 32;
/// WireGuard pads packets to a multiple of this (whitepaper, section 5.4.6).
const PADDING: usize = 16;

/// Buffers and state of sending, one per worker.
pub(super) struct Transmit {
    input: Vec<u8>,
    frames: Vec<Frame>,
    scratch: Vec<u8>,
    batch: Batch,
    waiting: Waiting,
    identification: u16,
    singles: Singles,
    last_bytes: usize,
}

/// A frame in the input buffer, virtio header included.
#[derive(Debug, Clone, Copy)]
struct Frame {
    start: usize,
    len: usize,
    peer: u16,
}

/// Detects whether frames arrive one by one: the number of single-frame batches since a second read
/// was last tried.
#[derive(Debug, Default)]
struct Singles(u8);

/// The parameters for the packets of one frame.
struct Route<'l> {
    link: &'l mut Link,
    headers: Encapsulation,
    endpoint: SocketAddr,
    tag: FrameTag,
    /// Bytes sent so far, as UDP payload.
    sent: u64,
}

/// Encrypted messages, one after another, and their destinations.
struct Batch {
    buffer: Vec<u8>,
    used: usize,
    queue: SendQueue,
}

/// Parameters of sending.
#[derive(Clone, Copy)]
pub(super) struct Context<'c> {
    pub(super) tap: &'c Tap,
    pub(super) socket: &'c UdpSocket,
    pub(super) table: &'c Table,
    pub(super) shared: &'c Shared,
}

impl Transmit {
    pub(super) fn new() -> Self {
        Self {
            input: vec![0; ENOUGH + MAX_FRAME],
            frames: Vec::with_capacity(MAX_FRAMES),
            scratch: vec![0; vxlan::HEADERS + MAX_FRAME + PADDING],
            batch: Batch { buffer: vec![0; BATCH], used: 0, queue: SendQueue::default() },
            waiting: Waiting::default(),
            identification: 0,
            singles: Singles::default(),
            last_bytes: 0,
        }
    }

    /// Reads up to one batch from the device and sends it. Returns false if there is no more.
    pub(super) fn round(&mut self, context: Context<'_>) -> io::Result<bool> {
        let more = self.read(context)?;
        if self.frames.is_empty() {
            return Ok(more);
        }
        let frames = std::mem::take(&mut self.frames);
        let input = std::mem::take(&mut self.input);
        for run in frames.chunk_by(|a, b| a.peer == b.peer) {
            let bytes = run.iter().map(|frame| &input[frame.start..frame.start + frame.len]);
            match context.table.peers.get(&run[0].peer) {
                Some(peer) => self.send_or_wait(context, peer, bytes),
                None => context.shared.counters.add(DropReason::UnknownPeer, run.len() as u64),
            }
        }
        (self.frames, self.input) = (frames, input);
        self.flush(context);
        Ok(more)
    }

    /// Retries sending of frames that wait for a session; drops those that waited too long.
    pub(super) fn retry(&mut self, context: Context<'_>) {
        for index in self.waiting.peers() {
            let Some(peer) = context.table.peers.get(&index) else {
                let dropped = self.waiting.take(index).len();
                context.shared.counters.add(DropReason::UnknownPeer, dropped as u64);
                continue;
            };
            if peer.lock().is_live() {
                let frames = self.waiting.take(index);
                self.send_or_wait(context, peer, frames.iter().map(Vec::as_slice));
            } else if !peer.is_timed() {
                // The handshake was given up.
                let dropped = self.waiting.take(index).len();
                context.shared.counters.add(DropReason::NoSession, dropped as u64);
            }
        }
        self.flush(context);
    }

    /// Returns the bytes of the last non-empty batch, as read from the device.
    pub(super) fn last_bytes(&self) -> usize {
        self.last_bytes
    }

    /// Reads up to one batch; returns false if the device has no more, or probably none.
    fn read(&mut self, context: Context<'_>) -> io::Result<bool> {
        self.frames.clear();
        let (mut used, mut more) = (0, true);
        let single = self.singles.is_likely();
        while more && used < ENOUGH && self.frames.len() < MAX_FRAMES {
            let Some(len) = context.tap.read(&mut self.input[used..])? else {
                more = false;
                break;
            };
            let tag = self.input[used..used + len].get(virtio::LEN..).and_then(FrameTag::of);
            match tag {
                Some(tag) => {
                    self.frames.push(Frame { start: used, len, peer: tag.peer });
                    used += len;
                }
                // Frames of the host's own stack on the device, such as neighbour discovery.
                None => context.shared.counters.count(DropReason::UnknownPeer),
            }
            more = !(single && used < SMALL);
        }
        self.singles.count(self.frames.len());
        if used > 0 {
            self.last_bytes = used;
        }
        Ok(more)
    }

    /// Sends frames to a peer, or queues them until there is a session.
    fn send_or_wait<'f>(
        &mut self,
        context: Context<'_>,
        peer: &Arc<Peer>,
        frames: impl Iterator<Item = &'f [u8]>,
    ) {
        let counters = &context.shared.counters;
        let mut state = peer.lock();
        if state.endpoint.is_none() {
            counters.add(DropReason::NoEndpoint, frames.count() as u64);
            return;
        }
        let mut handshake = [0; HANDSHAKE];
        let now = Instant::now();
        state.catch_up(now, &mut handshake, |message, to| {
            let _ = context.socket.send(message, to);
        });
        state.initiate(now, &mut handshake, |message, to| {
            if let Err(error) = context.socket.send(message, to) {
                tracing::debug!(%error, %to, "cannot send a handshake");
            }
        });
        // Under the lock, and not before: a timer run that sees an expired link would stop them
        // again.
        context.shared.start_timers(peer);
        // Queued frames are older, so they are sent first.
        let live = state.is_live();
        if live && self.waiting.has(peer.index) {
            for frame in self.waiting.take(peer.index) {
                self.send_frame(context, &mut state, &frame);
            }
        }
        for frame in frames {
            if live {
                self.send_frame(context, &mut state, frame);
            } else {
                let dropped = self.waiting.push(peer.index, frame);
                counters.add(DropReason::NoSession, dropped);
            }
        }
    }

    /// Segments, encapsulates and encrypts one frame as read from the device.
    fn send_frame(&mut self, context: Context<'_>, state: &mut PeerState, bytes: &[u8]) {
        let (table, counters) = (context.table, &context.shared.counters);
        let (to, endpoint) = (state.tunnel, state.endpoint);
        let parsed = VnetHeader::split(bytes)
            .and_then(|(vnet, frame)| Some((frame, Cut::new(&vnet, frame)?, FrameTag::of(frame)?)));
        let Some((frame, cut, tag)) = parsed else {
            counters.count(DropReason::MalformedFrame);
            return;
        };
        let most = table.tunnel_mtu.saturating_sub(vxlan::HEADERS);
        if cut.longest() > most && !may_be_fragmented(frame) {
            counters.count(DropReason::TooBig);
            return;
        }
        let Some(endpoint) = endpoint else {
            counters.count(DropReason::NoEndpoint);
            return;
        };
        let Some(link) = state.sending() else {
            counters.count(DropReason::NoSession);
            return;
        };
        let from = table.sources.of(link.generations.0);
        let headers = Encapsulation::new(from, to, table.vxlan_port, tag.vni, flow_hash(frame));
        let mut route = Route { link, headers, endpoint, tag, sent: 0 };
        for index in 0..cut.count() {
            let result = match cut.write(index, &mut self.scratch[vxlan::HEADERS..]) {
                Some(len) if len > most => self.send_fragments(context, &mut route, len, most),
                Some(len) => self.send_packet(context, &mut route, len),
                None => Err(DropReason::MalformedFrame),
            };
            if let Err(reason) = result {
                counters.count(reason);
                break;
            }
        }
        let sent = route.sent;
        state.tx_bytes += sent;
    }

    /// Sends the frame of `len` bytes in the scratch buffer as fragments of at most `most` bytes.
    fn send_fragments(
        &mut self,
        context: Context<'_>,
        route: &mut Route<'_>,
        len: usize,
        most: usize,
    ) -> Result<(), DropReason> {
        // Rare enough to justify a separate buffer.
        let frame = self.scratch[vxlan::HEADERS..vxlan::HEADERS + len].to_vec();
        let fragments = Fragments::new(&frame, most).ok_or(DropReason::TooBig)?;
        for index in 0..fragments.count() {
            let len = fragments
                .write(index, &mut self.scratch[vxlan::HEADERS..])
                .ok_or(DropReason::MalformedFrame)?;
            self.send_packet(context, route, len)?;
        }
        Ok(())
    }

    /// Encapsulates and encrypts the frame of `len` bytes in the scratch buffer, which follows
    /// space for headers.
    fn send_packet(
        &mut self,
        context: Context<'_>,
        route: &mut Route<'_>,
        len: usize,
    ) -> Result<(), DropReason> {
        let inner = &mut self.scratch[vxlan::HEADERS..vxlan::HEADERS + len];
        // The tag's peer index is meaningless to the other host.
        inner[6..12].copy_from_slice(&FrameTag { peer: 0, ..route.tag }.mac());
        let len = vxlan::HEADERS + len;
        self.identification = self.identification.wrapping_add(1);
        route.headers.write(&mut self.scratch[..len], len, self.identification).ok_or(DropReason::TooBig)?;
        // Pad up to the tunnel's MTU only: a full packet would otherwise become too large for the
        // underlay.
        let padded = len.next_multiple_of(PADDING).min(context.table.tunnel_mtu);
        self.scratch[len..padded].fill(0);
        if self.batch.room() < padded + OVERHEAD + HANDSHAKE {
            self.batch.flush(context);
        }
        let message =
            route.link.encrypt(&self.scratch[..padded], self.batch.free()).ok_or(DropReason::NoSession)?;
        self.batch.push(message, route.endpoint);
        route.sent += message as u64;
        Ok(())
    }

    fn flush(&mut self, context: Context<'_>) {
        self.batch.flush(context);
    }
}

impl Singles {
    /// Returns whether to send a small frame before trying a second read. A batch of one frame is
    /// then no evidence, so every n-th time a second read is tried first.
    fn is_likely(&self) -> bool {
        !self.0.is_multiple_of(CHECK)
    }

    /// Records the size of a batch.
    fn count(&mut self, frames: usize) {
        self.0 = if frames == 1 { self.0 % CHECK + 1 } else { 0 };
    }
}

impl Batch {
    fn room(&self) -> usize {
        self.buffer.len() - self.used
    }

    fn free(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    /// Makes the next `len` bytes of the buffer a message.
    fn push(&mut self, len: usize, to: SocketAddr) {
        // A message has at most the tunnel packet's length, which fits 16 bits, and 32 bytes; the
        // MTU leaves room for these.
        self.queue.push(u16::try_from(len).unwrap_or(u16::MAX), to);
        self.used += len;
    }

    fn flush(&mut self, context: Context<'_>) {
        if !self.queue.is_empty() {
            let refused = self.queue.send(context.socket, &self.buffer[..self.used]);
            context.shared.counters.add(DropReason::SendRefused, refused);
            self.used = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_frames_are_sent_at_once_but_batches_are_soon_detected() {
        let mut singles = Singles::default();
        let mut likely = || {
            let likely = singles.is_likely();
            singles.count(1);
            likely
        };
        let expected = [false, true, true, true];
        assert_eq!([0; 12].map(|_| likely()), [expected; 3].concat()[..]);
        singles.count(1);
        singles.count(2);
        assert!(!singles.is_likely(), "they come in batches");
    }
}
