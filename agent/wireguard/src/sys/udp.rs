//! A UDP socket for both address families that sends and receives many datagrams per system call:
//! `sendmmsg` and `recvmmsg` with UDP GSO and GRO (udp(7)).
#![expect(unsafe_code, reason = "sendmmsg and recvmmsg with a control message of its own for each message")]

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use mesh_ebpf_types::MARK;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket,
        sockopt::{Ipv6V6Only, Mark, RcvBuf, RcvBufForce, ReusePort, SndBuf, SndBufForce, UdpGroSegment},
    },
};

/// What the kernel may hold for us, so that a burst does not drown while we encrypt.
const SOCKET_BUFFER: usize = 8 << 20;
/// Most bytes in one send: what UDP over IPv4 can hold.
const MAX_SEND: usize = 65507;
/// Most segments in one send that all kernels take (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 64;
/// Datagrams (or runs of them) received in one call.
const SLOTS: usize = 8;
/// Bytes for each.
const SLOT: usize = 1 << 16;
/// 8-byte words of room for control messages.
const CONTROL: usize = 8;

/// The socket.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    fd: OwnedFd,
    v6: bool,
    /// Whether UDP GSO works; found out by sending.
    gso: AtomicBool,
}

impl UdpSocket {
    /// Binds `port` on all addresses of both families (of IPv4 alone where the kernel has no IPv6),
    /// in the calling thread's network namespace. `shared`: other sockets of this process are to
    /// have the same port.
    pub(crate) fn bind(port: u16, shared: bool) -> io::Result<Self> {
        let open = |family| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        let (fd, v6) = match open(AddressFamily::Inet6) {
            Ok(fd) => (fd, true),
            Err(Errno::EAFNOSUPPORT) => (open(AddressFamily::Inet)?, false),
            Err(errno) => return Err(errno.into()),
        };
        if shared {
            setsockopt(&fd, ReusePort, &true)?;
        }
        if v6 {
            setsockopt(&fd, Ipv6V6Only, &false)?;
            bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)))?;
        } else {
            bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
        }
        // The forced form needs CAP_NET_ADMIN over the first namespace; the other is capped by a
        // sysctl.
        if setsockopt(&fd, RcvBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&fd, RcvBuf, &SOCKET_BUFFER)?;
        }
        if setsockopt(&fd, SndBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&fd, SndBuf, &SOCKET_BUFFER)?;
        }
        // Without GRO (before 5.0) datagrams come one by one.
        let _ = setsockopt(&fd, UdpGroSegment, &true);
        let socket = Self { fd, v6, gso: AtomicBool::new(true) };
        socket.allow_fragments()?;
        socket.mark()?;
        Ok(socket)
    }

    /// A socket that another process bound.
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let address: nix::sys::socket::SockaddrStorage = nix::sys::socket::getsockname(fd.as_raw_fd())?;
        let socket = Self { fd, v6: address.as_sockaddr_in6().is_some(), gso: AtomicBool::new(true) };
        // An engine of before may not have marked it.
        socket.mark()?;
        Ok(socket)
    }

    /// Marks what it sends as Mesh's own: the datapath lets nothing else to tunnels' ports. Without
    /// the privilege for it there is no such datapath either.
    fn mark(&self) -> io::Result<()> {
        match setsockopt(&self.fd, Mark, &MARK) {
            Ok(()) | Err(Errno::EPERM) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Another handle of the same socket.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Clears "don't fragment" on IPv4, as the kernel's WireGuard does: a path whose MTU is less
    /// than that of the first hop then costs speed, not the connection.
    fn allow_fragments(&self) -> io::Result<()> {
        let value = libc::IP_PMTUDISC_DONT;
        let size = libc::socklen_t::try_from(mem::size_of_val(&value)).unwrap_or_default();
        // SAFETY: the kernel reads `size` bytes of an `int` that lives past the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                (&raw const value).cast(),
                size,
            )
        };
        Errno::result(result)?;
        Ok(())
    }

    /// Sends one datagram.
    pub(crate) fn send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        let (address, len) = encode(to, self.v6);
        // SAFETY: buffer and address live past the call, with the sizes given.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                datagram.as_ptr().cast(),
                datagram.len(),
                libc::MSG_NOSIGNAL,
                (&raw const address).cast(),
                len,
            )
        };
        Errno::result(sent)?;
        Ok(())
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An address as the kernel wants it, on a socket of both families as IPv4-mapped IPv6.
fn encode(address: SocketAddr, v6: bool) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: all zeroes is a valid `sockaddr_in6`: it holds integers only.
    let mut out: libc::sockaddr_in6 = unsafe { mem::zeroed() };
    let size = |bytes: usize| libc::socklen_t::try_from(bytes).unwrap_or_default();
    if let (SocketAddr::V4(v4), false) = (address, v6) {
        let v4 = libc::sockaddr_in {
            sin_family: family(libc::AF_INET),
            sin_port: v4.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: `sockaddr_in6` is larger than `sockaddr_in` and at least as aligned.
        unsafe { ptr::write((&raw mut out).cast(), v4) };
        return (out, size(mem::size_of::<libc::sockaddr_in>()));
    }
    let (ip, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
    };
    out.sin6_family = family(libc::AF_INET6);
    out.sin6_port = address.port().to_be();
    out.sin6_addr.s6_addr = ip.octets();
    out.sin6_scope_id = scope;
    (out, size(mem::size_of::<libc::sockaddr_in6>()))
}

fn family(family: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or_default()
}

/// The reverse of [`encode`].
fn decode(address: &libc::sockaddr_in6) -> Option<SocketAddr> {
    let port = u16::from_be(address.sin6_port);
    if address.sin6_family == family(libc::AF_INET) {
        // SAFETY: the family says that the kernel wrote a `sockaddr_in`, which is smaller and no
        // more aligned.
        let v4: libc::sockaddr_in = unsafe { ptr::read(ptr::from_ref(address).cast()) };
        return Some(SocketAddr::new(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()).into(), port));
    }
    if address.sin6_family != family(libc::AF_INET6) {
        return None;
    }
    let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
    Some(match ip.to_ipv4_mapped() {
        Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
        None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, address.sin6_scope_id)),
    })
}

/// A control area, aligned as control messages must be.
type Control = [u64; CONTROL];

/// Datagrams of one batch, to be sent with as few calls as possible.
pub(crate) struct SendQueue {
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
    pub(crate) fn new() -> Self {
        Self {
            lens: Vec::new(),
            peers: Vec::new(),
            sends: Vec::new(),
            addresses: Vec::new(),
            vectors: Vec::new(),
            control: Vec::new(),
            headers: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// Adds the next `len` bytes of the buffer that [`SendQueue::send`] will be given, for `to`.
    pub(crate) fn push(&mut self, len: u16, to: SocketAddr) {
        if self.peers.last() != Some(&to) {
            self.peers.push(to);
        }
        // A batch has far fewer than 65536 datagrams, let alone changes of destination.
        self.lens.push((len, u16::try_from(self.peers.len() - 1).unwrap_or(u16::MAX)));
    }

    /// Sends all from `buffer`, where the datagrams stand without gaps, and forgets them. Returns
    /// how many datagrams the kernel refused; they are lost, as on any network.
    pub(crate) fn send(&mut self, socket: &UdpSocket, buffer: &[u8]) -> u64 {
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

/// A datagram in a [`Receiver`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagram {
    start: usize,
    len: usize,
    /// Who sent it.
    pub(crate) from: SocketAddr,
}

/// Buffers for receiving.
pub(crate) struct Receiver {
    buffer: Vec<u8>,
    datagrams: Vec<Datagram>,
}

impl Receiver {
    /// Most bytes that one call of [`Receiver::receive`] brings.
    pub(crate) const CAPACITY: usize = SLOTS * SLOT;

    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; Self::CAPACITY], datagrams: Vec::new() }
    }

    /// Takes what has arrived, without waiting; false when that was all.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<bool> {
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
    pub(crate) fn datagrams(&self) -> &[Datagram] {
        &self.datagrams
    }

    /// A datagram's bytes.
    pub(crate) fn bytes(&self, datagram: Datagram) -> &[u8] {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(lens: &[(u16, u16)]) -> Vec<(usize, usize)> {
        let mut queue = SendQueue::new();
        queue.lens = lens.to_vec();
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

    #[test]
    fn addresses_of_both_families_survive_both_kinds_of_socket() {
        let v4: SocketAddr = "192.0.2.1:51820".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:51820".parse().unwrap();
        assert_eq!(decode(&encode(v4, true).0), Some(v4));
        assert_eq!(decode(&encode(v4, false).0), Some(v4));
        assert_eq!(decode(&encode(v6, true).0), Some(v6));
    }
}
