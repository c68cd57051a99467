//! Frames that wait for a handshake, with limits.

use std::collections::{BTreeMap, VecDeque};

/// Bytes that may wait for one peer: a few super-packets.
const MAX_BYTES: usize = 1 << 20;
/// Frames that may wait for one peer.
const MAX_FRAMES: usize = 512;

/// Frames by peer index, oldest first.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queues: BTreeMap<u16, Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Waiting {
    /// Adds a frame. Drops the oldest ones if there are too many; returns their number.
    pub(super) fn push(&mut self, peer: u16, frame: &[u8]) -> u64 {
        let queue = self.queues.entry(peer).or_default();
        queue.frames.push_back(frame.to_vec());
        queue.bytes += frame.len();
        let mut dropped = 0;
        while queue.bytes > MAX_BYTES || queue.frames.len() > MAX_FRAMES {
            let Some(oldest) = queue.frames.pop_front() else { break };
            queue.bytes -= oldest.len();
            dropped += 1;
        }
        dropped
    }

    /// Returns whether frames wait for a peer.
    pub(super) fn has(&self, peer: u16) -> bool {
        self.queues.contains_key(&peer)
    }

    /// Returns the peers for which frames wait.
    pub(super) fn peers(&self) -> Vec<u16> {
        self.queues.keys().copied().collect()
    }

    /// Removes and returns all frames of a peer.
    pub(super) fn take(&mut self, peer: u16) -> VecDeque<Vec<u8>> {
        self.queues.remove(&peer).unwrap_or_default().frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_frames_are_bounded_and_the_oldest_are_dropped_first() {
        let mut waiting = Waiting::default();
        let dropped: u64 = (0..600u16).map(|i| waiting.push(1, &i.to_be_bytes())).sum();
        assert_eq!(dropped, 600 - MAX_FRAMES as u64);
        assert_eq!(waiting.take(1).front(), Some(&88u16.to_be_bytes().to_vec()));
        assert!(!waiting.has(1));
        let dropped: u64 = (0..20).map(|_| waiting.push(2, &vec![0; 65536])).sum();
        assert_eq!(dropped, 4, "a mebibyte is what one peer may have");
        assert_eq!(waiting.push(3, b"x"), 0, "each peer has its own share");
    }
}
