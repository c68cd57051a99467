//! Segments the super-packets of up to 64 KiB from the kernel into frames for the wire, like a
//! network card with TSO and USO.

use super::{
    checksum,
    layers::{ETHERNET, Layers, TCP, UDP},
    virtio::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader},
};

/// FIN and PSH, which belong to the last segment only.
const FIN_PSH: u8 = 0x09;
/// CWR, which belongs to the first segment only (RFC 3168).
const CWR: u8 = 0x80;

/// A frame and how it must be segmented.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut<'f> {
    frame: &'f [u8],
    method: Method,
}

#[derive(Debug, Clone, Copy)]
enum Method {
    /// Unchanged.
    Whole,
    /// Unchanged except for the checksum: it covers everything from `start` and is stored at `at`.
    Checksum { start: usize, at: usize },
    /// Segments of `size` payload bytes.
    Segments { layers: Layers, size: usize, count: usize },
}

impl<'f> Cut<'f> {
    /// Decides how to segment `frame`, which the kernel described by `vnet`. Returns `None` if the
    /// two contradict each other or the frame is malformed.
    pub(crate) fn new(vnet: &VnetHeader, frame: &'f [u8]) -> Option<Self> {
        if frame.len() < ETHERNET {
            return None;
        }
        let method = match vnet.kind() {
            GSO_NONE if vnet.flags & NEEDS_CSUM == 0 => Method::Whole,
            GSO_NONE => {
                let start = usize::from(vnet.csum_start);
                let at = start + usize::from(vnet.csum_offset);
                if start < ETHERNET || at + 2 > frame.len() {
                    return None;
                }
                Method::Checksum { start, at }
            }
            kind => Self::segments(vnet, frame, kind)?,
        };
        Some(Self { frame, method })
    }

    fn segments(vnet: &VnetHeader, frame: &[u8], kind: u8) -> Option<Method> {
        let layers = Layers::of(frame)?;
        let fits = match kind {
            GSO_TCPV4 => layers.protocol == TCP && !layers.v6,
            GSO_TCPV6 => layers.protocol == TCP && layers.v6,
            GSO_UDP_L4 => layers.protocol == UDP,
            _ => false,
        };
        let size = usize::from(vnet.gso_size);
        let payload = frame.len() - layers.payload;
        if !fits || size == 0 || payload == 0 {
            return None;
        }
        Some(Method::Segments { layers, size, count: payload.div_ceil(size) })
    }

    /// Returns the number of resulting frames.
    pub(crate) fn count(&self) -> usize {
        match self.method {
            Method::Segments { count, .. } => count,
            _ => 1,
        }
    }

    /// Returns the length of the longest resulting frame.
    pub(crate) fn longest(&self) -> usize {
        match self.method {
            Method::Segments { layers, size, .. } => self.frame.len().min(layers.payload + size),
            _ => self.frame.len(),
        }
    }

    /// Writes frame number `index` to the start of `out` and returns its length. Returns `None` if
    /// `out` is too short or there is no such frame.
    pub(crate) fn write(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        match self.method {
            Method::Segments { layers, size, count } => self.write_segment(index, layers, size, count, out),
            _ if index != 0 => None,
            Method::Whole => {
                out.get_mut(..self.frame.len())?.copy_from_slice(self.frame);
                Some(self.frame.len())
            }
            Method::Checksum { start, at } => {
                let out = out.get_mut(..self.frame.len())?;
                out.copy_from_slice(self.frame);
                // The field holds the pseudo-header's sum, so a plain sum over it completes the
                // checksum.
                let checksum = !checksum::fold(checksum::sum(&out[start..]));
                // For UDP, zero would mean "none" (RFC 768); no other protocol has its checksum at
                // this offset.
                let checksum = if checksum == 0 && at - start == 6 { 0xffff } else { checksum };
                out[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
                Some(out.len())
            }
        }
    }

    fn write_segment(
        &self,
        index: usize,
        layers: Layers,
        size: usize,
        count: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        let (head, body) = self.frame.split_at(layers.payload);
        let offset = index.checked_mul(size)?;
        let data = body.get(offset..)?;
        let data = &data[..data.len().min(size)];
        if data.is_empty() {
            return None;
        }
        let len = head.len() + data.len();
        let out = out.get_mut(..len)?;
        out[..head.len()].copy_from_slice(head);
        out[head.len()..].copy_from_slice(data);
        layers.set_len(out, len)?;
        if !layers.v6 {
            let id = u16::from_be_bytes([head[ETHERNET + 4], head[ETHERNET + 5]]);
            let id = id.wrapping_add(u16::try_from(index).ok()?);
            out[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&id.to_be_bytes());
            checksum::set_ipv4(&mut out[ETHERNET..layers.l4]);
        }
        let l4_len = u16::try_from(len - layers.l4).ok()?;
        let l4 = &mut out[layers.l4..];
        if layers.protocol == UDP {
            l4[4..6].copy_from_slice(&l4_len.to_be_bytes());
        } else {
            let first = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            let sequence = first.wrapping_add(u32::try_from(offset).ok()?);
            l4[4..8].copy_from_slice(&sequence.to_be_bytes());
            if index + 1 != count {
                l4[13] &= !FIN_PSH;
            }
            if index != 0 {
                l4[13] &= !CWR;
            }
        }
        let at = layers.checksum_offset();
        l4[at..at + 2].fill(0);
        let sum =
            checksum::sum(l4) + checksum::pseudo_header(&out[layers.addresses()], layers.protocol, l4_len);
        let checksum = !checksum::fold(sum);
        let checksum = if checksum == 0 && layers.protocol == UDP { 0xffff } else { checksum };
        out[layers.l4 + at..layers.l4 + at + 2].copy_from_slice(&checksum.to_ne_bytes());
        Some(len)
    }
}
