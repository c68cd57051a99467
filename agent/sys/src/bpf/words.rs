//! An array map of words that is read and written through memory, where each word changes at once.
//! Other ways to write an array copy whole elements, of which a program may see half.

#![expect(unsafe_code, reason = "mmap(2) takes and returns addresses")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::{SysconfVar, sysconf};

/// So many words are copied at once.
const AT_ONCE: usize = 1 << 18;

/// The array. It must have been made for that (`BPF_F_MMAPABLE`).
///
/// Only what is read or written is mapped, and only meanwhile: the kernel enters every page of such
/// a mapping when it is made, touched or not, and each counts as resident memory of this process.
#[derive(Debug)]
pub struct Words {
    array: OwnedFd,
    length: usize,
}

impl Words {
    /// The array of a map with room for so many words.
    pub const fn new(array: OwnedFd, length: usize) -> Self {
        Self { array, length }
    }

    /// Copies all words of another array that fit.
    pub fn copy(&self, other: &Self) -> io::Result<()> {
        let length = self.length.min(other.length);
        for first in (0..length).step_by(AT_ONCE) {
            let count = AT_ONCE.min(length - first);
            if let (Some(to), Some(from)) = (self.window(first, count)?, other.window(first, count)?) {
                for (place, word) in to.words().iter().zip(from.words()) {
                    place.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// The array itself.
    pub fn array(&self) -> BorrowedFd<'_> {
        self.array.as_fd()
    }

    /// How many words there are.
    pub const fn count(&self) -> usize {
        self.length
    }

    /// Writes words from index `first` on. `false`, and nothing written, past the end.
    pub fn write(&self, first: usize, words: &[u32]) -> io::Result<bool> {
        let Some(window) = self.window(first, words.len())? else { return Ok(false) };
        for (place, word) in window.words().iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
        Ok(true)
    }

    /// Reads words from index `first` on. `None` past the end.
    pub fn read(&self, first: usize, length: usize) -> io::Result<Option<Vec<u32>>> {
        let Some(window) = self.window(first, length)? else { return Ok(None) };
        Ok(Some(window.words().iter().map(|place| place.load(Ordering::Relaxed)).collect()))
    }

    /// Maps the pages with these words. `None` past the end.
    fn window(&self, first: usize, length: usize) -> io::Result<Option<Window>> {
        if first >= self.length || length > self.length - first {
            return Ok(None);
        }
        let page = sysconf(SysconfVar::PAGE_SIZE)?.ok_or(io::ErrorKind::Unsupported)?;
        let page = usize::try_from(page).map_err(io::Error::other)?;
        let begin = first * size_of::<u32>();
        let skipped = begin % page;
        // A mapping has one byte at least.
        let size = (skipped + length * size_of::<u32>()).max(1);
        let offset = libc::off_t::try_from(begin - skipped).map_err(io::Error::other)?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.array.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Some(Window { start, size, skipped, length }))
    }
}

/// Words that are mapped until this is dropped.
struct Window {
    start: NonNull<libc::c_void>,
    /// Bytes from the start of the first page to the end of the last word.
    size: usize,
    /// Bytes before the first word.
    skipped: usize,
    length: usize,
}

impl Window {
    fn words(&self) -> &[AtomicU32] {
        // SAFETY: so many words, after so many bytes of whole words, are mapped from `start`, a
        // page's beginning, until `drop`. Others read and write them as atomic words too.
        unsafe { std::slice::from_raw_parts(self.start.byte_add(self.skipped).cast().as_ptr(), self.length) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: mapped by `Words::window` with this size; nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.size) };
    }
}
