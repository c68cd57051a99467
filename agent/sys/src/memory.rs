//! Freed memory of this process goes back to the kernel, where glibc is the allocator; others are
//! left as they are.
//!
//! Loading the programs takes 17 MB for the kernel's own BTF, which aya reads whether it is wanted
//! or not, and then 10 MB for the parsed object. Left to itself, glibc takes such a moment for the
//! rule and keeps the latter for good.

#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "nix has no wrappers for mallopt(3) and malloc_trim(3)")
)]

/// From now on the allocator keeps no more than 128 KiB of free memory at the end of each of its
/// areas. That is what glibc begins with; without being told, it raises it to twice the largest
/// block that was ever freed.
pub fn keep_little() {
    // SAFETY: sets numbers of the allocator, under its own lock.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10)
    };
}

/// Gives back the free pages between blocks in use as well.
pub fn trim() {
    // SAFETY: the allocator locks each area while it looks for free pages.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
