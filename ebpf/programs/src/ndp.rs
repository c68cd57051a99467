//! Neighbour solicitations and their answers (RFC 4861).

use mesh_ebpf_types::{Address, Mac};

use crate::checksum;
use crate::headers::{self, Buffer};
use crate::ip::ICMPV6;

/// Length of a frame with a solicitation without options: ICMP header, target.
pub const SOLICITATION: usize = headers::V6 + 24;
/// Length of the answer: a frame with the option that holds the target's MAC.
pub const ANSWER: usize = headers::V6 + 32;

const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Address = Address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// Returns whether an ICMP type is one of neighbour discovery. Such messages concern one link, and
/// never cross the overlay.
#[inline(always)]
pub const fn is_discovery(icmp_type: u8) -> bool {
    matches!(icmp_type, 133..=137)
}

/// A frame with a neighbour solicitation directly after the IPv6 header, and room for the answer.
pub type Solicitation = Buffer<ANSWER>;

impl Solicitation {
    /// Returns whether it is a solicitation.
    #[inline(always)]
    pub const fn is_solicitation(&self) -> bool {
        let [next, hop_limit] = self.half(20);
        let [icmp_type, code] = self.half(54);
        next == ICMPV6 && hop_limit == 255 && icmp_type == NEIGHBOUR_SOLICITATION && code == 0
    }

    /// Returns the requested address.
    #[inline(always)]
    pub const fn target(&self) -> Address {
        self.address(62)
    }

    /// Turns the frame into the answer: the target has the MAC `mac`. A sender that checks for
    /// duplicates of its address has no address yet (RFC 4862, 5.4), so that answer goes to all
    /// nodes.
    #[inline(always)]
    pub fn answer(&mut self, mac: Mac, router: bool) {
        let (asker, sender, target) = (self.mac(6), self.address(22), self.target());
        let duplicate = sender.is_none();
        let flags = OVERRIDE | if duplicate { 0 } else { SOLICITED } | if router { ROUTER } else { 0 };
        self.set_mac(0, if duplicate { ALL_NODES_MAC } else { asker });
        self.set_mac(6, mac);
        self.set_word(14, [0x60, 0, 0, 0]);
        self.set_word(18, [0, 32, ICMPV6, 255]);
        self.set_address(22, target);
        self.set_address(38, if duplicate { ALL_NODES } else { sender });
        self.set_word(54, [NEIGHBOUR_ADVERTISEMENT, 0, 0, 0]);
        self.set_word(58, [flags, 0, 0, 0]);
        // Option 2, target link-layer address, one unit of eight bytes.
        self.bytes[78] = 2;
        self.bytes[79] = 1;
        self.set_mac(80, mac);
        let pseudo_header = u32::from(ICMPV6) + 32;
        let [high, low] = checksum::finish(checksum::add(pseudo_header, &self.bytes[22..]));
        self.bytes[56] = high;
        self.bytes[57] = low;
    }

    #[inline(always)]
    const fn set_address(&mut self, offset: usize, Address(address): Address) {
        let mut i = 0;
        while i < 16 {
            self.bytes[offset + i] = address[i];
            i += 1;
        }
    }
}
