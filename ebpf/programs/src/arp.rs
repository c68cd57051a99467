//! ARP requests and the answer to them (RFC 826).

use mesh_ebpf_types::{Address, Mac};

use crate::ethernet::{self, Ethernet};

/// Length of an ARP frame for Ethernet and IPv4.
pub const FRAME: usize = ethernet::HEADER + 28;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Who asks: the frame's source.
    pub asker: Mac,
    /// The asker's address; `0.0.0.0` while it probes for a conflict (RFC 5227).
    pub sender: [u8; 4],
    /// The address that is asked for.
    pub target: [u8; 4],
}

impl Request {
    /// Reads a request; anything else is `None`.
    #[inline(always)]
    pub const fn parse(frame: &[u8; FRAME]) -> Option<Self> {
        let [
            _,
            _,
            _,
            _,
            _,
            _,
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            _,
            _,
            0,
            1,
            8,
            0,
            6,
            4,
            0,
            1,
            _,
            _,
            _,
            _,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            _,
            _,
            _,
            _,
            _,
            _,
            t0,
            t1,
            t2,
            t3,
        ] = *frame
        else {
            return None;
        };
        Some(Self {
            asker: Mac([a0, a1, a2, a3, a4, a5]),
            sender: [s0, s1, s2, s3],
            target: [t0, t1, t2, t3],
        })
    }

    /// The address that is asked for.
    #[inline(always)]
    pub const fn address(&self) -> Address {
        Address::from_v4(self.target)
    }

    /// The answer: `target` is at `mac`.
    #[inline(always)]
    pub fn answer(&self, mac: Mac) -> [u8; FRAME] {
        let mut frame = [0; FRAME];
        let header = Ethernet { destination: self.asker, source: mac, ethertype: ethernet::ARP }.to_bytes();
        frame[..14].copy_from_slice(&header);
        frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
        frame[22..28].copy_from_slice(&mac.0);
        frame[28..32].copy_from_slice(&self.target);
        frame[32..38].copy_from_slice(&self.asker.0);
        frame[38..42].copy_from_slice(&self.sender);
        frame
    }
}
