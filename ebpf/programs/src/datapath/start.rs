//! The start of a frame, where it lies.

use core::ptr;

/// The start of a frame, in the frame itself.
#[derive(Clone, Copy)]
pub(super) struct Start<const N: usize>(*mut [u8; N]);

// SAFETY, for every block here: [`Start::between`] has compared the packet's length with `N`, and
// the verifier proves that no packet pointer is used after a helper that could move the packet.
impl<const N: usize> Start<N> {
    /// Of what lies between these addresses, as a context has them; `None` if that is less.
    #[inline(always)]
    pub(super) fn between(data: usize, end: usize) -> Option<Self> {
        if data + N <= end { Some(Self(ptr::with_exposed_provenance_mut(data))) } else { None }
    }

    /// A byte.
    #[inline(always)]
    pub(super) fn byte(self, offset: usize) -> u8 {
        debug_assert!(offset < N);
        unsafe { self.0.cast::<u8>().add(offset).read() }
    }

    /// Two bytes as they lie, from an even offset.
    #[inline(always)]
    pub(super) fn half(self, offset: usize) -> u16 {
        debug_assert!(offset.is_multiple_of(2) && offset + 2 <= N);
        // Frames begin at even addresses. (Where they should not, it is the processor's part to
        // read them.)
        unsafe { self.0.cast::<u8>().add(offset).cast::<u16>().read() }
    }

    /// Four bytes as they lie, from an even offset.
    #[inline(always)]
    pub(super) fn word(self, offset: usize) -> u32 {
        let ([a, b], [c, d]) = (self.half(offset).to_ne_bytes(), self.half(offset + 2).to_ne_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Overwrites the first `M` bytes, an even number.
    #[inline(always)]
    pub(super) fn store<const M: usize>(self, bytes: &[u8; M]) {
        const { assert!(M <= N && M.is_multiple_of(2)) };
        let (pairs, _) = bytes.as_chunks::<2>();
        for (index, pair) in pairs.iter().enumerate() {
            unsafe { self.0.cast::<u16>().add(index).write(u16::from_ne_bytes(*pair)) };
        }
    }
}
