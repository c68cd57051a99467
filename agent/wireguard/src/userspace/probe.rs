//! Probes of the path that WireGuard messages take: a host's firewall drops both or neither.

use std::net::SocketAddr;

use mesh_ebpf_types::{PROBE_REPLY_VNI, PROBE_REQUEST_VNI, Vni};

use super::transmit::Context;

/// A VXLAN header and 16 bytes: shorter than any message of WireGuard.
const LENGTH: usize = 24;
/// Flags of the VXLAN header; no WireGuard message begins with this byte.
const VALID_VNI: u8 = 0x08;

/// Answers a probe of a peer's node, at the engine's port there. Returns `false` if the message is
/// not a probe.
pub(super) fn answer(message: &[u8], from: SocketAddr, context: Context<'_>) -> bool {
    let Some(reply) = reply(message) else { return false };
    let is_peers = |peer: &super::peer::Peer| peer.lock().configured.is_some_and(|at| at.ip() == from.ip());
    if context.table.peers.values().any(|peer| is_peers(peer)) {
        let to = SocketAddr::new(from.ip(), context.table.listen_port);
        let _ = context.socket.send(&reply, to);
    }
    true
}

/// Returns the answer to a message, if that is a probe.
fn reply(message: &[u8]) -> Option<[u8; LENGTH]> {
    let header = |Vni([_, a, b, c])| [VALID_VNI, 0, 0, 0, a, b, c, 0];
    let mut reply: [u8; LENGTH] = message.try_into().ok()?;
    let (start, _) = reply.split_first_chunk_mut::<8>()?;
    // The last byte of the header contains flags of the sender.
    if start[..7] != header(PROBE_REQUEST_VNI)[..7] {
        return None;
    }
    *start = header(PROBE_REPLY_VNI);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_probes_have_an_answer() {
        let mut probe = [7; LENGTH];
        probe[..8].copy_from_slice(&[8, 0, 0, 0, 0xff, 0xff, 0xfe, 1]);
        let answer = reply(&probe).unwrap();
        assert_eq!(answer[..8], [8, 0, 0, 0, 0xff, 0xff, 0xff, 0]);
        assert_eq!(answer[8..], probe[8..]);
        assert_eq!(reply(&answer), None);
        assert_eq!(reply(&probe[..23]), None);
    }
}
