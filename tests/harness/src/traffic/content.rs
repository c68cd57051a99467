//! What transfers consist of: bytes that both ends can make, so that what arrived can be told from
//! what was sent.

use std::fmt::Write as _;

/// Bytes that are made, written and read at a time. Both ends use the same, for content is made in
/// such pieces.
pub(super) const CHUNK: usize = 256 << 10;

/// Bytes without a pattern that a shift or swap would leave intact (xorshift64*).
#[derive(Debug)]
pub(super) struct Content(u64);

impl Content {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            word.copy_from_slice(&self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
