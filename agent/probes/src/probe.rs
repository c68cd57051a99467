//! The probes that nodes send each other, and the socket that sends them.

use std::io;
use std::net::IpAddr;

use mesh_ebpf_types::{MARK, PROBE_REQUEST_VNI};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;

/// The I flag of VXLAN: the VNI is valid (RFC 7348, section 5).
const VALID_VNI: u8 = 0x08;

/// A probe: a VXLAN header and 16 bytes, of which the first eight tell one from another in a
/// capture. The reserved byte after the VNI says whether former ones were not answered.
pub(crate) fn packet(nonce: u64, unanswered: bool) -> [u8; 24] {
    let mut packet = [0; 24];
    packet[0] = VALID_VNI;
    packet[4..7].copy_from_slice(&PROBE_REQUEST_VNI.0[1..]);
    packet[7] = u8::from(unanswered);
    packet[8..16].copy_from_slice(&nonce.to_be_bytes());
    packet
}

/// The socket that probes leave by, marked as Mesh's own: its datapath lets no other to tunnels'
/// ports.
pub(crate) async fn open(address: IpAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 0)).await?;
    setsockopt(&socket, sockopt::Mark, &MARK)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_carries_the_reserved_vni() {
        assert_eq!(packet(1, false)[..8], [0x08, 0, 0, 0, 0xff, 0xff, 0xfe, 0]);
    }
}
