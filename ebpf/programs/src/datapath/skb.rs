//! A packet in the kernel: the context's fields and the helpers that act on it.

use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_INGRESS,
    BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, BPF_F_ZERO_CSUM_TX,
    BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, BPF_FIB_LOOKUP_SKIP_NEIGH,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::generated as helpers;
use mesh_ebpf::headers::ETHERTYPE_IPV6;
use mesh_ebpf::ip::UDP;
use mesh_ebpf::vxlan::OUTER;
use mesh_ebpf_types::{MARK, Mac};

use super::route::{AF_INET, Fate, Route};
use super::start::Start;
use super::verdict::Verdict;

const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;
const MAC_LENGTH: u64 = 14;
const IPV6_BE: u16 = ETHERTYPE_IPV6.to_be();
const BPF_F_IPV6: u64 = 1 << 7;
/// `BPF_F_CURRENT_NETNS`: the device's network namespace.
const CURRENT_NETNS: u64 = u64::MAX;

/// A helper returned an error.
#[derive(Clone, Copy)]
pub(super) struct Refused;

/// `struct bpf_tunnel_key`, IPv4 only. Kernels before 6.0 end it before `local_ipv4`.
#[repr(C)]
pub(super) struct TunnelKey {
    pub(super) tunnel_id: u32,
    pub(super) remote_ipv4: u32,
    pub(super) remote_rest: [u32; 3],
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) extension: u16,
    pub(super) label: u32,
    pub(super) local_ipv4: u32,
    pub(super) local_rest: [u32; 3],
}

/// `struct bpf_redir_neigh`, of IPv4.
#[repr(C)]
struct Neighbour {
    family: u32,
    ipv4: u32,
    rest: [u32; 3],
}

/// Size of [`TunnelKey`] without its local address.
const TUNNEL_KEY_WITHOUT_LOCAL: u32 = 28;

/// The packet that a program was called for.
#[derive(Clone, Copy)]
pub(super) struct Skb(*mut __sk_buff);

// SAFETY, for every block here: `self.0` is the context that the kernel passed to the program. The
// verifier checks each access to it and each helper's arguments before the program may run; buffers
// have the length that is passed with them.
impl Skb {
    #[inline(always)]
    pub(super) const fn new(context: *mut __sk_buff) -> Self {
        Self(context)
    }

    #[inline(always)]
    pub(super) const fn context(self) -> *mut __sk_buff {
        self.0
    }

    /// Returns the length of the frame in bytes.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        unsafe { (*self.0).len }
    }

    /// Returns the ethertype that the kernel found, in network order as in the kernel.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the kernel's field has 16 bits")]
    pub(super) fn ethertype(self) -> u16 {
        u16::from_be(unsafe { (*self.0).protocol } as u16)
    }

    /// Returns whether the packet has a VLAN tag in its metadata.
    #[inline(always)]
    pub(super) fn has_vlan(self) -> bool {
        unsafe { (*self.0).vlan_present != 0 }
    }

    /// Returns the VLAN ID in the packet's metadata; 0 if there is none.
    #[inline(always)]
    pub(super) fn vlan(self) -> u32 {
        unsafe { (*self.0).vlan_tci & 0xfff }
    }

    /// Returns the interface index of the device where the program is attached.
    #[inline(always)]
    pub(super) fn ifindex(self) -> u32 {
        unsafe { (*self.0).ifindex }
    }

    /// Returns whether the frame's destination is another host's MAC. It was received only because
    /// the device is promiscuous.
    #[inline(always)]
    pub(super) fn is_for_another_host(self) -> bool {
        unsafe { (*self.0).pkt_type == PACKET_OTHERHOST }
    }

    /// Returns the payload length of each segment of a super-packet; 0 for other packets.
    #[inline(always)]
    pub(super) fn gso_size(self) -> u32 {
        unsafe { (*self.0).gso_size }
    }

    /// Returns whether the frame's destination is this host's MAC, not a group or another host.
    #[inline(always)]
    pub(super) fn is_for_this_host(self) -> bool {
        unsafe { (*self.0).pkt_type == PACKET_HOST }
    }

    /// Returns whether this is a super-packet.
    #[inline(always)]
    pub(super) fn is_gso(self) -> bool {
        self.gso_size() != 0
    }

    /// Returns how many packets this is on the wire.
    #[inline(always)]
    pub(super) fn segments(self) -> u32 {
        let segments = unsafe { (*self.0).gso_segs };
        if segments == 0 { 1 } else { segments }
    }

    /// Returns the first `N` bytes of the frame in place, if they are contiguous. They become
    /// invalid when a helper changes the packet.
    #[inline(always)]
    pub(super) fn start<const N: usize>(self) -> Option<Start<N>> {
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        Start::between(data, end)
    }

    /// Copies `N` bytes out of the frame.
    #[inline(always)]
    pub(super) fn load<const N: usize>(self, offset: u32) -> Result<[u8; N], Refused> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        let length = const { N as u32 };
        unsafe {
            if helpers::bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), length) != 0 {
                return Err(Refused);
            }
            Ok(bytes.assume_init())
        }
    }

    /// Copies `N` bytes out of the frame into a part of a buffer.
    #[inline(always)]
    pub(super) fn read_at<const N: usize>(
        self,
        offset: u32,
        buffer: &mut [u8],
        start: usize,
    ) -> Result<(), Refused> {
        let part = buffer.get_mut(start..).and_then(|rest| rest.first_chunk_mut::<N>()).ok_or(Refused)?;
        self.read(offset, part)
    }

    /// Copies `N` bytes out of the frame.
    #[inline(always)]
    pub(super) fn read<const N: usize>(self, offset: u32, bytes: &mut [u8; N]) -> Result<(), Refused> {
        let length = const { N as u32 };
        check(unsafe {
            helpers::bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), length)
        })
    }

    /// Overwrites `N` bytes of the frame.
    #[inline(always)]
    pub(super) fn store<const N: usize>(self, offset: u32, bytes: &[u8; N]) -> Result<(), Refused> {
        let length = const { N as u32 };
        check(unsafe { helpers::bpf_skb_store_bytes(self.0, offset, bytes.as_ptr().cast(), length, 0) })
    }

    /// Overwrites `N` bytes of the frame, and updates the checksum that a network card computed.
    #[inline(always)]
    pub(super) fn store_summed<const N: usize>(self, offset: u32, bytes: &[u8; N]) -> Result<(), Refused> {
        let (length, flags) = (const { N as u32 }, u64::from(BPF_F_RECOMPUTE_CSUM));
        check(unsafe { helpers::bpf_skb_store_bytes(self.0, offset, bytes.as_ptr().cast(), length, flags) })
    }

    /// Overwrites four bytes and updates the UDP checksum, whether absent, partial or complete.
    #[inline(always)]
    pub(super) fn store_checksummed(
        self,
        offset: u32,
        from: [u8; 4],
        to: [u8; 4],
        checksum: u32,
    ) -> Result<(), Refused> {
        let flags = u64::from(BPF_F_MARK_MANGLED_0) | 4;
        let (from, to32) = (u32::from_ne_bytes(from), u32::from_ne_bytes(to));
        check(unsafe { helpers::bpf_l4_csum_replace(self.0, checksum, from.into(), to32.into(), flags) })?;
        self.store(offset, &to)
    }

    /// Returns the Internet checksum's sum of bytes in native byte order. Their number must be a
    /// multiple of four.
    #[inline(always)]
    #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "the sum has 32 bits")]
    pub(super) fn sum<const N: usize>(bytes: &mut [u8; N]) -> u32 {
        let (start, length) = (bytes.as_mut_ptr().cast(), const { N as u32 });
        unsafe { helpers::bpf_csum_diff(ptr::null_mut(), 0, start, length, 0) as u32 }
    }

    /// Updates a transport checksum after a change of four (or two) covered bytes. `pseudo` means
    /// that they are an address, so that an incomplete checksum changes too.
    #[inline(always)]
    pub(super) fn update_l4_checksum(
        self,
        offset: u32,
        from: u32,
        to: u32,
        size: u64,
        pseudo: bool,
        udp: bool,
    ) -> Result<(), Refused> {
        let mut flags = size;
        if pseudo {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if udp {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        check(unsafe { helpers::bpf_l4_csum_replace(self.0, offset, from.into(), to.into(), flags) })
    }

    /// As [`Skb::update_l4_checksum`], after a change of an IPv6 address.
    #[inline(always)]
    pub(super) fn update_l4_checksum_v6(
        self,
        offset: u32,
        from: &mut [u8; 16],
        to: &mut [u8; 16],
        pseudo: bool,
        udp: bool,
    ) -> Result<(), Refused> {
        let mut flags = 0;
        if pseudo {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if udp {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        unsafe {
            let (from, to) = (from.as_mut_ptr().cast(), to.as_mut_ptr().cast());
            #[expect(clippy::cast_sign_loss, reason = "a sum of 32 bits")]
            let difference = helpers::bpf_csum_diff(from, 16, to, 16, 0) as u64;
            // Kernels before 6.16 do not know the second flag. They need it only for checksums that
            // a card completed.
            if pseudo && helpers::bpf_l4_csum_replace(self.0, offset, 0, difference, flags | BPF_F_IPV6) == 0
            {
                return Ok(());
            }
            check(helpers::bpf_l4_csum_replace(self.0, offset, 0, difference, flags))
        }
    }

    /// Updates an IPv4 header's checksum after a change of four of its bytes.
    #[inline(always)]
    pub(super) fn update_l3_checksum(self, offset: u32, from: u32, to: u32) -> Result<(), Refused> {
        check(unsafe { helpers::bpf_l3_csum_replace(self.0, offset, from.into(), to.into(), 4) })
    }

    /// Truncates or pads the frame to this length. It is no longer a super-packet then.
    #[inline(always)]
    pub(super) fn resize(self, length: u32) -> Result<(), Refused> {
        check(unsafe { helpers::bpf_skb_change_tail(self.0, length, 0) })
    }

    /// Makes room after the Ethernet header.
    #[inline(always)]
    pub(super) fn make_room(self, bytes: i32) -> Result<(), Refused> {
        check(unsafe { helpers::bpf_skb_adjust_room(self.0, bytes, BPF_ADJ_ROOM_MAC, 0) })
    }

    /// Makes room for the outer headers before the Ethernet header, and keeps segmentation. Fails,
    /// with the packet unchanged, if the packet is encapsulated (or still counts as such), and on
    /// kernels before 5.13.
    #[inline(always)]
    pub(super) fn grow_outer(self) -> Result<(), Refused> {
        let flags = u64::from(
            BPF_F_ADJ_ROOM_FIXED_GSO
                | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
                | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
                | BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
        ) | MAC_LENGTH << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        check(unsafe {
            helpers::bpf_skb_adjust_room(self.0, const { OUTER as i32 }, BPF_ADJ_ROOM_MAC, flags)
        })
    }

    /// Removes the outer headers; `v6` gives the family of the inner packet. Fails, with the packet
    /// unchanged, for IPv6 on kernels before 6.3.
    #[inline(always)]
    pub(super) fn shrink_outer(self, v6: bool) -> Result<(), Refused> {
        let mut flags = BPF_F_ADJ_ROOM_FIXED_GSO;
        if v6 {
            flags |= BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
        }
        check(unsafe {
            helpers::bpf_skb_adjust_room(self.0, const { -(OUTER as i32) }, BPF_ADJ_ROOM_MAC, flags.into())
        })
    }

    /// Removes `N` bytes from the start of an IPv4 packet of a layer-3 device, and keeps
    /// segmentation.
    #[inline(always)]
    pub(super) fn shrink_start<const N: usize>(self) -> Result<(), Refused> {
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        check(unsafe { helpers::bpf_skb_adjust_room(self.0, const { -(N as i32) }, BPF_ADJ_ROOM_MAC, flags) })
    }

    /// Changes an IPv4 packet to IPv6 in the kernel's metadata. It becomes 20 bytes longer at the
    /// start; the caller must write them.
    #[inline(always)]
    pub(super) fn become_ipv6(self) -> Result<(), Refused> {
        check(unsafe { helpers::bpf_skb_change_proto(self.0, IPV6_BE, 0) })
    }

    /// Makes room for an Ethernet header on a packet of a layer-3 device.
    #[inline(always)]
    pub(super) fn add_ethernet(self) -> Result<(), Refused> {
        check(unsafe { helpers::bpf_skb_change_head(self.0, const { MAC_LENGTH as u32 }, 0) })
    }

    /// Sets "congestion experienced" on an IP packet. Returns false if the packet does not support
    /// ECN.
    #[inline(always)]
    pub(super) fn mark_congestion(self) -> bool {
        unsafe { helpers::bpf_skb_ecn_set_ce(self.0) == 1 }
    }

    /// Sets the tunnel metadata for the VXLAN device. UDP checksum zero, DF clear: the device may
    /// fragment.
    #[inline(always)]
    pub(super) fn set_tunnel(self, key: &mut TunnelKey) -> Result<(), Refused> {
        let flags = u64::from(BPF_F_ZERO_CSUM_TX);
        let whole = const { size_of::<TunnelKey>() as u32 };
        let key = ptr::from_mut(key).cast();
        if unsafe { helpers::bpf_skb_set_tunnel_key(self.0, key, whole, flags) } == 0 {
            return Ok(());
        }
        check(unsafe { helpers::bpf_skb_set_tunnel_key(self.0, key, TUNNEL_KEY_WITHOUT_LOCAL, flags) })
    }

    /// Returns the tunnel metadata of the VXLAN device: the VNI and the sending node's IPv4
    /// address.
    #[inline(always)]
    pub(super) fn tunnel(self) -> Result<(u32, [u8; 4]), Refused> {
        let mut key = MaybeUninit::<TunnelKey>::uninit();
        unsafe {
            let pointer = key.as_mut_ptr();
            check(helpers::bpf_skb_get_tunnel_key(self.0, pointer.cast(), TUNNEL_KEY_WITHOUT_LOCAL, 0))?;
            Ok(((*pointer).tunnel_id, (*pointer).remote_ipv4.to_be_bytes()))
        }
    }

    /// Returns the flow's hash. If it is not known yet, the kernel dissects the packet.
    #[inline(always)]
    pub(super) fn hash(self) -> u32 {
        unsafe { helpers::bpf_get_hash_recalc(self.0) }
    }

    /// Returns the flow's hash if it is known, else 0.
    #[inline(always)]
    pub(super) fn known_hash(self) -> u32 {
        unsafe { (*self.0).hash }
    }

    /// Marks the packet as Mesh's own, so that `egress` ignores it.
    #[inline(always)]
    pub(super) fn mark(self) {
        unsafe { (*self.0).mark = MARK };
    }

    /// Removes the mark.
    #[inline(always)]
    pub(super) fn unmark(self) {
        unsafe { (*self.0).mark = 0 };
    }

    /// Returns whether the packet is Mesh's own.
    #[inline(always)]
    pub(super) fn is_marked(self) -> bool {
        unsafe { (*self.0).mark == MARK }
    }

    /// Returns the interface index of the device where an outgoing packet arrived; 0 if this host
    /// sends it.
    #[inline(always)]
    pub(super) fn ingress_ifindex(self) -> u32 {
        unsafe { (*self.0).ingress_ifindex }
    }

    /// Returns the state of the TCP socket for this tuple in the device's namespace; 0 if there is
    /// none. The tuple is `struct bpf_sock_tuple`; its length determines the family.
    #[inline(always)]
    pub(super) fn tcp_socket<const N: usize>(self, tuple: &mut [u32; N]) -> u32 {
        let length = const { size_of::<[u32; N]>() as u32 };
        unsafe {
            let socket = helpers::bpf_skc_lookup_tcp(
                self.0.cast(),
                tuple.as_mut_ptr().cast(),
                length,
                CURRENT_NETNS,
                0,
            );
            if socket.is_null() {
                return 0;
            }
            let state = (*socket).state;
            helpers::bpf_sk_release(socket.cast());
            state
        }
    }

    /// Returns whether the device's namespace has a UDP socket for this tuple; see
    /// [`Skb::tcp_socket`].
    #[inline(always)]
    pub(super) fn has_udp_socket<const N: usize>(self, tuple: &mut [u32; N]) -> bool {
        let length = const { size_of::<[u32; N]>() as u32 };
        unsafe {
            let socket = helpers::bpf_sk_lookup_udp(
                self.0.cast(),
                tuple.as_mut_ptr().cast(),
                length,
                CURRENT_NETNS,
                0,
            );
            if socket.is_null() {
                return false;
            }
            helpers::bpf_sk_release(socket.cast());
        }
        true
    }

    /// Sends the frame out of a device.
    #[inline(always)]
    pub(super) fn send(self, ifindex: u32) -> Verdict {
        Verdict::of_helper(unsafe { helpers::bpf_redirect(ifindex, 0) })
    }

    /// Injects the frame at a device's ingress.
    #[inline(always)]
    pub(super) fn receive_at(self, ifindex: u32) -> Verdict {
        Verdict::of_helper(unsafe { helpers::bpf_redirect(ifindex, BPF_F_INGRESS.into()) })
    }

    /// Sends a copy of the frame out of a device. Ignores errors: sending the frame itself then
    /// fails too.
    #[inline(always)]
    pub(super) fn send_copy(self, ifindex: u32) {
        let _ = unsafe { helpers::bpf_clone_redirect(self.0, ifindex, 0) };
    }

    /// Sends the IP packet out of a device, marked as Mesh's own. The kernel resolves the neighbour
    /// and writes the Ethernet header.
    #[inline(always)]
    pub(super) fn route(self, ifindex: u32) -> Verdict {
        self.mark();
        Verdict::of_helper(unsafe { helpers::bpf_redirect_neigh(ifindex, ptr::null_mut(), 0, 0) })
    }

    /// As [`Skb::route`], with a known next hop: no route is looked up.
    #[inline(always)]
    pub(super) fn route_via(self, ifindex: u32, next_hop: u32) -> Verdict {
        self.mark();
        let mut neighbour = Neighbour { family: AF_INET.into(), ipv4: next_hop, rest: [0; 3] };
        let length = const { size_of::<Neighbour>() as i32 };
        Verdict::of_helper(unsafe {
            helpers::bpf_redirect_neigh(ifindex, (&raw mut neighbour).cast(), length, 0)
        })
    }

    /// Returns the next hop of the kernel's route out of a device, addresses as words of a packet.
    /// Returns 0 if there is none, or if the kernel does not say (before 6.2, or without
    /// forwarding).
    #[inline(never)]
    pub(super) fn next_hop(self, ifindex: u32, source: u32, destination: u32) -> u32 {
        let mut route = Route::new(ifindex, UDP, source, destination);
        let length = const { size_of::<Route>() as i32 };
        let flags = BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_SKIP_NEIGH;
        let failed =
            unsafe { helpers::bpf_fib_lookup(self.0.cast(), (&raw mut route).cast(), length, flags) != 0 };
        // The next hop of an IPv4 route may be an IPv6 address.
        if failed || route.ifindex != ifindex || route.family != AF_INET { 0 } else { route.destination[0] }
    }

    /// Returns whether the kernel delivers a packet for this IPv4 address to this host, or has no
    /// route for it. Addresses are words as in a packet.
    #[inline(never)]
    pub(super) fn is_delivered_locally(self, source: u32, destination: u32) -> bool {
        let mut route = Route::new(self.ifindex(), UDP, source, destination);
        let length = const { size_of::<Route>() as i32 };
        let flags = BPF_FIB_LOOKUP_SKIP_NEIGH;
        let answer =
            unsafe { helpers::bpf_fib_lookup(self.0.cast(), (&raw mut route).cast(), length, flags) };
        answer == BPF_FIB_LKUP_RET_NOT_FWDED.into()
    }

    /// Returns whether the kernel's route for such a packet routes_out out of the route's device.
    /// Returns true if the kernel does not say because forwarding is off.
    #[inline(always)]
    pub(super) fn routes_out(self, route: &mut Route) -> bool {
        let ifindex = route.ifindex;
        let answer = self.look_up(route, BPF_FIB_LOOKUP_OUTPUT);
        answer == BPF_FIB_LKUP_RET_FWD_DISABLED.into() || is_route(answer) && route.ifindex == ifindex
    }

    /// As [`Skb::routes_out`], but returns false if the kernel does not say.
    #[inline(always)]
    pub(super) fn certainly_routes_out(self, route: &mut Route) -> bool {
        let ifindex = route.ifindex;
        is_route(self.look_up(route, BPF_FIB_LOOKUP_OUTPUT)) && route.ifindex == ifindex
    }

    /// Returns the output device if such a packet arrives at the route's device; the route's device
    /// itself if the kernel does not say.
    #[inline(always)]
    pub(super) fn output_device(self, route: &mut Route) -> u32 {
        let from = route.ifindex;
        if is_route(self.look_up(route, 0)) { route.ifindex } else { from }
    }

    /// What the kernel would do with a packet that arrives by the route's device.
    #[inline(always)]
    pub(super) fn fate(self, route: &mut Route) -> Fate {
        let answer = self.look_up(route, 0);
        if answer == BPF_FIB_LKUP_RET_NOT_FWDED.into() {
            Fate::Stays
        } else if answer == BPF_FIB_LKUP_RET_NO_NEIGH.into() {
            Fate::Unresolved
        } else {
            Fate::Leaves
        }
    }

    /// Returns whether the kernel forwards such a packet that arrives at the route's device.
    #[inline(always)]
    pub(super) fn forwards(self, route: &mut Route) -> bool {
        let answer = self.look_up(route, 0);
        answer == BPF_FIB_LKUP_RET_SUCCESS.into() || answer == BPF_FIB_LKUP_RET_NO_NEIGH.into()
    }

    #[inline(always)]
    fn look_up(self, route: &mut Route, flags: u32) -> i64 {
        let length = const { size_of::<Route>() as i32 };
        unsafe { helpers::bpf_fib_lookup(self.0.cast(), ptr::from_mut(route).cast(), length, flags) }
    }

    /// Delivers the frame to a MAC at the other end of a veth pair, in that end's namespace.
    #[inline(always)]
    pub(super) fn deliver(self, ifindex: u32, mac: Mac) -> Result<Verdict, Refused> {
        self.store(0, &mac.0)?;
        self.deliver_as_is(ifindex)
    }

    /// As [`Skb::deliver`], for a frame that has the right destination MAC already.
    #[inline(always)]
    pub(super) fn deliver_as_is(self, ifindex: u32) -> Result<Verdict, Refused> {
        unsafe {
            // A derived MAC belongs to no device: without this, the container's stack would treat
            // the frame as another host's.
            if (*self.0).pkt_type != PACKET_HOST {
                check(helpers::bpf_skb_change_type(self.0, PACKET_HOST))?;
            }
            Ok(Verdict::of_helper(helpers::bpf_redirect_peer(ifindex, 0)))
        }
    }
}

/// Returns whether a route was found. Its neighbour need not be resolved.
#[inline(always)]
fn is_route(answer: i64) -> bool {
    answer == BPF_FIB_LKUP_RET_SUCCESS.into() || answer == BPF_FIB_LKUP_RET_NO_NEIGH.into()
}

#[inline(always)]
const fn check(result: i64) -> Result<(), Refused> {
    if result == 0 { Ok(()) } else { Err(Refused) }
}
