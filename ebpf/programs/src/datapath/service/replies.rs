//! What replies of a backend become, and which are whose.
//!
//! A client may have the same port in several connections: to two VIPs, to a VIP and straight to
//! one of its backends, to two of the hosts' addresses. Towards one backend those are the same
//! tuple, so that the later one gets another port there ([`change_port`]). Where that cannot be
//! (what goes straight to a backend is not known here; a container that calls itself through two
//! VIPs), a TCP connection that is established keeps its replies: one that begins waits in
//! `PENDING` under the same key until the backend itself says, by a SYN, that the former one is
//! over.

use mesh_ebpf::transport::{RST, SYN, swapped};
use mesh_ebpf::{flow, ip};
use mesh_ebpf_types::{
    ANSWERED, Address, BACKEND_FINISHED, BEGINS, CLOSED, CONTESTED, Connection, ConnectionKind, RETURNS,
};

use super::allowance::{note_use, promote};
use super::connection::{NO_BACKEND, begins_connection, finish, forward, known, mark_answered, opposite_key};
use super::packet::{ERROR, FLOW, LATER, Packet, is_same as same_address};
use crate::datapath::maps::{self, CONNECTIONS, PENDING};

/// So many other ports of a client are tried, until one tells its flow from others.
const TRIES: u32 = 8;

/// [`Connection::node`] of a container's flow to itself through a published port of its host.
pub(in crate::datapath) const HAIRPIN_NODE: u32 = u32::MAX;

/// Sees to it that replies of a backend to the packet at hand are translated back. `kind` is a
/// [`ConnectionKind`], `node` the data-path address of the node that the client spoke to (0 for
/// VIPs, and for this one).
///
/// [`super::packet::Decided::to`] is the backend's address; it is clear now what becomes of the
/// client's port. `other` is overwritten: with the replies' key, or the packet's own where replies
/// are another flow's.
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
        if packet.parsed.key.protocol == ip::TCP && is_anothers(packet, value, kind) {
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

/// Whether there is an entry for replies to the packet at hand, with the key
/// [`super::packet::Scratch::other`]. The entry is updated. That of a connection that is over is no
/// entry for a new one.
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
        // The last that asked for a connection is the one that the backend answers.
        value.state &= !CONTESTED;
    }
    if packet.parsed.class != ERROR {
        came_by(packet, value, backend, node);
        note_use(value);
        if !established && packet.parsed.starts == 0 && value.state & (ANSWERED | CLOSED) == ANSWERED {
            promote(packet.decided.reply_vni, &packet.scratch.other, value);
        }
    }
    if u16::from_ne_bytes(packet.decided.client_port) != 0 {
        // The fast path changes one end only.
        packet.scratch.memo.forget();
    }
    true
}

/// As [`is_expected`], where the client spoke to another node, and its port may be another one at
/// the backend: what is known of the flow here says so.
#[inline(never)]
fn is_expected_elsewhere(packet: &mut Packet, backend: u32, kind: u32, node: u32) -> bool {
    if node == 0 || known(packet) == NO_BACKEND || u16::from_ne_bytes(packet.decided.client_port) == 0 {
        return false;
    }
    reply_key(packet, 0);
    is_expected(packet, backend, kind, node)
}

/// Whether the client's port may become another one now: a connection has the one that it began
/// with.
#[inline(always)]
fn may_change_port(packet: &Packet) -> bool {
    match packet.parsed.key.protocol {
        ip::TCP => packet.parsed.starts != 0,
        protocol => protocol == ip::UDP,
    }
}

/// Whether another flow has or had the replies with the key [`super::packet::Scratch::other`]. That
/// it is over is no reason to take its place: the backend may have the connection in TIME-WAIT (RFC
/// 9293, section 3.6.1).
#[inline(never)]
fn is_taken(packet: &Packet, kind: u32) -> bool {
    let entry =
        CONNECTIONS.get_ptr_mut(&packet.scratch.other).or_else(|| PENDING.get_ptr_mut(&packet.scratch.other));
    // SAFETY: as in `known`.
    entry.is_some_and(|connection| is_anothers(packet, unsafe { &*connection }, kind))
}

/// Finds a port of the client's with which the flow is no other one's at the backend, and remembers
/// it with the flow. Changes nothing where there is none within [`TRIES`].
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

/// Whether an entry for replies is of another flow than the packet's own, whose kind is given.
#[inline(always)]
fn is_anothers(packet: &Packet, value: &Connection, kind: u32) -> bool {
    value.kind != ConnectionKind::Forward as u8 && !is_own(packet, value, kind)
}

/// Whether an entry for replies is of the packet's own flow.
#[inline(always)]
fn is_own(packet: &Packet, value: &Connection, kind: u32) -> bool {
    let [_, _, p0, p1] = packet.parsed.key.ports;
    same_address(&value.address, &packet.parsed.key.destination)
        && value.port == [p0, p1]
        && value.client_port == own_port(packet)
        && u32::from(value.kind) == kind
}

/// [`Connection::client_port`] of the replies.
#[inline(always)]
fn own_port(packet: &Packet) -> [u8; 2] {
    let [s0, s1, ..] = packet.parsed.key.ports;
    if u16::from_ne_bytes(packet.decided.client_port) == 0 { [0; 2] } else { [s0, s1] }
}

/// Makes the entry for replies that have the key [`super::packet::Scratch::other`].
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

/// Whether the backend may have a direct connection between the ports of the one that begins.
///
/// It has none if the flow's former connection was answered, and with nobody outside. The backend's
/// segments are the flow's then, whatever they are: it may still have the former connection, and
/// answers a SYN of the new one with an ACK (RFC 5961, section 4; RFC 9293, section 3.10.7.4).
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

/// Notes which backend has the flow and by which node the client speaks, in the entry that
/// [`super::packet::Scratch::other`] is the key of.
#[inline(always)]
fn came_by(packet: &Packet, value: &mut Connection, backend: u32, node: u32) {
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

/// What a container that reaches itself through a VIP sees as the source: the VIP, which it can
/// answer in any network; something else where its answers would look like what it asked.
#[inline(always)]
pub(in crate::datapath) fn hairpin_source(packet: &Packet) -> Address {
    let [s0, s1, d0, d1] = packet.parsed.key.ports;
    match (u16::from_ne_bytes([s0, s1]) == u16::from_ne_bytes([d0, d1]), packet.parsed.v6) {
        (false, _) => packet.parsed.key.destination,
        (true, 0) => Address::from_v4(mesh_ebpf_types::HAIRPIN_IPV4),
        (true, _) => mesh_ebpf_types::HAIRPIN_IPV6,
    }
}

/// Looks up whether a packet is a reply of a backend that has to be translated back; then
/// [`super::packet::Decided::to`] is the source's new address. Returns the connection's kind, and
/// one more; 0 for none. The rest of it is in [`super::packet::Scratch::found`].
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
    // What is no answer to a SYN is of a direct connection between the same ports.
    let answers = packet.parsed.tcp_flags & u32::from(SYN | RST) != 0 || packet.parsed.class != FLOW;
    if !established && value.state & (BEGINS | ANSWERED) == BEGINS && !answers {
        return 0;
    }
    packet.decided.to = value.address;
    packet.scratch.found = *value;
    packet.decided.client_port = value.client_port;
    if u16::from_ne_bytes(value.client_port) != 0 {
        // The fast path changes one end only.
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
        // The client's next packet makes an entry established, which is done on the slow path: the
        // other one, where there is one, and this one where the client spoke to another node.
        maps::renew(&packet.scratch.other);
        // Packets of a direct connection may have been remembered since.
        maps::renew(&packet.parsed.key);
    }
    u32::from(packet.scratch.found.kind) + 1
}

/// Whether the reply at hand begins what contested an established connection; that is forgotten
/// then.
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

/// Makes [`super::packet::Scratch::other`] the key of the opposite direction, of a reply at hand
/// that was found.
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

/// Forgets replies of a tuple, if need be once the backend answers: the packet at hand begins a
/// direct connection between the same ports.
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
