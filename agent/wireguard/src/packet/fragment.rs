//! IPv4 fragmentation (RFC 791, section 3.2), for packets that are larger than the network's MTU
//! and may be fragmented. Usually the sender's kernel does this, unless the MTU of its interface
//! was raised.

use super::{checksum, layers::ETHERNET};

/// More fragments follow.
const MORE: u16 = 0x2000;
/// Mask of the offset, in units of 8 bytes.
const OFFSET: u16 = 0x1fff;
/// Don't fragment; it is in the same byte as [`MORE`].
const DONT: u8 = 0x40;
/// The bit of an option's type which marks options that every fragment must have.
const COPIED: u8 = 0x80;

/// A frame that is to be fragmented.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragments<'f> {
    /// Ethernet and IP header.
    head: &'f [u8],
    payload: &'f [u8],
    /// Payload bytes of each fragment but the last.
    size: usize,
}

/// Returns whether a frame holds a packet that may be fragmented: IPv4 without DF.
pub(crate) fn may_be_fragmented(frame: &[u8]) -> bool {
    matches!(frame.get(12..ETHERNET + 7), Some([0x08, 0x00, ip @ ..]) if ip[0] >> 4 == 4 && ip[6] & DONT == 0)
}

impl<'f> Fragments<'f> {
    /// Prepares to split a frame into frames of at most `most` bytes. Returns `None` if that is not
    /// allowed, or if the packet is malformed.
    pub(crate) fn new(frame: &'f [u8], most: usize) -> Option<Self> {
        if !may_be_fragmented(frame) {
            return None;
        }
        let ip = &frame[ETHERNET..];
        let header = usize::from(ip[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        if header < 20 || total <= header || total > ip.len() {
            return None;
        }
        let (head, payload) = frame[..ETHERNET + total].split_at(ETHERNET + header);
        let size = most.checked_sub(head.len())? / 8 * 8;
        // The last offset must fit too.
        let offset = u16::from_be_bytes([ip[6], ip[7]]) & OFFSET;
        let end = u16::try_from(usize::from(offset) * 8 + payload.len());
        (size > 0 && end.is_ok()).then_some(Self { head, payload, size })
    }

    /// Returns the number of resulting frames.
    pub(crate) fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size)
    }

    /// Writes frame number `index` to the start of `out` and returns its length. Returns `None` if
    /// `out` is too short or there is no such frame.
    pub(crate) fn write(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        let begin = index.checked_mul(self.size)?;
        let data = self.payload.get(begin..).filter(|data| !data.is_empty())?;
        let data = &data[..data.len().min(self.size)];
        let len = self.head.len() + data.len();
        let out = out.get_mut(..len)?;
        let (head, body) = out.split_at_mut(self.head.len());
        head.copy_from_slice(self.head);
        body.copy_from_slice(data);
        let ip = &mut head[ETHERNET..];
        ip[2..4].copy_from_slice(&u16::try_from(len - ETHERNET).ok()?.to_be_bytes());
        let before = u16::from_be_bytes([ip[6], ip[7]]);
        let mut field = before + u16::try_from(begin / 8).ok()?;
        if begin + data.len() < self.payload.len() {
            field |= MORE;
        }
        ip[6..8].copy_from_slice(&field.to_be_bytes());
        if begin > 0 {
            blank_options(&mut ip[20..]);
        }
        checksum::set_ipv4(ip);
        Some(len)
    }
}

/// Replaces the options that only the first fragment has by "no operation", so that the header
/// keeps its length.
fn blank_options(mut options: &mut [u8]) {
    while let Some(&kind) = options.first() {
        let len = match (kind, options.get(1)) {
            (0, _) => return,
            (1, _) => 1,
            (_, Some(&len)) if len >= 2 && usize::from(len) <= options.len() => usize::from(len),
            // Malformed; leave that to the receiver.
            _ => return,
        };
        let (option, rest) = std::mem::take(&mut options).split_at_mut(len);
        if kind & COPIED == 0 {
            option.fill(1);
        }
        options = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A frame with the given flags and offset, options and payload.
    fn frame(field: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let header = 20 + options.len();
        let mut ip = vec![0x45; header];
        ip[0] = 0x40 | u8::try_from(header / 4).unwrap();
        ip[2..4].copy_from_slice(&u16::try_from(header + payload.len()).unwrap().to_be_bytes());
        ip[6..8].copy_from_slice(&field.to_be_bytes());
        ip[20..].copy_from_slice(options);
        checksum::set_ipv4(&mut ip);
        [&[2; 12][..], &[0x08, 0x00], &ip, payload].concat()
    }

    fn all(fragments: &Fragments<'_>) -> Vec<Vec<u8>> {
        let mut out = vec![0; 1 << 16];
        let mut frames = Vec::new();
        for index in 0..fragments.count() {
            let len = fragments.write(index, &mut out).unwrap();
            frames.push(out[..len].to_vec());
        }
        assert_eq!(fragments.write(fragments.count(), &mut out), None);
        frames
    }

    proptest! {
        #[test]
        fn fragments_hold_a_whole_packet_in_order_and_none_is_too_long(
            payload in vec(any::<u8>(), 1..5000),
            (before, more) in (0..100u16, any::<bool>()),
            most in 42..2000usize,
        ) {
            let field = before | if more { MORE } else { 0 };
            let whole = frame(field, &[], &payload);
            let frames = all(&Fragments::new(&whole, most).unwrap());
            let mut seen = Vec::new();
            for (index, one) in frames.iter().enumerate() {
                prop_assert!(one.len() <= most);
                let ip = &one[ETHERNET..];
                prop_assert_eq!(checksum::fold(checksum::sum(&ip[..20])), 0xffff);
                prop_assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
                let own = u16::from_be_bytes([ip[6], ip[7]]);
                prop_assert_eq!(usize::from((own & OFFSET) - before) * 8, seen.len());
                prop_assert_eq!(own & MORE != 0, more || index + 1 < frames.len());
                seen.extend_from_slice(&ip[20..]);
            }
            prop_assert_eq!(seen, payload);
        }

        #[test]
        fn arbitrary_input_is_refused_or_fragmented_without_a_panic(
            mut bytes in vec(any::<u8>(), 0..200),
            most in 0..200usize,
        ) {
            if bytes.len() > 15 {
                (bytes[12], bytes[13], bytes[14]) = (0x08, 0x00, 0x40 | bytes[14] & 15);
            }
            if let Some(fragments) = Fragments::new(&bytes, most) {
                all(&fragments);
            }
        }
    }

    #[test]
    fn later_fragments_have_only_the_options_that_must_be_copied() {
        // Record route (7, only in the first), router alert (148, copied), end.
        let options = [7, 3, 4, 148, 4, 0, 0, 0];
        let whole = frame(0, &options, &[9; 64]);
        let frames = all(&Fragments::new(&whole, ETHERNET + 28 + 32).unwrap());
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0][ETHERNET + 20..ETHERNET + 28], options);
        assert_eq!(frames[1][ETHERNET + 20..ETHERNET + 28], [1, 1, 1, 148, 4, 0, 0, 0]);
    }

    #[test]
    fn packets_that_forbid_fragmentation_are_not_fragmented() {
        assert!(Fragments::new(&frame(0x4000, &[], &[0; 100]), 60).is_none());
        let mut v6 = frame(0, &[], &[0; 100]);
        (v6[12], v6[13], v6[14]) = (0x86, 0xdd, 0x60);
        assert!(!may_be_fragmented(&v6));
    }
}
