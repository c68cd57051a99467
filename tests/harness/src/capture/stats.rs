//! The packet socket's own count of what it had no room for.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use crate::{Error, Result};

/// Frames lost since the socket was opened or last asked (`PACKET_STATISTICS`, packet(7)).
#[expect(unsafe_code, reason = "no safe wrapper exists for this socket option")]
pub(super) fn lost(socket: &OwnedFd) -> Result<u32> {
    let mut stats = nix::libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len: nix::libc::socklen_t = 8;
    // SAFETY: `stats` is a plain struct of two u32, of which `len` tells the size; both outlive the
    // call.
    let result = unsafe {
        nix::libc::getsockopt(
            socket.as_raw_fd(),
            nix::libc::SOL_PACKET,
            nix::libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(stats.tp_drops)
    } else {
        Err(Error::system("read packet statistics")(io::Error::last_os_error()))
    }
}
