//! Sockets of the host itself: what they send to a published port, of `127.0.0.1`, `::1` or the
//! host's own addresses, never leaves the host's stack by itself. Their destination becomes an
//! address that is routed to `mesh0`, where the `host` program takes it; they go on seeing the one
//! that they asked for.

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

/// What a program returns: let the call go on. (They never refuse one.)
const ALLOW: i32 = 1;
/// The number of what stands for any of the host's addresses.
const ANY: u8 = HOST_PUBLISHED_IPV4[3];
/// The number of what stands for the loopback address alone.
const LOOPBACK: u8 = LOOPBACK_PUBLISHED_IPV4[3];
/// The loopback addresses that published ports are answered on. All others of 127.0.0.0/8 are left
/// to the host.
const LOOPBACK_V4: [u8; 4] = [127, 0, 0, 1];
const LOOPBACK_V6: [u32; 4] = [0, 0, 0, u32::from_be(1)];
/// `BPF_F_CURRENT_NETNS`: the network namespace of the socket.
const OWN_NAMESPACE: u64 = -1_i32 as u32 as u64;

/// A socket's call, with the address that it is about.
#[derive(Clone, Copy)]
struct Call(*mut bpf_sock_addr);

// SAFETY, for every block here: the pointer is the context that the kernel called the program with;
// the verifier proves each access to it.
impl Call {
    /// Whether the socket belongs to this instance's network namespace: the cgroup has those of all
    /// containers too.
    #[inline(always)]
    fn is_of_host(self) -> bool {
        let own = NETNS.get(0).copied().unwrap_or_default();
        own != 0 && unsafe { bpf_get_netns_cookie(self.0.cast()) } == own
    }

    /// Whether the agent opened the socket. What it asks the host's resolvers must not come back to
    /// it by a service.
    #[inline(always)]
    fn is_of_agent(self) -> bool {
        // SAFETY: takes nothing, returns the group in the upper half.
        if (unsafe { bpf_get_current_uid_gid() } >> 32) as u32 == NAME_SERVER_GROUP {
            return true;
        }
        unsafe {
            let socket = (*self.0).__bindgen_anon_1.sk;
            !socket.is_null() && (*socket).mark == MARK
        }
    }

    /// Whether a socket of the host takes what is sent to an address and port. It goes before what
    /// is published there.
    #[inline(always)]
    fn is_listened(self, address: Address, port: [u8; 2], protocol: u8) -> bool {
        // `struct bpf_sock_tuple`: addresses, then ports; the sender's are zero, so that no
        // connected socket fits.
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

    /// The port, network order.
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

    /// What stands for `address`, if that is the host's and the port is published. Remembers who
    /// was asked for, where what stands for it does not tell.
    #[inline(always)]
    fn stand_in(self, address: Address, loopback: bool) -> Option<Address> {
        let v4 = address.to_v4().is_some();
        let (port, protocol) = (self.port(), self.protocol());
        let number = if loopback { LOOPBACK } else { maps::number_of_host_address(address)? };
        let only = if loopback { host_published(LOOPBACK, v4) } else { address };
        let on_it =
            (loopback || number != 0 && finds_back(v4)) && maps::published_on(only, port, protocol).is_some();
        if !on_it {
            maps::published_on(Address::NONE, port, protocol)?;
        }
        if self.is_of_agent() || self.is_listened(address, port, protocol) {
            return None;
        }
        if loopback || !on_it {
            self.remember(address);
        }
        Some(host_published(if on_it { number } else { ANY }, v4))
    }

    #[inline(always)]
    fn remember(self, address: Address) {
        // A full map forgets the socket that was not used for longest: it sees the address that
        // stands in.
        let _ = SOCKET_PEERS.insert(self.peer(), address, 0);
    }

    /// Who was asked for, if `address` stands in for it.
    #[inline(always)]
    fn asked_for(self, address: Address) -> Option<Address> {
        if !is_host_published(address) {
            return None;
        }
        if let Some(own) = maps::stood_for(address) {
            return Some(*own);
        }
        // SAFETY: copied at once; should the entry be reused meanwhile, the socket sees another of
        // the host's addresses.
        unsafe { SOCKET_PEERS.get(self.peer()) }.copied()
    }
}

/// Whether what another node answers to one of the host's own addresses comes back through the
/// tunnel. In a cluster made with `--dsr` that node cannot tell who has an IPv6 address.
#[inline(always)]
fn finds_back(v4: bool) -> bool {
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

/// `connect` and `sendmsg` to an IPv6 address, or to an IPv4 one of an IPv6 socket.
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
        && let Some(address) = call.asked_for(call.address_v4())
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
        && let Some(address) = call.asked_for(call.address_v6())
    {
        call.set_v6(address);
    }
    ALLOW
}
