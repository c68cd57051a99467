//! The tag in the source MAC of frames on the engine's device: network and peer.

/// A VXLAN network identifier's largest value.
const VNI_MAX: u32 = 0x00ff_ffff;

/// Network and peer of a frame on the device: source MAC `{0x02, VNI (3 bytes), peer index (2
/// bytes)}`, both in network order. The peer is the receiving node of outgoing frames, and the
/// sending node of incoming ones. The destination MAC is the inner frame's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrameTag {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Index of the peer in the engine's configuration.
    pub peer: u16,
}

impl FrameTag {
    /// Returns the MAC that encodes this tag; drops bits of the VNI above the 24th.
    pub fn mac(self) -> [u8; 6] {
        let vni = (self.vni & VNI_MAX).to_be_bytes();
        let peer = self.peer.to_be_bytes();
        [0x02, vni[1], vni[2], vni[3], peer[0], peer[1]]
    }

    /// Decodes a MAC; `None` if it has another form.
    pub fn from_mac(mac: [u8; 6]) -> Option<Self> {
        (mac[0] == 0x02).then(|| Self {
            vni: u32::from_be_bytes([0, mac[1], mac[2], mac[3]]),
            peer: u16::from_be_bytes([mac[4], mac[5]]),
        })
    }

    /// Reads the source MAC of an Ethernet frame.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        Self::from_mac(*frame.get(6..)?.first_chunk()?)
    }
}
