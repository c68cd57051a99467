//! Programs for the host's own sockets. Packets from them to a published port at `127.0.0.1`, `::1`
//! or the host's own addresses would never leave the host's stack. So the destination is replaced
//! by an address that is routed to `mesh0`, where the `host` program handles the packets. The
//! sockets still see the address that they requested.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{
    bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sk_lookup_tcp,
    bpf_sk_lookup_udp, bpf_sk_release,
};
use mesh_ebpf::ip;
use mesh_ebpf_types::{
    Address, DIRECT_RETURN, HOST_PUBLISHED_IPV4, LOOPBACK_PUBLISHED_IPV4, MARK, NAME_SERVER_GROUP,
    SocketPeer, host_published, is_host_published,
};

use super::maps::{self, NETNS, SOCKET_PEERS};

/// The programs' return value: allow the call. They never refuse one.
const ALLOW: i32 = 1;
/// Number of the stand-in for all of the host's addresses.
const ANY: u8 = HOST_PUBLISHED_IPV4[3];
/// Number of the stand-in for the loopback address.
const LOOPBACK: u8 = LOOPBACK_PUBLISHED_IPV4[3];
/// The loopback addresses on which published ports are answered. The rest of 127.0.0.0/8 is left to
/// the host.
const LOOPBACK_V4: [u8; 4] = [127, 0, 0, 1];
const LOOPBACK_V6: [u32; 4] = [0, 0, 0, u32::from_be(1)];
/// `BPF_F_CURRENT_NETNS`: the socket's network namespace.
const OWN_NAMESPACE: u64 = -1_i32 as u32 as u64;

/// A socket call, with the address that it concerns.
#[derive(Clone, Copy)]
struct Call(*mut bpf_sock_addr);

// SAFETY, for every block here: the pointer is the context that the kernel passed to the program;
// the verifier checks each access to it.
impl Call {
    /// Returns whether the socket belongs to this instance's network namespace. The cgroup also has
    /// the sockets of all containers.
    #[inline(always)]
    fn is_of_host(self) -> bool {
        let own = NETNS.get(0).copied().unwrap_or_default();
        own != 0 && unsafe { bpf_get_netns_cookie(self.0.cast()) } == own
    }

    /// Returns whether the agent opened the socket. Its queries to the host's resolvers must not
    /// return to it through a service.
    #[inline(always)]
    fn is_of_agent(self) -> bool {
        // SAFETY: takes no arguments, returns the group in the upper half.
        if (unsafe { bpf_get_current_uid_gid() } >> 32) as u32 == NAME_SERVER_GROUP {
            return true;
        }
        unsafe {
            let socket = (*self.0).__bindgen_anon_1.sk;
            !socket.is_null() && (*socket).mark == MARK
        }
    }

    /// Returns whether a socket of the host listens at an address and port. It takes precedence
    /// over published ports.
    #[inline(always)]
    fn has_listener(self, address: Address, port: [u8; 2], protocol: u8) -> bool {
        // `struct bpf_sock_tuple`: addresses, then ports. The sender's are zero, so that no
        // connected socket matches.
        let [a, b, c, d] = address.words();
        let [p0, p1] = port;
        let port = u32::from_ne_bytes([0, 0, p0, p1]);
        if address.to_v4().is_some() {
            self.looks_up([0, d, port], protocol)
        } else {
            self.looks_up([0, 0, 0, 0, a, b, c, d, port], protocol)
        }
    }

    #[inline(always)]
    fn looks_up<const N: usize>(self, mut tuple: [u32; N], protocol: u8) -> bool {
        let (pointer, length) = (tuple.as_mut_ptr().cast(), const { size_of::<[u32; N]>() as u32 });
        let socket = match protocol {
            ip::TCP => unsafe { bpf_sk_lookup_tcp(self.0.cast(), pointer, length, OWN_NAMESPACE, 0) },
            ip::UDP => unsafe { bpf_sk_lookup_udp(self.0.cast(), pointer, length, OWN_NAMESPACE, 0) },
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        unsafe { bpf_sk_release(socket.cast()) };
        true
    }

    #[inline(always)]
    fn address_v4(self) -> Address {
        Address::from_v4(unsafe { (*self.0).user_ip4 }.to_ne_bytes())
    }

    #[inline(always)]
    fn set_v4(self, address: Address) {
        let [.., word] = address.words();
        unsafe { (*self.0).user_ip4 = word };
    }

    #[inline(always)]
    fn address_v6(self) -> Address {
        unsafe {
            let [a, b, c, d] = (&raw const (*self.0).user_ip6).cast::<[u32; 4]>().read_volatile();
            Address::from_words([a, b, c, d])
        }
    }

    #[inline(always)]
    fn set_v6(self, address: Address) {
        let words = address.words();
        let field = unsafe { (&raw mut (*self.0).user_ip6).cast::<u32>() };
        for (index, word) in words.into_iter().enumerate() {
            unsafe { field.add(index).write_volatile(word) };
        }
    }

    /// Returns the port, network order.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the field's upper half is zero")]
    fn port(self) -> [u8; 2] {
        (unsafe { (*self.0).user_port } as u16).to_ne_bytes()
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "protocol numbers have eight bits")]
    fn protocol(self) -> u8 {
        unsafe { (*self.0).protocol as u8 }
    }

    #[inline(always)]
    fn peer(self) -> SocketPeer {
        let [p0, p1] = self.port();
        SocketPeer {
            cookie: unsafe { bpf_get_socket_cookie(self.0.cast()) },
            port: [p0, p1],
            padding: [0; 6],
        }
    }

    /// Returns the stand-in for `address`, if that is the host's and the port is published. Records
    /// the requested address if the stand-in does not identify it.
    #[inline(always)]
    fn stand_in(self, address: Address, loopback: bool) -> Option<Address> {
        let v4 = address.to_v4().is_some();
        let (port, protocol) = (self.port(), self.protocol());
        let number = if loopback { LOOPBACK } else { maps::number_of_host_address(address)? };
        let only = if loopback { host_published(LOOPBACK, v4) } else { address };
        let on_it = (loopback || number != 0 && replies_return(v4))
            && maps::published_on(only, port, protocol).is_some();
        if !on_it {
            maps::published_on(Address::NONE, port, protocol)?;
        }
        if self.is_of_agent() || self.has_listener(address, port, protocol) {
            return None;
        }
        if loopback || !on_it {
            self.remember(address);
        }
        Some(host_published(if on_it { number } else { ANY }, v4))
    }

    #[inline(always)]
    fn remember(self, address: Address) {
        // A full map evicts the least recently used socket, which then sees the stand-in address.
        let _ = SOCKET_PEERS.insert(self.peer(), address, 0);
    }

    /// Returns the requested address if `address` is a stand-in.
    #[inline(always)]
    fn requested_address(self, address: Address) -> Option<Address> {
        if !is_host_published(address) {
            return None;
        }
        if let Some(own) = maps::real_address(address) {
            return Some(*own);
        }
        // SAFETY: copied at once. If the entry is reused meanwhile, the socket sees another of the
        // host's addresses.
        unsafe { SOCKET_PEERS.get(self.peer()) }.copied()
    }
}

/// Returns whether another node's replies to the host's own addresses return through the tunnel. In
/// a cluster with `--dsr`, that node cannot tell which node has an IPv6 address.
#[inline(always)]
fn replies_return(v4: bool) -> bool {
    v4 || maps::config().is_some_and(|config| config.flags & DIRECT_RETURN == 0)
}

/// `connect` and `sendmsg` to an IPv4 address.
#[inline(always)]
pub(super) fn to_v4(context: *mut bpf_sock_addr) -> i32 {
    let call = Call(context);
    if call.is_of_host() {
        let address = call.address_v4();
        let loopback = address == Address::from_v4(LOOPBACK_V4);
        if let Some(other) = call.stand_in(address, loopback) {
            call.set_v4(other);
        }
    }
    ALLOW
}

/// `connect` and `sendmsg` to an IPv6 address, or to an IPv4 address of an IPv6 socket.
#[inline(always)]
pub(super) fn to_v6(context: *mut bpf_sock_addr) -> i32 {
    let call = Call(context);
    if call.is_of_host() {
        let address = call.address_v6();
        let loopback = address.words() == LOOPBACK_V6 || address == Address::from_v4(LOOPBACK_V4);
        if let Some(other) = call.stand_in(address, loopback) {
            call.set_v6(other);
        }
    }
    ALLOW
}

/// `recvmsg` and `getpeername`, IPv4.
#[inline(always)]
pub(super) fn from_v4(context: *mut bpf_sock_addr) -> i32 {
    let call = Call(context);
    if call.is_of_host()
        && let Some(address) = call.requested_address(call.address_v4())
    {
        call.set_v4(address);
    }
    ALLOW
}

/// `recvmsg` and `getpeername`, IPv6.
#[inline(always)]
pub(super) fn from_v6(context: *mut bpf_sock_addr) -> i32 {
    let call = Call(context);
    if call.is_of_host()
        && let Some(address) = call.requested_address(call.address_v6())
    {
        call.set_v6(address);
    }
    ALLOW
}
