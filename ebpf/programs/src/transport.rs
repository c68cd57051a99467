//! Fields of the headers above IP that balancing needs.

use crate::ip::{ICMP, ICMPV6, SCTP, TCP};

/// TCP's flags, as bits of the header's 14th byte (RFC 9293, 3.1).
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// SCTP's INIT chunk, which begins an association (RFC 9260, 3.3.2).
const INIT: u8 = 1;

/// The role of a packet in its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It begins a flow or belongs to one.
    Any,
    /// It begins a flow, whatever came before.
    Starts,
    /// It is an error message that quotes a packet of the flow, from the eighth byte on.
    Error,
    /// It belongs to no flow that can be balanced.
    None,
}

/// Returns the role of a packet whose upper layer begins with these bytes (padded with zeroes).
#[inline(always)]
pub const fn role(protocol: u8, header: [u8; 16]) -> Role {
    let [kind, ..] = header;
    match protocol {
        TCP if header[13] & (SYN | ACK) == SYN => Role::Starts,
        SCTP if header[12] == INIT => Role::Starts,
        ICMP => match kind {
            0 | 8 => Role::Any,
            3 | 11 | 12 => Role::Error,
            _ => Role::None,
        },
        ICMPV6 => match kind {
            128 | 129 => Role::Any,
            1..=4 => Role::Error,
            _ => Role::None,
        },
        _ => Role::Any,
    }
}

/// Returns the source and destination port. The identifier of an ICMP echo is the source of a
/// request and the destination of a reply.
#[inline(always)]
pub const fn ports(protocol: u8, header: [u8; 16]) -> [u8; 4] {
    let [b0, b1, b2, b3, i0, i1, ..] = header;
    match protocol {
        ICMP if b0 == 8 => [i0, i1, 0, 0],
        ICMPV6 if b0 == 128 => [i0, i1, 0, 0],
        ICMP | ICMPV6 => [0, 0, i0, i1],
        _ => [b0, b1, b2, b3],
    }
}

/// Returns the ports of the opposite direction.
#[inline(always)]
pub const fn swapped([s0, s1, d0, d1]: [u8; 4]) -> [u8; 4] {
    [d0, d1, s0, s1]
}

/// Returns the offset of the checksum in the header; `None` for protocols without a pseudo header.
#[inline(always)]
pub const fn checksum_offset(protocol: u8) -> Option<u32> {
    match protocol {
        TCP => Some(16),
        crate::ip::UDP => Some(6),
        ICMPV6 => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::UDP;

    fn tcp(flags: u8) -> [u8; 16] {
        let mut header = [0; 16];
        header[13] = flags;
        header
    }

    #[test]
    fn a_flow_starts_with_a_syn_without_ack_or_an_init() {
        assert_eq!(role(TCP, tcp(SYN)), Role::Starts);
        assert_eq!(role(TCP, tcp(SYN | 0x40)), Role::Starts);
        for flags in [SYN | ACK, ACK, FIN | ACK, RST] {
            assert_eq!(role(TCP, tcp(flags)), Role::Any);
        }
        let mut init = [0; 16];
        init[12] = 1;
        assert_eq!(role(SCTP, init), Role::Starts);
        assert_eq!(role(SCTP, [0; 16]), Role::Any);
        assert_eq!(role(UDP, [1; 16]), Role::Any);
    }

    #[test]
    fn echoes_are_identified_by_their_identifier_and_errors_by_their_type() {
        for (protocol, request, reply) in [(ICMP, 8, 0), (ICMPV6, 128, 129)] {
            let header = |kind| [kind, 0, 9, 9, 0x12, 0x34, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(ports(protocol, header(request)), [0x12, 0x34, 0, 0]);
            assert_eq!(ports(protocol, header(reply)), swapped(ports(protocol, header(request))));
            assert_eq!(role(protocol, header(request)), Role::Any);
        }
        for (protocol, kind) in [(ICMP, 3), (ICMP, 11), (ICMPV6, 1), (ICMPV6, 2)] {
            assert_eq!(role(protocol, [kind; 16]), Role::Error);
        }
        for (protocol, kind) in [(ICMP, 5), (ICMP, 9), (ICMPV6, 133), (ICMPV6, 135)] {
            assert_eq!(role(protocol, [kind; 16]), Role::None);
        }
    }
}
