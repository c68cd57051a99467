//! Whether the running kernel can do what direct encapsulation takes: tried on a packet, not
//! concluded from a version.

use std::io;

use mesh_sys::bpf::{Instruction, load_classifier, test_run};

/// Outer Ethernet, IPv4, UDP and VXLAN headers, in bytes.
const OUTER: i32 = 50;
/// `BPF_ADJ_ROOM_MAC`.
const MAC: i32 = 1;
/// `BPF_F_ADJ_ROOM_FIXED_GSO`.
const FIXED_GSO: u64 = 1;
const SHRINK: i32 = 1;
/// With it `ENCAP_L3_IPV4`, `ENCAP_L4_UDP`, `ENCAP_L2_ETH`, and an inner Ethernet header of 14
/// bytes (`ENCAP_L2`).
const GROW: u64 = FIXED_GSO | 1 << 1 | 1 << 4 | 1 << 6 | 14 << 56;

/// Lets the kernel make room for outer headers in a packet and take it away again, with the flags
/// that the programs use. The error is the kernel's: `EINVAL` where it does not know a flag,
/// `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`.
pub fn direct_encapsulation() -> io::Result<()> {
    grow_and_shrink(GROW)
}

fn grow_and_shrink(grow: u64) -> io::Result<()> {
    let program = load_classifier(&program(grow))?;
    // Ethernet, IPv4 and UDP: an empty datagram, padded.
    let mut packet = [0; 60];
    packet[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0]);
    packet[16..24].copy_from_slice(&[0, 28, 0, 0, 0x40, 0, 64, 17]);
    packet[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    packet[38..40].copy_from_slice(&[0, 8]);
    match test_run(&program, &packet)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.cast_signed().wrapping_neg())),
    }
}

/// Returns what the first `bpf_skb_adjust_room` that fails returns, or 0.
fn program(grow: u64) -> [Instruction; 14] {
    const ADJUST_ROOM: i32 = 50;
    let [g0, g1, g2, g3, g4, g5, g6, g7] = grow.to_ne_bytes();
    let (low, high) = (i32::from_ne_bytes([g0, g1, g2, g3]), i32::from_ne_bytes([g4, g5, g6, g7]));
    [
        Instruction::new(0xbf, 6, 1, 0, 0),           // r6 = r1, the context
        Instruction::new(0xb7, 2, 0, 0, OUTER),       // r2 = OUTER
        Instruction::new(0xb7, 3, 0, 0, MAC),         // r3 = MAC
        Instruction::new(0x18, 4, 0, 0, low),         // r4 = grow, in two slots
        Instruction::new(0, 0, 0, 0, high),           //
        Instruction::new(0x85, 0, 0, 0, ADJUST_ROOM), // call
        Instruction::new(0x15, 0, 0, 1, 0),           // if r0 == 0 skip one
        Instruction::new(0x95, 0, 0, 0, 0),           // exit
        Instruction::new(0xbf, 1, 6, 0, 0),           // r1 = r6
        Instruction::new(0xb7, 2, 0, 0, -OUTER),      // r2 = -OUTER
        Instruction::new(0xb7, 3, 0, 0, MAC),         // r3 = MAC
        Instruction::new(0xb7, 4, 0, 0, SHRINK),      // r4 = FIXED_GSO
        Instruction::new(0x85, 0, 0, 0, ADJUST_ROOM), // call
        Instruction::new(0x95, 0, 0, 0, 0),           // exit
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_can_encapsulate_directly() {
        direct_encapsulation().expect("it can");
    }

    #[test]
    fn a_flag_that_the_kernel_does_not_know_is_refused_with_its_error() {
        let error = grow_and_shrink(GROW | 1 << 40).expect_err("no kernel knows this flag");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
