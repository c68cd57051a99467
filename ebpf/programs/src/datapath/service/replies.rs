//! Translation of a backend's replies, and the flows to which they belong.
//!
//! A client may use one port in several connections: to two VIPs, to a VIP and directly to one of
//! its backends, or to two host addresses. At one backend these would be the same tuple, so the
//! later connection gets another client port there ([`change_port`]).
//!
//! Sometimes this is impossible: for a direct connection, which is not recorded here, and for a
//! container that reaches itself through two VIPs. Then an established TCP connection keeps its
//! replies. A new one waits in `PENDING` under the same key until the backend's SYN shows that the
//! former one is over.

use mesh_ebpf::transport::{RST, SYN, swapped};
use mesh_ebpf::{flow, ip};
use mesh_ebpf_types::{
    ANSWERED, Address, BACKEND_FINISHED, BEGINS, CLOSED, CONTESTED, Connection, ConnectionKind, RETURNS,
};

use super::allowance::{note_use, promote};
use super::connection::{NO_BACKEND, begins_connection, finish, forward, known, mark_answered, opposite_key};
use super::packet::{ERROR, FLOW, LATER, Packet, is_same as same_address};
use crate::datapath::maps::{self, CONNECTIONS, PENDING};

/// How many other client ports are tried to make a flow unique.
const TRIES: u32 = 8;

/// [`Connection::node`] of a container's flow to itself through a published port of its host.
pub(in crate::datapath) const HAIRPIN_NODE: u32 = u32::MAX;

/// Ensures that the backend's replies to the current packet are translated back. `kind` is a
/// [`ConnectionKind`]. `node` is the data-path address of the node where the client's packets
/// arrive (0 for VIPs, and for this node).
///
/// [`super::packet::Decided::to`] is the backend's address. This function decides the client's
/// port. It overwrites `other` with the key of the replies, or with the packet's own if replies
/// belong to another flow.
#[inline(never)]
pub(in crate::datapath) fn expect_replies(
    packet: &mut Packet,
    backend: u32,
    kind: u32,
    node: u32,
    hairpin: u32,
) {
    if packet.parsed.class == LATER {
        return;
    }
    reply_key(packet, hairpin);
    if is_expected(packet, backend, kind, node)
        || hairpin == 0 && is_expected_elsewhere(packet, backend, kind, node)
        || packet.parsed.class == ERROR
    {
        return;
    }
    if hairpin == 0 && may_change_port(packet) && is_taken(packet, kind) {
        change_port(packet, backend, kind);
    }
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&packet.scratch.other) {
        // SAFETY: as in `known`.
        let value = unsafe { &mut *connection };
        if packet.parsed.key.protocol == ip::TCP && belongs_to_another(packet, value, kind) {
            if packet.parsed.starts != 0 {
                value.state |= CONTESTED;
                await_replies(packet, backend, kind, node);
            }
            packet.scratch.other = packet.parsed.key;
            packet.scratch.memo.forget();
            return;
        }
        let _ = CONNECTIONS.remove(&packet.scratch.other);
    }
    await_replies(packet, backend, kind, node);
    maps::renew(&packet.scratch.other);
    packet.scratch.memo.forget();
}

/// Returns whether there is an entry for replies to the current packet, with the key
/// [`super::packet::Scratch::other`], and updates it. A finished connection's entry does not count
/// for a new one.
#[inline(never)]
fn is_expected(packet: &mut Packet, backend: u32, kind: u32, node: u32) -> bool {
    let (established, pointer) = match CONNECTIONS.get_ptr_mut(&packet.scratch.other) {
        Some(connection) => (true, connection),
        None => match PENDING.get_ptr_mut(&packet.scratch.other) {
            Some(connection) => (false, connection),
            None => return false,
        },
    };
    // SAFETY: as in `known`.
    let value = unsafe { &mut *pointer };
    if !is_own(packet, value, kind) || packet.parsed.starts != 0 && value.state & CLOSED != 0 {
        return false;
    }
    if packet.parsed.starts != 0 {
        // The backend answers the client that requested a connection last.
        value.state &= !CONTESTED;
    }
    if packet.parsed.class != ERROR {
        note_origin(packet, value, backend, node);
        note_use(value);
        if !established && packet.parsed.starts == 0 && value.state & (ANSWERED | CLOSED) == ANSWERED {
            promote(packet.decided.reply_vni, &packet.scratch.other, value);
        }
    }
    if u16::from_ne_bytes(packet.decided.client_port) != 0 {
        // The fast path rewrites one end only.
        packet.scratch.memo.forget();
    }
    true
}

/// As [`is_expected`], if the client uses another node, where its port may have been replaced: the
/// flow's records on this node decide.
#[inline(never)]
fn is_expected_elsewhere(packet: &mut Packet, backend: u32, kind: u32, node: u32) -> bool {
    if node == 0 || known(packet) == NO_BACKEND || u16::from_ne_bytes(packet.decided.client_port) == 0 {
        return false;
    }
    reply_key(packet, 0);
    is_expected(packet, backend, kind, node)
}

/// Returns whether the client's port may still change: a connection keeps the port with which it
/// began.
#[inline(always)]
fn may_change_port(packet: &Packet) -> bool {
    match packet.parsed.key.protocol {
        ip::TCP => packet.parsed.starts != 0,
        protocol => protocol == ip::UDP,
    }
}

/// Returns whether another flow has or had the replies with the key
/// [`super::packet::Scratch::other`]. A finished flow counts too: the backend may have the
/// connection in TIME-WAIT (RFC 9293, section 3.6.1).
#[inline(never)]
fn is_taken(packet: &Packet, kind: u32) -> bool {
    let entry =
        CONNECTIONS.get_ptr_mut(&packet.scratch.other).or_else(|| PENDING.get_ptr_mut(&packet.scratch.other));
    // SAFETY: as in `known`.
    entry.is_some_and(|connection| belongs_to_another(packet, unsafe { &*connection }, kind))
}

/// Finds a client port that makes the flow unique at the backend, and records it with the flow.
/// Changes nothing if [`TRIES`] ports are in use.
#[inline(never)]
fn change_port(packet: &mut Packet, backend: u32, kind: u32) {
    for step in 0..TRIES {
        packet.decided.client_port = flow::another_port(&packet.parsed.key, step);
        reply_key(packet, 0);
        if !is_taken(packet, kind) {
            packet.scratch.found = Connection {
                port: packet.decided.client_port,
                ..forward(packet, backend, packet.decided.reply_vni)
            };
            let _ = PENDING.insert(&packet.parsed.key, &packet.scratch.found, 0);
            let _ = CONNECTIONS.remove(&packet.parsed.key);
            maps::renew(&packet.parsed.key);
            return;
        }
    }
    packet.decided.client_port = [0; 2];
    reply_key(packet, 0);
}

/// Returns whether a reply entry belongs to another flow than the packet's, which has this kind.
#[inline(always)]
fn belongs_to_another(packet: &Packet, value: &Connection, kind: u32) -> bool {
    value.kind != ConnectionKind::Forward as u8 && !is_own(packet, value, kind)
}

/// Returns whether a reply entry belongs to the packet's own flow.
#[inline(always)]
fn is_own(packet: &Packet, value: &Connection, kind: u32) -> bool {
    let [_, _, p0, p1] = packet.parsed.key.ports;
    same_address(&value.address, &packet.parsed.key.destination)
        && value.port == [p0, p1]
        && value.client_port == own_port(packet)
        && u32::from(value.kind) == kind
}

/// Returns [`Connection::client_port`] of the replies.
#[inline(always)]
fn own_port(packet: &Packet) -> [u8; 2] {
    let [s0, s1, ..] = packet.parsed.key.ports;
    if u16::from_ne_bytes(packet.decided.client_port) == 0 { [0; 2] } else { [s0, s1] }
}

/// Creates the entry for replies with the key [`super::packet::Scratch::other`].
#[inline(always)]
fn await_replies(packet: &mut Packet, backend: u32, kind: u32, node: u32) {
    let [_, _, p0, p1] = packet.parsed.key.ports;
    packet.scratch.found.address = packet.parsed.key.destination;
    packet.scratch.found.backend = backend;
    packet.scratch.found.node = node.to_ne_bytes();
    packet.scratch.found.port = [p0, p1];
    packet.scratch.found.kind = kind as u8;
    packet.scratch.found.state =
        if begins_connection(packet) && may_be_direct(packet, kind) { BEGINS } else { 0 };
    packet.scratch.found.state |= returns(packet, node);
    packet.scratch.found.client_port = own_port(packet);
    packet.scratch.found.used = 0;
    let _ = PENDING.insert(&packet.scratch.other, &packet.scratch.found, 0);
}

/// Returns whether the backend may have a direct connection between the ports of the new one.
///
/// It has none if the flow's former connection was answered, and its client was not outside. Then
/// all segments from the backend belong to the flow. The backend may still have the former
/// connection, and answers a SYN of the new one with an ACK (RFC 5961, section 4; RFC 9293, section
/// 3.10.7.4).
#[inline(never)]
fn may_be_direct(packet: &Packet, kind: u32) -> bool {
    if kind == ConnectionKind::Published as u32 && maps::network_of(packet.parsed.key.source).is_none() {
        return false;
    }
    // SAFETY: as in `known`.
    let answered = |connection: *mut Connection| unsafe {
        is_own(packet, &*connection, kind) && (*connection).state & (BEGINS | ANSWERED) != BEGINS
    };
    !PENDING.get_ptr_mut(&packet.scratch.other).is_some_and(answered)
}

/// Records the flow's backend and the client's node in the entry with the key
/// [`super::packet::Scratch::other`].
#[inline(always)]
fn note_origin(packet: &Packet, value: &mut Connection, backend: u32, node: u32) {
    let returns = returns(packet, node);
    if value.node != node.to_ne_bytes() || value.backend != backend || value.state & RETURNS != returns {
        value.node = node.to_ne_bytes();
        value.backend = backend;
        value.state = value.state & !RETURNS | returns;
        maps::renew(&packet.scratch.other);
    }
}

/// [`RETURNS`] or 0, of a flow whose client spoke to that node.
#[inline(always)]
fn returns(packet: &Packet, node: u32) -> u8 {
    if node != 0 && packet.decided.returns != 0 { RETURNS } else { 0 }
}

/// Makes [`super::packet::Scratch::other`] the key of the replies.
#[inline(always)]
fn reply_key(packet: &mut Packet, hairpin: u32) {
    let [s0, s1, d0, d1] = packet.parsed.key.ports;
    let [t0, t1] = packet.decided.target;
    let [d0, d1] = if u16::from_ne_bytes([t0, t1]) == 0 { [d0, d1] } else { [t0, t1] };
    packet.scratch.other.source = packet.decided.to;
    packet.scratch.other.destination =
        if hairpin == 0 { packet.parsed.key.source } else { hairpin_source(packet) };
    let [c0, c1] = packet.decided.client_port;
    let [s0, s1] = if u16::from_ne_bytes([c0, c1]) == 0 { [s0, s1] } else { [c0, c1] };
    packet.scratch.other.ports = swapped([s0, s1, d0, d1]);
    packet.scratch.other.protocol = packet.parsed.key.protocol;
    packet.scratch.other.vni = packet.decided.reply_vni;
}

/// Returns the source address for a container that reaches itself through a VIP. This is the VIP,
/// to which it can reply in any network, unless replies would look like requests.
#[inline(always)]
pub(in crate::datapath) fn hairpin_source(packet: &Packet) -> Address {
    let [s0, s1, d0, d1] = packet.parsed.key.ports;
    match (u16::from_ne_bytes([s0, s1]) == u16::from_ne_bytes([d0, d1]), packet.parsed.v6) {
        (false, _) => packet.parsed.key.destination,
        (true, 0) => Address::from_v4(mesh_ebpf_types::HAIRPIN_IPV4),
        (true, _) => mesh_ebpf_types::HAIRPIN_IPV6,
    }
}

/// Looks up whether a packet is a backend's reply that must be translated back. If so,
/// [`super::packet::Decided::to`] becomes the new source address, and
/// [`super::packet::Scratch::found`] the entry. Returns the connection's kind plus one; 0 for none.
#[inline(never)]
pub(in crate::datapath) fn back(packet: &mut Packet) -> u32 {
    let (established, pointer) = match CONNECTIONS.get_ptr_mut(&packet.parsed.key) {
        Some(connection) if !is_superseded(packet, connection) => (true, connection),
        _ => match PENDING.get_ptr_mut(&packet.parsed.key) {
            Some(connection) => (false, connection),
            None => return 0,
        },
    };
    // SAFETY: as in `known`.
    let value = unsafe { &mut *pointer };
    if value.kind == ConnectionKind::Forward as u8 {
        return 0;
    }
    // A segment that does not answer a SYN belongs to a direct connection between the same ports.
    let answers = packet.parsed.tcp_flags & u32::from(SYN | RST) != 0 || packet.parsed.class != FLOW;
    if !established && value.state & (BEGINS | ANSWERED) == BEGINS && !answers {
        return 0;
    }
    packet.decided.to = value.address;
    packet.scratch.found = *value;
    packet.decided.client_port = value.client_port;
    if u16::from_ne_bytes(value.client_port) != 0 {
        // The fast path rewrites one end only.
        packet.scratch.memo.forget();
    }
    if packet.parsed.class == ERROR || packet.parsed.class == LATER {
        return u32::from(value.kind) + 1;
    }
    forward_key(packet);
    if established {
        note_use(value);
        finish(packet, BACKEND_FINISHED);
    } else if value.state & ANSWERED == 0 {
        value.state |= ANSWERED;
        mark_answered(packet);
        // The client's next packet makes an entry established, which happens on the slow path. This
        // concerns the forward entry, if there is one, and this entry if the client uses another
        // node.
        maps::renew(&packet.scratch.other);
        // Packets of a direct connection may have been cached meanwhile.
        maps::renew(&packet.parsed.key);
    }
    u32::from(packet.scratch.found.kind) + 1
}

/// Returns whether the current reply begins a connection that competed with an established one.
/// Ends the competition.
#[inline(always)]
fn is_superseded(packet: &Packet, connection: *mut Connection) -> bool {
    // SAFETY: as in `known`.
    let state = unsafe { (*connection).state };
    let superseded = state & CONTESTED != 0
        && packet.parsed.class == FLOW
        && packet.parsed.tcp_flags & u32::from(SYN) != 0;
    if superseded {
        let _ = CONNECTIONS.remove(&packet.parsed.key);
        maps::renew(&packet.parsed.key);
    }
    superseded
}

/// Makes [`super::packet::Scratch::other`] the key of the opposite direction of the current reply,
/// whose entry was found.
#[inline(always)]
pub(super) fn forward_key(packet: &mut Packet) {
    let [_, _, c0, c1] = packet.parsed.key.ports;
    let own = packet.decided.client_port;
    let [c0, c1] = if u16::from_ne_bytes(own) == 0 { [c0, c1] } else { own };
    let [p0, p1] = packet.scratch.found.port;
    let hairpin = packet.scratch.found.kind == ConnectionKind::Hairpin as u8;
    let published = packet.scratch.found.kind == ConnectionKind::Published as u8
        || packet.scratch.found.node == HAIRPIN_NODE.to_ne_bytes();
    packet.scratch.other.source =
        if hairpin { packet.parsed.key.source } else { packet.parsed.key.destination };
    packet.scratch.other.destination = packet.scratch.found.address;
    packet.scratch.other.ports = [c0, c1, p0, p1];
    packet.scratch.other.protocol = packet.parsed.key.protocol;
    packet.scratch.other.vni = if published { [0; 3] } else { packet.parsed.key.vni };
}

/// Deletes the reply entry of a tuple, or marks it for deletion once the backend answers: the
/// current packet begins a direct connection between the same ports.
#[inline(never)]
pub(in crate::datapath) fn forget_replies(packet: &mut Packet) {
    opposite_key(packet, packet.parsed.key.vni);
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&packet.scratch.other) {
        // SAFETY: as in `known`.
        let value = unsafe { &mut *connection };
        if packet.parsed.key.protocol == ip::TCP && value.kind != ConnectionKind::Forward as u8 {
            value.state |= CONTESTED;
            let _ = PENDING.remove(&packet.scratch.other);
            return;
        }
    }
    let established = CONNECTIONS.remove(&packet.scratch.other).is_ok();
    if PENDING.remove(&packet.scratch.other).is_ok() || established {
        maps::renew(&packet.scratch.other);
    }
}
