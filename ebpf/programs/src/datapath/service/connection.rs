//! Backends of flows, and the state of flows.
//!
//! `CONNECTIONS` holds flows that were answered and are in use. `PENDING`, which is smaller, holds
//! unanswered and finished ones. So neither a flood of new flows nor many short ones evict idle
//! connections.

use mesh_ebpf::transport::{FIN, RST, swapped};
use mesh_ebpf::{flow, ip};
use mesh_ebpf_types::{
    AFFINITY_CLIENT_IP, ANSWERED, Address, BACKEND_FINISHED, Backend, CLIENT_FINISHED, CLOSED, Connection,
    ConnectionKind, DIRECT_RETURN, DRAINING, FAILING,
};

use super::allowance::{note_use, promote};
use super::packet::{ERROR, LATER, Packet};
use crate::datapath::maps::{self, CONNECTIONS, PENDING};

/// Result of [`choose`]: there is no backend.
pub(in crate::datapath) const NO_BACKEND: u32 = 0;
/// Result of [`choose`]: the flow's backend is gone, and no other can continue the flow.
pub(in crate::datapath) const GONE: u32 = u32::MAX;

/// Finds or chooses the backend for a packet, using the table in [`super::packet::Decided::table`].
/// Returns its number, [`NO_BACKEND`] or [`GONE`].
#[inline(never)]
pub(in crate::datapath) fn choose(packet: &mut Packet) -> u32 {
    let known = known(packet);
    if known != NO_BACKEND {
        if maps::backend(known).is_some_and(|backend| keeps(packet, backend)) {
            return known;
        }
        packet.decided.client_port = [0; 2];
        if packet.parsed.starts == 0 && packet.parsed.key.protocol == ip::TCP && packet.parsed.class != ERROR
        {
            return GONE;
        }
    }
    if packet.parsed.class == ERROR && packet.decided.table[1] == 0 {
        return NO_BACKEND;
    }
    let number = pick(packet);
    if number == NO_BACKEND || maps::backend(number).is_none() {
        return NO_BACKEND;
    }
    if packet.parsed.class == ERROR || packet.parsed.class == LATER {
        return number;
    }
    packet.scratch.found = forward(packet, number, packet.decided.reply_vni);
    begin(packet, number);
    number
}

/// Returns whether the current packet goes to the backend of its flow.
///
/// A SYN on a live connection may be late, repeated or forged. The backend decides (RFC 5961,
/// section 4), so the SYN goes there. The end of an SCTP association is not visible here, so an
/// INIT leaves a draining backend.
#[inline(always)]
fn keeps(packet: &Packet, backend: &Backend) -> bool {
    let leaves = if packet.parsed.key.protocol == ip::TCP { FAILING } else { FAILING | DRAINING };
    packet.parsed.starts == 0 || backend.flags & leaves == 0
}

/// Returns the forward entry of a flow to this backend, for a network with this VNI.
#[inline(always)]
pub(super) fn forward(packet: &Packet, backend: u32, [v0, v1, v2]: [u8; 3]) -> Connection {
    Connection {
        address: Address::from_words([packet.decided.arrived_at, 0, 0, 0]),
        backend,
        node: [0, v0, v1, v2],
        kind: ConnectionKind::Forward as u8,
        ..Connection::default()
    }
}

/// Creates the entry of a flow that begins with this backend.
#[inline(always)]
fn begin(packet: &mut Packet, number: u32) {
    // SAFETY: as in `known`.
    let before = |connection: *mut Connection| unsafe { (*connection).backend };
    let established = CONNECTIONS.get_ptr_mut(&packet.parsed.key).map(before);
    let other = established.or_else(|| PENDING.get_ptr_mut(&packet.parsed.key).map(before));
    // A full map evicts its least recently used entry.
    let _ = PENDING.insert(&packet.parsed.key, &packet.scratch.found, 0);
    if established.is_some() {
        let _ = CONNECTIONS.remove(&packet.parsed.key);
    }
    if other.is_some_and(|other| other != number) {
        maps::renew(&packet.parsed.key);
    }
    // Cache only flows that continue: a packet that may be the last must evict nothing.
    packet.scratch.memo.forget();
}

/// Returns the number of the backend that the flow has had. Sets
/// [`super::packet::Decided::client_port`] to the port that its client has there. For a packet that
/// begins a flow, considers only flows that were answered and are not over.
#[inline(never)]
pub(super) fn known(packet: &mut Packet) -> u32 {
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&packet.parsed.key) {
        // SAFETY: entries of preallocated maps always remain memory of the map. If this one was
        // reused for another flow, this packet is misdelivered, as it would be without an entry.
        let value = unsafe { &mut *connection };
        packet.decided.client_port = value.port;
        note_use(value);
        note_arrival(packet, value);
        return value.backend;
    }
    let Some(connection) = PENDING.get_ptr_mut(&packet.parsed.key) else { return NO_BACKEND };
    // SAFETY: as above.
    let value = unsafe { &mut *connection };
    if packet.parsed.starts != 0 && value.state & (ANSWERED | CLOSED) != ANSWERED {
        return NO_BACKEND;
    }
    let number = value.backend;
    packet.decided.client_port = value.port;
    note_arrival(packet, value);
    // A SYN does not confirm an answer: its sender may have forged its address.
    let goes_on = packet.parsed.starts == 0 && value.state & CLOSED == 0;
    if goes_on && (value.state & ANSWERED != 0 || is_answered_elsewhere(packet)) {
        promote(packet.decided.reply_vni, &packet.parsed.key, value);
    }
    number
}

/// Records the device where the flow's packets arrive in its entry.
#[inline(always)]
fn note_arrival(packet: &mut Packet, value: &mut Connection) {
    let device = packet.decided.arrived_at;
    if device == 0 || packet.parsed.class == ERROR || value.address.words()[0] == device {
        return;
    }
    value.address = Address::from_words([device, 0, 0, 0]);
    packet.decided.moved = 1;
    opposite_key(packet, [0; 3]);
    maps::renew(&packet.scratch.other);
}

/// Returns the device where the client's packets arrive, for the flow with the key
/// [`super::packet::Scratch::other`]; 0 if unknown.
#[inline(never)]
pub(super) fn arrived_at(packet: &Packet) -> u32 {
    let entry =
        CONNECTIONS.get_ptr_mut(&packet.scratch.other).or_else(|| PENDING.get_ptr_mut(&packet.scratch.other));
    // SAFETY: as in `known`.
    entry.map_or(0, |connection| {
        let value = unsafe { &*connection };
        if value.kind == ConnectionKind::Forward as u8 { value.address.words()[0] } else { 0 }
    })
}

/// Returns whether the current packet continues a flow whose replies bypass this node. Then only
/// the client's further packets show that the flow was answered.
#[inline(always)]
fn is_answered_elsewhere(packet: &Packet) -> bool {
    packet.parsed.key.vni == [0; 3] && maps::config().is_some_and(|config| config.flags & DIRECT_RETURN != 0)
}

/// Returns whether the current packet is a SYN.
#[inline(always)]
pub(super) fn begins_connection(packet: &Packet) -> bool {
    packet.parsed.starts != 0 && packet.parsed.key.protocol == ip::TCP
}

/// Returns the backend in the table's entry for the flow.
#[inline(always)]
fn pick(packet: &Packet) -> u32 {
    let [first, size, flags] = packet.decided.table;
    if size == 0 {
        return NO_BACKEND;
    }
    let hash = flow::balance(&packet.parsed.key, flags & AFFINITY_CLIENT_IP != 0);
    maps::backend_at(first.wrapping_add(flow::entry(hash, size)))
}

/// Records that the flow with the key [`super::packet::Scratch::other`] was answered. Returns
/// whether this is new.
#[inline(never)]
pub(super) fn mark_answered(packet: &Packet) -> bool {
    let Some(connection) = PENDING.get_ptr_mut(&packet.scratch.other) else { return false };
    // SAFETY: as in `known`.
    let value = unsafe { &mut *connection };
    let first = value.state & ANSWERED == 0;
    value.state |= ANSWERED;
    first
}

/// Makes [`super::packet::Scratch::other`] the key of the opposite direction, in a network or
/// (zero) to published ports.
#[inline(always)]
pub(in crate::datapath) fn opposite_key(packet: &mut Packet, vni: [u8; 3]) {
    packet.scratch.other.source = packet.parsed.key.destination;
    packet.scratch.other.destination = packet.parsed.key.source;
    packet.scratch.other.ports = swapped(packet.parsed.key.ports);
    packet.scratch.other.protocol = packet.parsed.key.protocol;
    packet.scratch.other.vni = vni;
}

/// Records, on the node where the client's packets arrive, that another node's backend answered a
/// flow.
#[inline(never)]
pub(in crate::datapath) fn note_reply(packet: &mut Packet) {
    opposite_key(packet, [0; 3]);
    if mark_answered(packet) {
        maps::renew(&packet.scratch.other);
    }
    if packet.parsed.key.protocol == ip::TCP && packet.parsed.tcp_flags & u32::from(FIN | RST) != 0 {
        close(packet, true, BACKEND_FINISHED);
    }
}

/// Records a packet that ends a direction of its flow, `bit`, in both entries: the packet's own,
/// and the one with the key [`super::packet::Scratch::other`]. An entry whose flow is over moves to
/// `PENDING`.
#[inline(always)]
pub(in crate::datapath) fn finish(packet: &Packet, bit: u8) {
    if packet.parsed.key.protocol != ip::TCP || packet.parsed.tcp_flags & u32::from(FIN | RST) == 0 {
        return;
    }
    close(packet, true, bit);
    close(packet, false, bit);
}

/// As [`finish`], for the packet's own entry only.
#[inline(always)]
pub(in crate::datapath) fn finish_own(packet: &Packet, bit: u8) {
    if packet.parsed.key.protocol == ip::TCP && packet.parsed.tcp_flags & u32::from(FIN | RST) != 0 {
        close(packet, false, bit);
    }
}

#[inline(never)]
fn close(packet: &Packet, other: bool, bit: u8) {
    let key = if other { &packet.scratch.other } else { &packet.parsed.key };
    let Some(connection) = CONNECTIONS.get_ptr_mut(key) else { return };
    // SAFETY: as in `known`.
    let value = unsafe { &mut *connection };
    value.state |= bit;
    let both = CLIENT_FINISHED | BACKEND_FINISHED;
    if packet.parsed.tcp_flags & u32::from(RST) == 0 && value.state & both != both {
        return;
    }
    value.state |= CLOSED;
    let _ = PENDING.insert(key, &*value, 0);
    let _ = CONNECTIONS.remove(key);
}

/// Returns a backend's address of the packet's family; `None` if it has none.
#[inline(always)]
pub(in crate::datapath) fn address_of(backend: &Backend, v6: bool) -> Option<Address> {
    let address = if v6 { backend.ipv6 } else { Address::from_v4(backend.ipv4) };
    let none = if v6 { address.is_none() } else { u32::from_ne_bytes(backend.ipv4) == 0 };
    if none { None } else { Some(address) }
}
