//! Which backend a flow has, and whether it is over.
//!
//! `CONNECTIONS` holds what has been answered and used since; `PENDING`, smaller, what has not, and
//! what is over. So neither a flood of new flows nor many short ones push idle connections out.

use mesh_ebpf::transport::{FIN, RST, swapped};
use mesh_ebpf::{flow, ip};
use mesh_ebpf_types::{
    AFFINITY_CLIENT_IP, ANSWERED, Address, BACKEND_FINISHED, Backend, CLIENT_FINISHED, CLOSED, Connection,
    ConnectionKind, DIRECT_RETURN, DRAINING, FAILING,
};

use super::allowance::{note_use, promote};
use super::flows;
use super::packet::{ERROR, LATER};
use crate::datapath::maps::{self, CONNECTIONS, PENDING, packet};

/// [`choose`]: there is no backend.
pub(in crate::datapath) const NO_BACKEND: u32 = 0;
/// [`choose`]: the flow's backend is gone, and another could not go on with it.
pub(in crate::datapath) const GONE: u32 = u32::MAX;

/// Finds or chooses the backend of a packet towards one, from the table in
/// [`super::packet::Packet::table`]. Returns its number, [`NO_BACKEND`] or [`GONE`].
#[inline(never)]
pub(in crate::datapath) fn choose() -> u32 {
    let Some(packet) = packet() else { return NO_BACKEND };
    let known = known();
    if known != NO_BACKEND {
        if maps::backend(known).is_some_and(keeps) {
            return known;
        }
        packet.client_port = [0; 2];
        if packet.starts == 0 && packet.key.protocol == ip::TCP && packet.class != ERROR {
            return GONE;
        }
    }
    if packet.class == ERROR && packet.table[1] == 0 {
        return NO_BACKEND;
    }
    let number = pick();
    if number == NO_BACKEND || maps::backend(number).is_none() {
        return NO_BACKEND;
    }
    if packet.class == ERROR || packet.class == LATER {
        return number;
    }
    packet.found = forward(number, packet.reply_vni);
    begin(number);
    number
}

/// Whether the packet at hand goes to the backend of its flow.
///
/// A SYN of a live connection may be late, repeated or forged. The backend decides what it means
/// (RFC 5961, section 4), so it goes there. The end of an SCTP association is not seen here: an
/// INIT leaves a draining backend.
#[inline(always)]
fn keeps(backend: &Backend) -> bool {
    let Some(packet) = packet() else { return false };
    let leaves = if packet.key.protocol == ip::TCP { FAILING } else { FAILING | DRAINING };
    packet.starts == 0 || backend.flags & leaves == 0
}

/// The entry of a flow towards that backend, of a network with that VNI.
#[inline(always)]
pub(super) fn forward(backend: u32, [v0, v1, v2]: [u8; 3]) -> Connection {
    let arrived_at = packet().map_or(0, |packet| packet.arrived_at);
    Connection {
        address: Address::from_words([arrived_at, 0, 0, 0]),
        backend,
        node: [0, v0, v1, v2],
        kind: ConnectionKind::Forward as u8,
        ..Connection::default()
    }
}

/// Makes the entry of a flow that begins with that backend.
#[inline(always)]
fn begin(number: u32) {
    let Some(packet) = packet() else { return };
    // SAFETY: as in `known`.
    let before = |connection: *mut Connection| unsafe { (*connection).backend };
    let established = CONNECTIONS.get_ptr_mut(&packet.key).map(before);
    let other = established.or_else(|| PENDING.get_ptr_mut(&packet.key).map(before));
    // Maps that are full forget what was not used for longest.
    let _ = PENDING.insert(&packet.key, &packet.found, 0);
    if established.is_some() {
        let _ = CONNECTIONS.remove(&packet.key);
    }
    if other.is_some_and(|other| other != number) {
        maps::renew(&packet.key);
    }
    // What may never come again pushes out nothing that does.
    flows::forget();
}

/// The number of the backend that the flow has had, and in [`super::packet::Packet::client_port`]
/// the port that its client has there. For a packet that begins a flow: only of one that was
/// answered and is not over.
#[inline(never)]
pub(super) fn known() -> u32 {
    let Some(packet) = packet() else { return NO_BACKEND };
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&packet.key) {
        // SAFETY: entries of preallocated maps always are memory of the map. This one may have
        // become another flow's by now: then this packet goes astray, as it would have without an
        // entry.
        let value = unsafe { &mut *connection };
        packet.client_port = value.port;
        note_use(value);
        note_arrival(value);
        return value.backend;
    }
    let Some(connection) = PENDING.get_ptr_mut(&packet.key) else { return NO_BACKEND };
    // SAFETY: as above.
    let value = unsafe { &mut *connection };
    if packet.starts != 0 && value.state & (ANSWERED | CLOSED) != ANSWERED {
        return NO_BACKEND;
    }
    let number = value.backend;
    packet.client_port = value.port;
    note_arrival(value);
    // A SYN shows no interest in the answer: its sender may have forged its address.
    let goes_on = packet.starts == 0 && value.state & CLOSED == 0;
    if goes_on && (value.state & ANSWERED != 0 || is_answered_elsewhere()) {
        promote(&packet.key, value);
    }
    number
}

/// Notes the device that the flow's packets arrive at, in its entry.
#[inline(always)]
fn note_arrival(value: &mut Connection) {
    let Some(packet) = packet() else { return };
    let device = packet.arrived_at;
    if device == 0 || packet.class == ERROR || value.address.words()[0] == device {
        return;
    }
    value.address = Address::from_words([device, 0, 0, 0]);
    packet.moved = 1;
    opposite_key([0; 3]);
    maps::renew(&packet.other);
}

/// The device that the packets of the client arrive at whose flow [`super::packet::Packet::other`]
/// is the key of; 0 where that is not known.
#[inline(never)]
pub(super) fn arrived_at() -> u32 {
    let Some(packet) = packet() else { return 0 };
    let entry = CONNECTIONS.get_ptr_mut(&packet.other).or_else(|| PENDING.get_ptr_mut(&packet.other));
    // SAFETY: as in `known`.
    entry.map_or(0, |connection| {
        let value = unsafe { &*connection };
        if value.kind == ConnectionKind::Forward as u8 { value.address.words()[0] } else { 0 }
    })
}

/// Whether the packet at hand goes on with a flow whose replies do not pass here: that its client
/// goes on is all that tells of an answer.
#[inline(always)]
fn is_answered_elsewhere() -> bool {
    let Some(packet) = packet() else { return false };
    packet.key.vni == [0; 3] && maps::config().is_some_and(|config| config.flags & DIRECT_RETURN != 0)
}

/// Whether the packet at hand is a SYN.
#[inline(always)]
pub(super) fn begins_connection() -> bool {
    packet().is_some_and(|packet| packet.starts != 0 && packet.key.protocol == ip::TCP)
}

/// The backend in the table's entry for the flow.
#[inline(always)]
fn pick() -> u32 {
    let Some(packet) = packet() else { return NO_BACKEND };
    let [first, size, flags] = packet.table;
    if size == 0 {
        return NO_BACKEND;
    }
    let hash = flow::balance(&packet.key, flags & AFFINITY_CLIENT_IP != 0);
    maps::maglev(first.wrapping_add(flow::entry(hash, size)))
}

/// Notes that what [`super::packet::Packet::other`] is the key of was answered. Whether that is
/// new.
#[inline(never)]
pub(super) fn mark_answered() -> bool {
    let Some(packet) = packet() else { return false };
    let Some(connection) = PENDING.get_ptr_mut(&packet.other) else { return false };
    // SAFETY: as in `known`.
    let value = unsafe { &mut *connection };
    let first = value.state & ANSWERED == 0;
    value.state |= ANSWERED;
    first
}

/// Makes [`super::packet::Packet::other`] the key of the opposite direction, in a network or (zero)
/// towards published ports.
#[inline(always)]
pub(in crate::datapath) fn opposite_key(vni: [u8; 3]) {
    let Some(packet) = packet() else { return };
    packet.other.source = packet.key.destination;
    packet.other.destination = packet.key.source;
    packet.other.ports = swapped(packet.key.ports);
    packet.other.protocol = packet.key.protocol;
    packet.other.vni = vni;
}

/// Notes, on the node that the client spoke to, that a flow was answered by another node's backend.
#[inline(never)]
pub(in crate::datapath) fn note_reply() {
    let Some(packet) = packet() else { return };
    opposite_key([0; 3]);
    if mark_answered() {
        maps::renew(&packet.other);
    }
    if packet.key.protocol == ip::TCP && packet.tcp_flags & u32::from(FIN | RST) != 0 {
        close(true, BACKEND_FINISHED);
    }
}

/// Notes a packet that ends a direction of its flow, `bit`, in both entries: the packet's own, and
/// that which [`super::packet::Packet::other`] is the key of. An entry whose flow is over moves to
/// `PENDING`.
#[inline(always)]
pub(in crate::datapath) fn finish(bit: u8) {
    let Some(packet) = packet() else { return };
    if packet.key.protocol != ip::TCP || packet.tcp_flags & u32::from(FIN | RST) == 0 {
        return;
    }
    close(true, bit);
    close(false, bit);
}

/// As [`finish`], for the packet's own entry only.
#[inline(always)]
pub(in crate::datapath) fn finish_own(bit: u8) {
    let Some(packet) = packet() else { return };
    if packet.key.protocol == ip::TCP && packet.tcp_flags & u32::from(FIN | RST) != 0 {
        close(false, bit);
    }
}

#[inline(never)]
fn close(other: bool, bit: u8) {
    let Some(packet) = packet() else { return };
    let key = if other { &packet.other } else { &packet.key };
    let Some(connection) = CONNECTIONS.get_ptr_mut(key) else { return };
    // SAFETY: as in `known`.
    let value = unsafe { &mut *connection };
    value.state |= bit;
    let both = CLIENT_FINISHED | BACKEND_FINISHED;
    if packet.tcp_flags & u32::from(RST) == 0 && value.state & both != both {
        return;
    }
    value.state |= CLOSED;
    let _ = PENDING.insert(key, &*value, 0);
    let _ = CONNECTIONS.remove(key);
}

/// A backend's address of the packet's family; `None` if it has none.
#[inline(always)]
pub(in crate::datapath) fn address_of(backend: &Backend, v6: bool) -> Option<Address> {
    let address = if v6 { backend.ipv6 } else { Address::from_v4(backend.ipv4) };
    let none = if v6 { address.is_none() } else { u32::from_ne_bytes(backend.ipv4) == 0 };
    if none { None } else { Some(address) }
}
