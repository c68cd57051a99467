//! Network namespaces.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Returns the kernel's number of a socket's network namespace (`SO_NETNS_COOKIE`, Linux 5.14),
/// which no other namespace ever gets. `ENOPROTOOPT`: the kernel has none.
#[expect(unsafe_code, reason = "neither nix nor rustix wraps this socket option")]
pub fn cookie(socket: impl AsFd) -> nix::Result<u64> {
    let mut cookie = 0u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the descriptor is open for the whole call, and the kernel writes at most `length`
    // bytes, which is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| cookie)
}

/// Returns the cookie of the calling thread's network namespace.
pub fn own_cookie() -> io::Result<u64> {
    Ok(cookie(std::os::unix::net::UnixDatagram::unbound()?)?)
}
