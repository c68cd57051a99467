//! Waits for input or for a wake-up from another thread.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

/// A flag that wakes a waiting thread.
#[derive(Debug)]
pub(crate) struct Wake(EventFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?))
    }

    /// Wakes the thread that waits on it, now or at its next wait.
    pub(crate) fn wake(&self) {
        // Fails only after 2^64-2 calls without a `clear`.
        let _ = self.0.write(1);
    }

    /// Clears earlier wake-ups.
    pub(crate) fn clear(&self) {
        // EAGAIN: there were none.
        let _ = self.0.read();
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Readiness of the three descriptors.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ready {
    pub(crate) tap: bool,
    pub(crate) socket: bool,
    pub(crate) wake: bool,
}

impl Ready {
    /// Returns whether any is ready.
    pub(crate) fn any(self) -> bool {
        self.tap || self.socket || self.wake
    }
}

/// Waits until one of the descriptors is readable.
pub(crate) fn wait(tap: BorrowedFd<'_>, socket: BorrowedFd<'_>, wake: &Wake) -> io::Result<Ready> {
    ready(tap, socket, wake, PollTimeout::NONE)
}

/// Returns which of the descriptors are readable now.
pub(crate) fn poll_now(tap: BorrowedFd<'_>, socket: BorrowedFd<'_>, wake: &Wake) -> io::Result<Ready> {
    ready(tap, socket, wake, PollTimeout::ZERO)
}

fn ready(
    tap: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    wake: &Wake,
    timeout: PollTimeout,
) -> io::Result<Ready> {
    let mut fds = [tap, socket, wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let [tap, socket, wake] = fds.map(|fd| fd.any().unwrap_or(true));
    Ok(Ready { tap, socket, wake })
}
