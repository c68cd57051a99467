//! Neighbour solicitations and the answer to them (RFC 4861).

use mesh_ebpf_types::{Address, Mac};

use crate::checksum;
use crate::ethernet::{self, Ethernet};
use crate::ip::{ICMPV6, IPV6_HEADER};

/// Length of a solicitation without options: ICMP header, target.
pub const SOLICITATION: usize = 24;
/// Length of the answering frame: with the option that holds the target's MAC.
pub const ANSWER: usize = ethernet::HEADER + IPV6_HEADER + 32;

const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Whether an ICMP type is one of neighbour discovery: those concern one link, and never cross the overlay.
#[inline(always)]
pub const fn is_discovery(icmp_type: u8) -> bool {
    matches!(icmp_type, 133..=137)
}

/// A neighbour solicitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicitation {
    /// Who asks: the frame's source.
    pub asker: Mac,
    /// The asker's address; `::` while it looks for a duplicate of its own (RFC 4862, 5.4).
    pub sender: Address,
    /// The address that is asked for.
    pub target: Address,
}

impl Solicitation {
    /// Reads a solicitation from what follows the IPv6 header; anything else is `None`.
    #[inline(always)]
    pub fn parse(asker: Mac, sender: Address, hop_limit: u8, bytes: &[u8; SOLICITATION]) -> Option<Self> {
        let [icmp_type, code, _, _, _, _, _, _, target @ ..] = *bytes;
        if icmp_type != NEIGHBOUR_SOLICITATION || code != 0 || hop_limit != 255 {
            return None;
        }
        Some(Self { asker, sender, target: Address(target) })
    }

    /// The answer: `target` is at `mac`. Whoever looks for a duplicate has no address yet: that answer goes to all.
    #[inline(always)]
    pub fn answer(&self, mac: Mac, router: bool) -> [u8; ANSWER] {
        let mut frame = [0; ANSWER];
        let unsolicited = self.sender.is_none();
        let (to_mac, to) = if unsolicited {
            let mut all_nodes = [0; 16];
            all_nodes[0] = 0xff;
            all_nodes[1] = 0x02;
            all_nodes[15] = 1;
            (Mac([0x33, 0x33, 0, 0, 0, 1]), Address(all_nodes))
        } else {
            (self.asker, self.sender)
        };
        let header = Ethernet { destination: to_mac, source: mac, ethertype: ethernet::IPV6 }.to_bytes();
        frame[..14].copy_from_slice(&header);
        frame[14] = 0x60;
        frame[19] = 32;
        frame[20] = ICMPV6;
        frame[21] = 255;
        frame[22..38].copy_from_slice(&self.target.0);
        frame[38..54].copy_from_slice(&to.0);
        frame[54] = NEIGHBOUR_ADVERTISEMENT;
        frame[58] = OVERRIDE | if unsolicited { 0 } else { SOLICITED } | if router { ROUTER } else { 0 };
        frame[62..78].copy_from_slice(&self.target.0);
        // Option 2, target link-layer address, one unit of eight bytes.
        frame[78] = 2;
        frame[79] = 1;
        frame[80..86].copy_from_slice(&mac.0);
        let pseudo_header = u32::from(ICMPV6) + 32;
        let sum = checksum::finish(checksum::add(pseudo_header, &frame[22..]));
        frame[56..58].copy_from_slice(&sum);
        frame
    }
}
