//! ARP requests and their answers (RFC 826).

use mesh_ebpf_types::{Address, Mac};

use crate::headers::{Buffer, ETHERNET};

/// Length of an ARP frame for Ethernet and IPv4.
pub const FRAME: usize = ETHERNET + 28;

const ETHERNET_IPV4: [u8; 4] = [0, 1, 8, 0];
const LENGTHS_REQUEST: [u8; 4] = [6, 4, 0, 1];
const LENGTHS_ANSWER: [u8; 4] = [6, 4, 0, 2];

/// Frame with an ARP request.
pub type Request = Buffer<FRAME>;

impl Request {
    /// Returns whether it is a request.
    #[inline(always)]
    pub const fn is_request(&self) -> bool {
        u32::from_ne_bytes(self.word(14)) == u32::from_ne_bytes(ETHERNET_IPV4)
            && u32::from_ne_bytes(self.word(18)) == u32::from_ne_bytes(LENGTHS_REQUEST)
    }

    /// Returns the requested address.
    #[inline(always)]
    pub const fn target(&self) -> Address {
        Address::from_v4(self.word(38))
    }

    /// Turns the frame into the answer to its sender: the target has the MAC `mac`.
    #[inline(always)]
    pub const fn answer(&mut self, mac: Mac) {
        let (asker, target, sender) = (self.mac(6), self.word(38), self.word(28));
        self.set_mac(0, asker);
        self.set_mac(6, mac);
        self.set_word(18, LENGTHS_ANSWER);
        self.set_mac(22, mac);
        self.set_word(28, target);
        self.set_mac(32, asker);
        self.set_word(38, sender);
    }
}
