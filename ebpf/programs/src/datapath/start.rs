//! The start of a frame, accessed in place.

use core::ptr;

/// The first `N` bytes of a frame, accessed in place.
#[derive(Clone, Copy)]
pub(super) struct Start<const N: usize>(*mut [u8; N]);

// SAFETY, for every block here: [`Start::between`] has compared the packet's length with `N`. The
// verifier checks that no packet pointer is used after a helper that could move the packet.
impl<const N: usize> Start<N> {
    /// Returns the start of the data between these addresses of a context; `None` if it is shorter.
    #[inline(always)]
    pub(super) fn between(data: usize, end: usize) -> Option<Self> {
        if data + N <= end { Some(Self(ptr::with_exposed_provenance_mut(data))) } else { None }
    }

    /// Returns a byte.
    #[inline(always)]
    pub(super) fn byte(self, offset: usize) -> u8 {
        debug_assert!(offset < N);
        unsafe { self.0.cast::<u8>().add(offset).read() }
    }

    /// Returns two bytes in memory order, from an even offset.
    #[inline(always)]
    pub(super) fn half(self, offset: usize) -> u16 {
        debug_assert!(offset.is_multiple_of(2) && offset + 2 <= N);
        // Frames begin at even addresses. (If one does not, the CPU handles the unaligned access.)
        unsafe { self.0.cast::<u8>().add(offset).cast::<u16>().read() }
    }

    /// Returns four bytes in memory order, from an even offset.
    #[inline(always)]
    pub(super) fn word(self, offset: usize) -> u32 {
        let ([a, b], [c, d]) = (self.half(offset).to_ne_bytes(), self.half(offset + 2).to_ne_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Overwrites the first `M` bytes; `M` is even.
    #[inline(always)]
    pub(super) fn store<const M: usize>(self, bytes: &[u8; M]) {
        const { assert!(M <= N && M.is_multiple_of(2)) };
        let (pairs, _) = bytes.as_chunks::<2>();
        for (index, pair) in pairs.iter().enumerate() {
            unsafe { self.0.cast::<u16>().add(index).write(u16::from_ne_bytes(*pair)) };
        }
    }
}
