//! Receiving many datagrams per system call.

use std::{io, mem, net::SocketAddr, os::fd::AsRawFd, ptr};

use nix::errno::Errno;

use super::{
    address::decode,
    socket::{CONTROL, Control, UdpSocket},
};

/// Datagrams (or runs of them) received in one call.
const SLOTS: usize = 8;
/// Bytes for each.
const SLOT: usize = 1 << 16;

/// A datagram in a [`Receiver`].
#[derive(Debug, Clone, Copy)]
pub struct Datagram {
    start: usize,
    len: usize,
    /// Who sent it.
    pub from: SocketAddr,
}

/// Buffers for receiving.
pub struct Receiver {
    buffer: Vec<u8>,
    datagrams: Vec<Datagram>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self { buffer: vec![0; Self::CAPACITY], datagrams: Vec::new() }
    }
}

impl Receiver {
    /// Most bytes that one call of [`Receiver::receive`] brings.
    pub const CAPACITY: usize = SLOTS * SLOT;

    /// Takes what has arrived, without waiting; false when that was all.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<bool> {
        self.datagrams.clear();
        let mut control = [[0; CONTROL]; SLOTS];
        // SAFETY: all zeroes is valid for each: integers and null pointers.
        let (mut addresses, mut vectors, mut headers): (
            [libc::sockaddr_in6; SLOTS],
            [libc::iovec; SLOTS],
            [libc::mmsghdr; SLOTS],
        ) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        for (i, slot) in self.buffer.chunks_exact_mut(SLOT).enumerate() {
            vectors[i] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut headers[i].msg_hdr;
            header.msg_name = (&raw mut addresses[i]).cast();
            header.msg_namelen =
                libc::socklen_t::try_from(mem::size_of::<libc::sockaddr_in6>()).unwrap_or_default();
            header.msg_iov = &raw mut vectors[i];
            header.msg_iovlen = 1;
            header.msg_control = control[i].as_mut_ptr().cast();
            header.msg_controllen = mem::size_of::<Control>();
        }
        // SAFETY: all pointers are to live memory of the sizes given, and the count is the arrays'
        // length.
        let received = unsafe {
            libc::recvmmsg(
                socket.fd.as_raw_fd(),
                headers.as_mut_ptr(),
                libc::c_uint::try_from(SLOTS).unwrap_or_default(),
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let received = match Errno::result(received) {
            Ok(received) => usize::try_from(received).unwrap_or_default(),
            // ECONNREFUSED and its like: an ICMP error about something sent earlier, read off by
            // this.
            Err(Errno::EAGAIN) => return Ok(false),
            Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {
                return Ok(true);
            }
            Err(errno) => return Err(errno.into()),
        };
        for i in 0..received.min(SLOTS) {
            let total = usize::try_from(headers[i].msg_len).unwrap_or_default().min(SLOT);
            let segment = segment_size(&headers[i].msg_hdr).unwrap_or(total);
            let Some(from) = decode(&addresses[i]) else { continue };
            let mut at = 0;
            while at < total && segment > 0 {
                let len = segment.min(total - at);
                self.datagrams.push(Datagram { start: i * SLOT + at, len, from });
                at += len;
            }
        }
        Ok(received == SLOTS)
    }

    /// The datagrams of the last call, in order.
    pub fn datagrams(&self) -> &[Datagram] {
        &self.datagrams
    }

    /// A datagram's bytes.
    pub fn bytes(&self, datagram: Datagram) -> &[u8] {
        &self.buffer[datagram.start..datagram.start + datagram.len]
    }
}

/// The length of the datagrams that GRO put together, if it did.
fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel wrote the control area and its length, within the room it was given; the
    // macros stay inside.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned();
                return usize::try_from(size).ok().filter(|size| *size > 0);
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}
