//! Sending many datagrams per system call.

use std::{mem, net::SocketAddr, os::fd::AsRawFd, sync::atomic::Ordering};

use nix::errno::Errno;

use super::{
    address::encode,
    socket::{CONTROL, Control, UdpSocket},
};

/// Most bytes in one send: what UDP over IPv4 can hold.
const MAX_SEND: usize = 65507;
/// Most segments in one send that all kernels take (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 64;

/// Datagrams of one batch, to be sent with as few calls as possible.
#[derive(Default)]
pub struct SendQueue {
    lens: Vec<(u16, u16)>,
    peers: Vec<SocketAddr>,
    sends: Vec<Run>,
    addresses: Vec<libc::sockaddr_in6>,
    vectors: Vec<libc::iovec>,
    control: Vec<Control>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the pointers in `vectors` and `headers` are only followed inside `SendQueue::send`, which
// sets them anew.
unsafe impl Send for SendQueue {}

/// One kernel call's worth: equal datagrams, the last perhaps shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: usize,
    bytes: usize,
    segment: u16,
    count: usize,
    peer: u16,
}

impl SendQueue {
    /// Whether it has no datagrams.
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// Adds the next `len` bytes of the buffer that [`SendQueue::send`] will be given, for `to`.
    pub fn push(&mut self, len: u16, to: SocketAddr) {
        if self.peers.last() != Some(&to) {
            self.peers.push(to);
        }
        // A batch has far fewer than 65536 datagrams, let alone changes of destination.
        self.lens.push((len, u16::try_from(self.peers.len() - 1).unwrap_or(u16::MAX)));
    }

    /// Sends all from `buffer`, where the datagrams stand without gaps, and forgets them. Returns
    /// how many datagrams the kernel refused; they are lost, as on any network.
    pub fn send(&mut self, socket: &UdpSocket, buffer: &[u8]) -> u64 {
        let gso = socket.gso.load(Ordering::Relaxed);
        self.plan(gso);
        self.prepare(socket, buffer);
        let mut refused = 0;
        let mut done = 0;
        while done < self.headers.len() {
            let left = &mut self.headers[done..];
            // SAFETY: every header points into vectors of `self` that `prepare` filled and nothing
            // has changed since, and into `buffer`, which `prepare` checked to be long enough.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.fd.as_raw_fd(),
                    left.as_mut_ptr(),
                    libc::c_uint::try_from(left.len()).unwrap_or(libc::c_uint::MAX),
                    libc::MSG_NOSIGNAL,
                )
            };
            match Errno::result(sent) {
                Ok(sent) => done += usize::try_from(sent).unwrap_or_default().max(1),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    // The error is the first message's.
                    let run = self.sends[done];
                    refused += if run.count > 1 {
                        // EIO: the device cannot checksum what GSO makes. Others (EMSGSIZE,
                        // EINVAL): a segment is larger than the path's MTU, which GSO does not
                        // fragment.
                        if errno == Errno::EIO {
                            socket.gso.store(false, Ordering::Relaxed);
                        }
                        self.send_singly(socket, buffer, run)
                    } else {
                        1
                    };
                    done += 1;
                }
            }
        }
        self.lens.clear();
        self.peers.clear();
        refused
    }

    fn send_singly(&self, socket: &UdpSocket, buffer: &[u8], run: Run) -> u64 {
        let bytes = &buffer[run.start..run.start + run.bytes];
        let to = self.peers[usize::from(run.peer)];
        bytes.chunks(usize::from(run.segment)).map(|one| u64::from(socket.send(one, to).is_err())).sum()
    }

    /// Groups the datagrams into sends.
    fn plan(&mut self, gso: bool) {
        self.sends.clear();
        let (mut start, mut i) = (0, 0);
        while let Some(&(segment, peer)) = self.lens.get(i) {
            let size = usize::from(segment);
            let run = self.lens[i..].iter().take_while(|next| **next == (segment, peer)).count();
            let most = if gso { (MAX_SEND / size.max(1)).clamp(1, MAX_SEGMENTS) } else { 1 };
            // What does not fit one send is split evenly: two of 35 KB rather than 65 and 5.
            let each = run.div_ceil(run.div_ceil(most));
            let mut left = run;
            while left > 0 {
                let mut count = each.min(left);
                let mut bytes = count * size;
                left -= count;
                i += count;
                if let Some(&(tail, to)) = self.lens.get(i)
                    && left == 0
                    && to == peer
                    && tail < segment
                    && count < most
                    && bytes + usize::from(tail) <= MAX_SEND
                {
                    bytes += usize::from(tail);
                    count += 1;
                    i += 1;
                }
                self.sends.push(Run { start, bytes, segment, count, peer });
                start += bytes;
            }
        }
    }

    /// Builds what the kernel reads.
    fn prepare(&mut self, socket: &UdpSocket, buffer: &[u8]) {
        let encoded = self.peers.iter().map(|peer| encode(*peer, socket.v6));
        let address_len = encoded.clone().next().map_or(0, |(_, len)| len);
        self.addresses.clear();
        self.addresses.extend(encoded.map(|(address, _)| address));
        self.control.clear();
        self.control.resize(self.sends.len(), [0; CONTROL]);
        self.vectors.clear();
        self.vectors.extend(self.sends.iter().map(|send| {
            let run = &buffer[send.start..send.start + send.bytes];
            libc::iovec { iov_base: run.as_ptr().cast_mut().cast(), iov_len: run.len() }
        }));
        self.headers.clear();
        for (i, send) in self.sends.iter().enumerate() {
            // SAFETY: all zeroes is a valid `mmsghdr`: integers and null pointers.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = (&raw mut self.addresses[usize::from(send.peer)]).cast();
            header.msg_hdr.msg_namelen = address_len;
            header.msg_hdr.msg_iov = &raw mut self.vectors[i];
            header.msg_hdr.msg_iovlen = 1;
            if send.count > 1 {
                header.msg_hdr.msg_control = self.control[i].as_mut_ptr().cast();
                // SAFETY: CMSG_SPACE and CMSG_LEN are plain arithmetic. The control area is aligned
                // and, with 64 bytes, larger than CMSG_SPACE(2) = 24, so the first header and its
                // data lie within it.
                unsafe {
                    header.msg_hdr.msg_controllen = libc::CMSG_SPACE(2) as usize;
                    let control = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
                    (*control).cmsg_level = libc::SOL_UDP;
                    (*control).cmsg_type = libc::UDP_SEGMENT;
                    (*control).cmsg_len = libc::CMSG_LEN(2) as usize;
                    libc::CMSG_DATA(control).cast::<u16>().write_unaligned(send.segment);
                }
            }
            self.headers.push(header);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(lens: &[(u16, u16)]) -> Vec<(usize, usize)> {
        let mut queue = SendQueue { lens: lens.to_vec(), ..SendQueue::default() };
        queue.plan(true);
        queue.sends.iter().map(|send| (send.count, send.bytes)).collect()
    }

    #[test]
    fn equal_datagrams_are_sent_together_with_one_shorter_at_the_end() {
        assert_eq!(planned(&[(1400, 0), (1400, 0), (300, 0), (1400, 0)]), [(3, 3100), (1, 1400)]);
    }

    #[test]
    fn a_run_that_is_too_long_is_split_evenly() {
        assert_eq!(planned(&[(1452, 0); 48]), [(24, 34848), (24, 34848)]);
        assert_eq!(planned(&[(100, 0); 65]), [(33, 3300), (32, 3200)]);
    }

    #[test]
    fn datagrams_for_different_hosts_are_never_sent_together() {
        assert_eq!(planned(&[(1400, 0), (1400, 1), (300, 0)]), [(1, 1400), (1, 1400), (1, 300)]);
    }
}
