//! Which backend a flow has, and what its replies become.
//!
//! `CONNECTIONS` holds what has been answered and used since; `PENDING`, smaller, what has not, and what is over. So
//! neither a flood of new flows nor many short ones push idle connections out.
//!
//! A client may have the same port in several connections: to two VIPs, to a VIP and straight to one of its backends, to two of
//! the hosts' addresses. Towards one backend those are the same tuple. A TCP connection that is established keeps its
//! replies then: one that begins gets another backend ([`unoccupied`]), or else waits in `PENDING` under the same key until
//! the backend itself says, by a SYN, that the former one is over.

use mesh_ebpf::transport::{FIN, RST, SYN, swapped};
use mesh_ebpf::{flow, ip};
use mesh_ebpf_types::{
    AFFINITY_CLIENT_IP, ANSWERED, Address, BACKEND_FINISHED, BEGINS, Backend, CLIENT_FINISHED, CLOSED,
    CONTESTED, Connection, ConnectionKey, ConnectionKind, DIRECT_RETURN,
};

use super::flows;
use super::packet::{ERROR, FLOW, LATER, is_same as same_address};
use crate::datapath::maps::{self, CONNECTIONS, PENDING, packet};

/// [`choose`]: there is no backend.
pub(in crate::datapath) const NO_BACKEND: u32 = 0;
/// [`choose`]: the flow's backend is gone, and another could not go on with it.
pub(in crate::datapath) const GONE: u32 = u32::MAX;

/// So many entries of a table are looked at for a backend with which the client has no connection between the same ports.
const TRIES: u32 = 8;

/// [`Connection::node`] of a container's flow to itself through a published port of its host.
pub(in crate::datapath) const HAIRPIN_NODE: u32 = u32::MAX;

/// Finds or chooses the backend of a packet towards one, from the table in [`super::packet::Packet::table`]. Returns its
/// number, [`NO_BACKEND`] or [`GONE`].
#[inline(never)]
pub(in crate::datapath) fn choose() -> u32 {
    let Some(packet) = packet() else { return NO_BACKEND };
    if packet.starts == 0 {
        let known = known();
        if known != NO_BACKEND {
            if maps::backend(known).is_some() {
                return known;
            }
            if packet.key.protocol == ip::TCP && packet.class != ERROR {
                return GONE;
            }
        }
        if packet.class == ERROR && packet.table[1] == 0 {
            return NO_BACKEND;
        }
    }
    let number = if begins_connection() && packet.key.vni != [0; 3] { unoccupied() } else { pick(0) };
    if number == NO_BACKEND || maps::backend(number).is_none() {
        return NO_BACKEND;
    }
    if packet.class == ERROR || packet.class == LATER {
        return number;
    }
    packet.found =
        Connection { backend: number, kind: ConnectionKind::Forward as u8, ..Connection::default() };
    begin(number);
    number
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

/// The number of the backend that the flow has had.
#[inline(always)]
fn known() -> u32 {
    let Some(packet) = packet() else { return NO_BACKEND };
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&packet.key) {
        // SAFETY: entries of preallocated maps always are memory of the map. This one may have become another flow's by
        // now: then this packet goes astray, as it would have without an entry.
        return unsafe { (*connection).backend };
    }
    let Some(connection) = PENDING.get_ptr_mut(&packet.key) else { return NO_BACKEND };
    // SAFETY: as above.
    let value = unsafe { &*connection };
    let number = value.backend;
    if value.state & CLOSED == 0 && (value.state & ANSWERED != 0 || is_answered_elsewhere()) {
        promote(&packet.key, value);
    }
    number
}

/// Whether the packet at hand goes on with a flow whose replies do not pass here: that its client goes on is all that tells
/// of an answer.
#[inline(always)]
fn is_answered_elsewhere() -> bool {
    let Some(packet) = packet() else { return false };
    packet.key.vni == [0; 3] && maps::config().is_some_and(|config| config.flags & DIRECT_RETURN != 0)
}

/// Whether the packet at hand is a SYN.
#[inline(always)]
fn begins_connection() -> bool {
    packet().is_some_and(|packet| packet.starts != 0 && packet.key.protocol == ip::TCP)
}

/// The first pick of a backend that can tell this connection from the client's others; the very first if none of some can.
#[inline(never)]
fn unoccupied() -> u32 {
    let first = pick(0);
    let mut number = first;
    for step in 1..=TRIES {
        if !is_occupied(number) {
            return number;
        }
        number = pick(step);
    }
    first
}

/// Whether the client has an established connection to the backend between the ports of the one that begins.
#[inline(never)]
fn is_occupied(number: u32) -> bool {
    let (Some(packet), Some(backend)) = (packet(), maps::backend(number)) else { return false };
    let Some(address) = address_of(backend, packet.v6 != 0) else { return false };
    let hairpin = address == packet.key.source;
    let kind = if hairpin { ConnectionKind::Hairpin } else { ConnectionKind::Back };
    packet.to = address;
    reply_key(u32::from(hairpin));
    // SAFETY: as in `known`.
    CONNECTIONS.get_ptr_mut(&packet.other).is_some_and(|value| is_anothers(unsafe { &*value }, kind as u32))
}

/// Whether an entry for replies is of another flow than the packet's own, whose kind is given.
#[inline(always)]
fn is_anothers(value: &Connection, kind: u32) -> bool {
    value.kind != ConnectionKind::Forward as u8 && !is_own(value, kind)
}

/// Whether an entry for replies is of the packet's own flow.
#[inline(always)]
fn is_own(value: &Connection, kind: u32) -> bool {
    let Some(packet) = packet() else { return false };
    let [_, _, p0, p1] = packet.key.ports;
    same_address(&value.address, &packet.key.destination)
        && value.port == [p0, p1]
        && u32::from(value.kind) == kind
}

/// The backend in the table's entry for the flow, or in one that follows it by so many steps.
#[inline(always)]
fn pick(step: u32) -> u32 {
    let Some(packet) = packet() else { return NO_BACKEND };
    let [first, size, flags] = packet.table;
    if size == 0 {
        return NO_BACKEND;
    }
    let hash = flow::balance(&packet.key, flags & AFFINITY_CLIENT_IP != 0);
    let entry = flow::entry(hash, size).wrapping_add(step) % size;
    maps::maglev(first.wrapping_add(entry))
}

#[inline(always)]
fn promote(key: &ConnectionKey, value: &Connection) {
    if CONNECTIONS.insert(key, value, 0).is_ok() {
        let _ = PENDING.remove(key);
    }
}

/// Sees to it that replies of a backend to the packet at hand are translated back. `kind` is a [`ConnectionKind`], `node` the
/// data-path address of the node that the client spoke to (0 for VIPs).
///
/// [`super::packet::Packet::to`] is the backend's address, `other` is overwritten: with the replies' key, or the packet's own
/// where replies are another flow's.
#[inline(never)]
pub(in crate::datapath) fn expect_replies(backend: u32, kind: u32, node: u32, hairpin: u32) {
    let Some(packet) = packet() else { return };
    if packet.class == ERROR || packet.class == LATER {
        return;
    }
    reply_key(hairpin);
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&packet.other) {
        // SAFETY: as in `known`.
        let value = unsafe { &mut *connection };
        if is_own(value, kind) && packet.starts == 0 {
            came_by(value, node);
            return;
        }
        if packet.key.protocol == ip::TCP && is_anothers(value, kind) {
            if packet.starts != 0 {
                value.state |= CONTESTED;
                await_replies(backend, kind, node);
            }
            packet.other = packet.key;
            flows::forget();
            return;
        }
        let _ = CONNECTIONS.remove(&packet.other);
    } else if let Some(connection) = PENDING.get_ptr_mut(&packet.other) {
        // SAFETY: as in `known`.
        let value = unsafe { &mut *connection };
        if is_own(value, kind) && packet.starts == 0 {
            came_by(value, node);
            if value.state & (ANSWERED | CLOSED) == ANSWERED {
                promote(&packet.other, value);
            }
            return;
        }
    }
    await_replies(backend, kind, node);
    maps::renew(&packet.other);
    flows::forget();
}

/// Makes the entry for replies that have the key [`super::packet::Packet::other`].
#[inline(always)]
fn await_replies(backend: u32, kind: u32, node: u32) {
    let Some(packet) = packet() else { return };
    let [_, _, p0, p1] = packet.key.ports;
    packet.found.address = packet.key.destination;
    packet.found.backend = backend;
    packet.found.node = node.to_ne_bytes();
    packet.found.port = [p0, p1];
    packet.found.kind = kind as u8;
    packet.found.state = if begins_connection() { BEGINS } else { 0 };
    packet.found.padding = 0;
    let _ = PENDING.insert(&packet.other, &packet.found, 0);
}

/// Notes by which node the client speaks, in the entry that [`super::packet::Packet::other`] is the key of.
#[inline(always)]
fn came_by(value: &mut Connection, node: u32) {
    let Some(packet) = packet() else { return };
    if value.node != node.to_ne_bytes() {
        value.node = node.to_ne_bytes();
        maps::renew(&packet.other);
    }
}

/// Makes [`super::packet::Packet::other`] the key of the replies.
#[inline(always)]
fn reply_key(hairpin: u32) {
    let Some(packet) = packet() else { return };
    let [s0, s1, d0, d1] = packet.key.ports;
    let [t0, t1] = packet.target;
    let [d0, d1] = if u16::from_ne_bytes([t0, t1]) == 0 { [d0, d1] } else { [t0, t1] };
    packet.other.source = packet.to;
    packet.other.destination = if hairpin == 0 { packet.key.source } else { hairpin_source() };
    packet.other.ports = swapped([s0, s1, d0, d1]);
    packet.other.protocol = packet.key.protocol;
    packet.other.vni = packet.reply_vni;
}

/// What a container that reaches itself through a VIP sees as the source: the VIP, which it can answer in any network;
/// something else where its answers would look like what it asked.
#[inline(always)]
pub(in crate::datapath) fn hairpin_source() -> Address {
    let Some(packet) = packet() else { return Address::NONE };
    let [s0, s1, d0, d1] = packet.key.ports;
    match (u16::from_ne_bytes([s0, s1]) == u16::from_ne_bytes([d0, d1]), packet.v6) {
        (false, _) => packet.key.destination,
        (true, 0) => Address::from_v4(mesh_ebpf_types::HAIRPIN_IPV4),
        (true, _) => mesh_ebpf_types::HAIRPIN_IPV6,
    }
}

/// Looks up whether a packet is a reply of a backend that has to be translated back; then
/// [`super::packet::Packet::to`] is the source's new address. Returns the connection's kind, and one more; 0 for none. The
/// rest of it is in [`super::packet::Packet::found`].
#[inline(never)]
pub(in crate::datapath) fn back() -> u32 {
    let Some(packet) = packet() else { return 0 };
    let (established, pointer) = match CONNECTIONS.get_ptr_mut(&packet.key) {
        Some(connection) if !is_superseded(connection) => (true, connection),
        _ => match PENDING.get_ptr_mut(&packet.key) {
            Some(connection) => (false, connection),
            None => return 0,
        },
    };
    // SAFETY: as in `known`.
    let value = unsafe { &mut *pointer };
    if value.kind == ConnectionKind::Forward as u8 {
        return 0;
    }
    // What is no answer to a SYN is of a direct connection between the same ports.
    let answers = packet.tcp_flags & u32::from(SYN | RST) != 0 || packet.class != FLOW;
    if !established && value.state & (BEGINS | ANSWERED) == BEGINS && !answers {
        return 0;
    }
    packet.to = value.address;
    packet.found = *value;
    if packet.class == ERROR || packet.class == LATER {
        return u32::from(value.kind) + 1;
    }
    forward_key();
    if established {
        finish(BACKEND_FINISHED);
    } else if value.state & ANSWERED == 0 {
        value.state |= ANSWERED;
        mark_answered();
        // The client's next packet makes an entry established, which is done on the long way: the other one, where there
        // is one, and this one where the client spoke to another node.
        maps::renew(&packet.other);
        // Packets of a direct connection may have been remembered since.
        maps::renew(&packet.key);
    }
    u32::from(packet.found.kind) + 1
}

/// Whether the reply at hand begins what contested an established connection; that is forgotten then.
#[inline(always)]
fn is_superseded(connection: *mut Connection) -> bool {
    let Some(packet) = packet() else { return false };
    // SAFETY: as in `known`.
    let state = unsafe { (*connection).state };
    let superseded = state & CONTESTED != 0 && packet.class == FLOW && packet.tcp_flags & u32::from(SYN) != 0;
    if superseded {
        let _ = CONNECTIONS.remove(&packet.key);
        maps::renew(&packet.key);
    }
    superseded
}

/// Makes [`super::packet::Packet::other`] the key of the opposite direction, of a reply at hand that was found.
#[inline(always)]
fn forward_key() {
    let Some(packet) = packet() else { return };
    let [_, _, c0, c1] = packet.key.ports;
    let [p0, p1] = packet.found.port;
    let hairpin = packet.found.kind == ConnectionKind::Hairpin as u8;
    let published = packet.found.kind == ConnectionKind::Published as u8
        || packet.found.node == HAIRPIN_NODE.to_ne_bytes();
    packet.other.source = if hairpin { packet.key.source } else { packet.key.destination };
    packet.other.destination = packet.found.address;
    packet.other.ports = [c0, c1, p0, p1];
    packet.other.protocol = packet.key.protocol;
    packet.other.vni = if published { [0; 3] } else { packet.key.vni };
}

/// Notes that what [`super::packet::Packet::other`] is the key of was answered. Whether that is new.
#[inline(never)]
fn mark_answered() -> bool {
    let Some(packet) = packet() else { return false };
    let Some(connection) = PENDING.get_ptr_mut(&packet.other) else { return false };
    // SAFETY: as in `known`.
    let value = unsafe { &mut *connection };
    let first = value.state & ANSWERED == 0;
    value.state |= ANSWERED;
    first
}

/// Notes a packet that ends a direction of its flow, `bit`, in both entries: the packet's own, and that which
/// [`super::packet::Packet::other`] is the key of. An entry whose flow is over moves to `PENDING`.
#[inline(always)]
pub(in crate::datapath) fn finish(bit: u8) {
    let Some(packet) = packet() else { return };
    if packet.key.protocol != ip::TCP || packet.tcp_flags & u32::from(FIN | RST) == 0 {
        return;
    }
    close(true, bit);
    close(false, bit);
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

/// Forgets replies of a tuple, if need be once the backend answers: the packet at hand begins a direct connection between the
/// same ports.
#[inline(never)]
pub(in crate::datapath) fn forget_replies() {
    let Some(packet) = packet() else { return };
    packet.other.source = packet.key.destination;
    packet.other.destination = packet.key.source;
    packet.other.ports = swapped(packet.key.ports);
    packet.other.protocol = packet.key.protocol;
    packet.other.vni = packet.key.vni;
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&packet.other) {
        // SAFETY: as in `known`.
        let value = unsafe { &mut *connection };
        if packet.key.protocol == ip::TCP && value.kind != ConnectionKind::Forward as u8 {
            value.state |= CONTESTED;
            let _ = PENDING.remove(&packet.other);
            return;
        }
    }
    let established = CONNECTIONS.remove(&packet.other).is_ok();
    if PENDING.remove(&packet.other).is_ok() || established {
        maps::renew(&packet.other);
    }
}

/// A backend's address of the packet's family; `None` if it has none.
#[inline(always)]
pub(in crate::datapath) fn address_of(backend: &Backend, v6: bool) -> Option<Address> {
    let address = if v6 { backend.ipv6 } else { Address::from_v4(backend.ipv4) };
    let none = if v6 { address.is_none() } else { u32::from_ne_bytes(backend.ipv4) == 0 };
    if none { None } else { Some(address) }
}

/// As [`finish`], for the packet's own entry only.
#[inline(always)]
pub(in crate::datapath) fn finish_own(bit: u8) {
    let Some(packet) = packet() else { return };
    if packet.key.protocol == ip::TCP && packet.tcp_flags & u32::from(FIN | RST) != 0 {
        close(false, bit);
    }
}

/// Notes, on the node that the client spoke to, that a flow was answered by another node's backend.
#[inline(never)]
pub(in crate::datapath) fn note_reply() {
    let Some(packet) = packet() else { return };
    packet.other.source = packet.key.destination;
    packet.other.destination = packet.key.source;
    packet.other.ports = swapped(packet.key.ports);
    packet.other.protocol = packet.key.protocol;
    packet.other.vni = [0; 3];
    if mark_answered() {
        maps::renew(&packet.other);
    }
    if packet.key.protocol == ip::TCP && packet.tcp_flags & u32::from(FIN | RST) != 0 {
        close(true, BACKEND_FINISHED);
    }
}
