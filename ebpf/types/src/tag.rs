//! The tag of a frame on the WireGuard engine's device: its source MAC.

use crate::{Mac, Vni};

/// Network and node of a frame on `meshwg0`: source MAC `{0x02, VNI (3 bytes), peer (2 bytes)}`, in
/// network order. The peer is the receiving node of outgoing frames, and the sending node of
/// incoming ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameTag {
    /// The network.
    pub vni: Vni,
    /// Index of the node among the engine's peers.
    pub peer: u16,
}

impl FrameTag {
    const KIND: u8 = 0x02;

    /// Returns the MAC that encodes this tag.
    #[inline]
    pub const fn mac(self) -> Mac {
        let [_, v0, v1, v2] = self.vni.0;
        let [p0, p1] = self.peer.to_be_bytes();
        Mac([Self::KIND, v0, v1, v2, p0, p1])
    }

    /// Decodes a MAC; `None` if it has another form.
    #[inline]
    pub const fn from_mac(Mac([kind, v0, v1, v2, p0, p1]): Mac) -> Option<Self> {
        if kind == Self::KIND {
            Some(Self { vni: Vni([0, v0, v1, v2]), peer: u16::from_be_bytes([p0, p1]) })
        } else {
            None
        }
    }
}
