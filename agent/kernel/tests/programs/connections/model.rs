//! What the programs of two nodes should do with a packet: a reference that is simple rather than
//! fast.

use std::collections::{BTreeMap, BTreeSet};

use mesh_ebpf::flow;
use mesh_ebpf_types::{Address, ConnectionKey, HAIRPIN_IPV4, HAIRPIN_IPV6};

use super::packet::{ACK, FIN, Flow, Packet, RST, SYN, TCP, UDP, Upper};

/// So many other ports of a client are tried, until one tells its flow from others.
const TRIES: u32 = 8;

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// An endpoint gets it.
    Endpoint { address: Address, packet: Packet },
    /// It leaves a node for the world outside.
    Outside { node: usize, packet: Packet },
    /// It is dropped.
    Dropped,
    /// It is none of the services', and for no endpoint.
    Elsewhere,
}

/// A service: its addresses, the port published for it with the backends' own, and the numbers in
/// its table.
#[derive(Debug, Clone, Default)]
pub(super) struct Service {
    pub(super) vips: [Address; 2],
    pub(super) published: Option<(u16, u16)>,
    pub(super) affinity: bool,
    pub(super) table: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Forward,
    Back,
    Hairpin,
    Published,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Answered,
    /// Answered, and used again: no flood pushes it out.
    Established,
    /// Closed by both, or reset.
    Over,
}

/// What is known of one direction of a flow.
#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: Kind,
    backend: u32,
    /// Replies: what becomes of their source.
    address: Address,
    port: u16,
    /// The client's port where it is another one at the backend: that one; replies: its own.
    client_port: Option<u16>,
    /// Replies of a published port: the node that the client spoke to.
    node: Option<usize>,
    stage: Stage,
    /// Who closed the flow: the client, the backend.
    closed: [bool; 2],
    /// Replies: made for a SYN.
    begins: bool,
    /// Replies: the client wants another connection between the same ports.
    contested: bool,
}

impl Entry {
    const fn new(kind: Kind, backend: u32) -> Self {
        let (stage, closed) = (Stage::New, [false; 2]);
        let (begins, contested) = (false, false);
        let (address, port, client_port, node) = (Address::NONE, 0, None, None);
        Self { kind, backend, address, port, client_port, node, stage, closed, begins, contested }
    }

    /// Whether it is of the replies of another flow than the one whose replies are expected so.
    fn is_anothers(&self, expected: &Self) -> bool {
        self.kind != Kind::Forward && !self.is_same(expected)
    }

    fn is_same(&self, other: &Self) -> bool {
        let all = |entry: &Self| (entry.kind, entry.address, entry.port, entry.client_port);
        all(self) == all(other)
    }

    /// A reply as its client knows it.
    fn back(&self, packet: Packet) -> Packet {
        let port = self.client_port.unwrap_or(packet.flow().ports[1]);
        packet.from(self.address, self.port).with_port(1, port)
    }

    const fn answered(&mut self) {
        if matches!(self.stage, Stage::New) {
            self.stage = Stage::Answered;
        }
    }

    /// Whether a SYN is for its connection's backend: the connection was answered, and is not over.
    const fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Answered | Stage::Established)
    }

    const fn used(&mut self) {
        if matches!(self.stage, Stage::Answered) {
            self.stage = Stage::Established;
        }
    }

    const fn end(&mut self, flags: u8, by: usize) {
        if !matches!(self.stage, Stage::Established) {
            return;
        }
        self.closed[by] = true;
        if flags & RST != 0 || self.closed[CLIENT] && self.closed[BACKEND] {
            self.stage = Stage::Over;
        }
    }
}

const CLIENT: usize = 0;
const BACKEND: usize = 1;

/// An entry is of a network, or (`false`) of what is sent to published ports.
type Key = (bool, Flow);

enum Choice {
    Backend(u32),
    Nobody,
    Gone,
}

/// The world as the model sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    /// The node of each endpoint's addresses.
    pub(super) endpoints: BTreeMap<Address, usize>,
    /// Addresses that are, or were, backends'.
    pub(super) backend_addresses: BTreeSet<Address>,
    /// The addresses of each backend that is there: IPv4, IPv6.
    pub(super) backends: BTreeMap<u32, [Address; 2]>,
    /// Those of them that fail their check.
    pub(super) failing: BTreeSet<u32>,
    /// Addresses of each node's host.
    pub(super) hosts: [BTreeSet<Address>; 2],
    pub(super) services: Vec<Service>,
    entries: [BTreeMap<Key, Entry>; 2],
    /// What takes the place of a contested entry once the backend answers with a SYN.
    candidates: [BTreeMap<Key, Entry>; 2],
}

impl Model {
    /// How many directions of flows are established on a node: of the network, and towards
    /// published ports.
    pub(super) fn established(&self, node: usize) -> [usize; 2] {
        let established = self.entries[node].iter().filter(|(_, entry)| entry.stage == Stage::Established);
        let (network, published): (Vec<_>, Vec<_>) = established.partition(|((network, _), _)| *network);
        [network.len(), published.len()]
    }

    /// What an endpoint of a node sends.
    pub(super) fn sent(&mut self, node: usize, packet: Packet) -> Outcome {
        let flow = packet.flow();
        if self.backend_addresses.contains(&flow.source)
            && let Some(entry) = self.answers(node, &packet)
        {
            return self.reply(node, entry, packet);
        }
        if let Some(service) = self.services.iter().find(|service| service.vips.contains(&flow.destination)) {
            let service = service.clone();
            return self.balance(node, &service, packet);
        }
        if packet.starts() && self.backend_addresses.contains(&flow.destination) {
            let key = (true, flow.reversed());
            self.candidates[node].remove(&key);
            match self.entries[node].get_mut(&key) {
                Some(entry)
                    if entry.stage == Stage::Established
                        && entry.kind != Kind::Forward
                        && flow.protocol == TCP =>
                {
                    entry.contested = true;
                }
                _ => {
                    self.entries[node].remove(&key);
                }
            }
        }
        if self.hosts[node].contains(&flow.destination) {
            return self.arrived(node, packet);
        }
        self.forward(node, packet)
    }

    /// What arrives at a node from outside, or is sent by one of its endpoints, for one of the
    /// host's addresses.
    pub(super) fn arrived(&mut self, node: usize, packet: Packet) -> Outcome {
        let flow = packet.flow();
        let is_published = |service: &&Service| {
            matches!(flow.protocol, TCP | UDP)
                && service.published.is_some_and(|(published, _)| published == flow.ports[1])
        };
        let Some(service) = self.services.iter().find(is_published).cloned() else {
            return Outcome::Elsewhere;
        };
        let number = match self.choose(node, (false, flow), &service, &packet) {
            Choice::Backend(number) => number,
            Choice::Nobody => return self.refuse(node, &packet),
            Choice::Gone => return self.reset(node, &packet),
        };
        self.end(node, &[(false, flow)], &packet, CLIENT);
        let port = service.published.map_or(0, |(_, target)| target);
        self.give(node, number, port, packet)
    }

    /// A packet to a published port, on its backend's node.
    fn give(&mut self, node: usize, number: u32, port: u16, packet: Packet) -> Outcome {
        let flow = packet.flow();
        let address = self.address_of(number, &packet);
        let at = self.endpoints[&address];
        let hairpin = address == flow.source;
        let from = if hairpin { hairpin_source(flow) } else { flow.source };
        let replies = Flow { source: address, destination: from, ports: [port, flow.ports[0]], ..flow };
        let expected = Entry {
            address: flow.destination,
            port: flow.ports[1],
            node: Some(node),
            ..Entry::new(if hairpin { Kind::Hairpin } else { Kind::Published }, number)
        };
        let (own, replies) = self.expect(at, (false, flow), replies, expected, &packet);
        if own {
            self.end(at, &[(true, replies)], &packet, CLIENT);
        }
        self.end(at, &[(false, flow)], &packet, CLIENT);
        let mut packet = packet.to(address, port).with_port(0, replies.ports[1]);
        if hairpin {
            packet = packet.from(from, flow.ports[0]);
        }
        Outcome::Endpoint { address, packet }
    }

    fn balance(&mut self, node: usize, service: &Service, packet: Packet) -> Outcome {
        let flow = packet.flow();
        let number = match self.choose(node, (true, flow), service, &packet) {
            Choice::Backend(number) => number,
            Choice::Nobody => return self.refuse(node, &packet),
            Choice::Gone => return self.reset(node, &packet),
        };
        let (replies, expected) = self.replies(number, &packet);
        let (own, replies) = self.expect(node, (true, flow), replies, expected, &packet);
        if own {
            self.end(node, &[(true, replies)], &packet, CLIENT);
        }
        self.end(node, &[(true, flow)], &packet, CLIENT);
        let address = replies.source;
        let packet = packet.to(address, flow.ports[1]).with_port(0, replies.ports[1]);
        if address == flow.source {
            return Outcome::Endpoint { address, packet: packet.from(replies.destination, flow.ports[0]) };
        }
        self.forward(node, packet)
    }

    /// The replies of a backend to a packet to its VIP, and their entry.
    fn replies(&self, number: u32, packet: &Packet) -> (Flow, Entry) {
        let flow = packet.flow();
        let address = self.address_of(number, packet);
        let hairpin = address == flow.source;
        let from = if hairpin { hairpin_source(flow) } else { flow.source };
        let expected = Entry {
            address: flow.destination,
            port: flow.ports[1],
            ..Entry::new(if hairpin { Kind::Hairpin } else { Kind::Back }, number)
        };
        (Flow { source: address, destination: from, ..flow.reversed() }, expected)
    }

    /// Straight to an endpoint, wherever it is.
    fn forward(&mut self, node: usize, packet: Packet) -> Outcome {
        let address = packet.destination;
        let Some(&at) = self.endpoints.get(&address) else { return Outcome::Elsewhere };
        if at != node
            && self.backend_addresses.contains(&packet.source)
            && let Some(entry) = self.answers(at, &packet)
            && entry.kind == Kind::Back
        {
            return Outcome::Endpoint { address, packet: entry.back(packet) };
        }
        Outcome::Endpoint { address, packet }
    }

    fn reply(&mut self, node: usize, entry: Entry, packet: Packet) -> Outcome {
        let (own, flow) = (packet.flow().source, packet.flow());
        let packet = entry.back(packet);
        match entry.kind {
            Kind::Published => {}
            Kind::Hairpin => {
                return Outcome::Endpoint { address: own, packet: packet.to(own, flow.ports[1]) };
            }
            Kind::Back | Kind::Forward => {
                return Outcome::Endpoint { address: flow.destination, packet };
            }
        }
        // Another node takes replies of what it knows only.
        let to = entry.node.unwrap_or(node);
        if to != node && !self.backends.contains_key(&entry.backend) {
            return Outcome::Dropped;
        }
        if to != node && !packet.is_error() {
            let asked = (false, packet.flow().reversed());
            if let Some(forward) = self.entries[to].get_mut(&asked) {
                forward.answered();
            }
            self.end(to, &[asked], &packet, BACKEND);
        }
        match self.endpoints.get(&flow.destination) {
            Some(_) => Outcome::Endpoint { address: flow.destination, packet },
            None => Outcome::Outside { node: to, packet },
        }
    }

    fn choose(&mut self, node: usize, key: Key, service: &Service, packet: &Packet) -> Choice {
        let starts = packet.starts();
        if let Some(entry) = self.entries[node].get_mut(&key)
            && (!starts || entry.is_live() && !self.failing.contains(&entry.backend))
        {
            if !starts {
                entry.used();
            }
            if self.backends.contains_key(&entry.backend) {
                return Choice::Backend(entry.backend);
            }
            if !starts && key.1.protocol == TCP && !packet.is_error() {
                return Choice::Gone;
            }
        }
        let size = u32::try_from(service.table.len()).expect("a small table");
        let at = flow::entry(flow::balance(&hashed(key.1), service.affinity), size);
        let Some(&number) = service.table.get(at as usize) else { return Choice::Nobody };
        if !packet.is_error() {
            self.entries[node].insert(key, Entry::new(Kind::Forward, number));
        }
        Choice::Backend(number)
    }

    /// Sees to it that replies to what was `asked` are known. Returns their flow, and whether they
    /// are that (or another connection's of the client, between the same ports).
    fn expect(
        &mut self,
        node: usize,
        asked: Key,
        replies: Flow,
        expected: Entry,
        packet: &Packet,
    ) -> (bool, Flow) {
        let (tcp, starts) = (replies.protocol == TCP, packet.starts());
        let mut own = (replies, Entry { begins: tcp && starts, ..expected });
        let here = expected.node.is_none_or(|spoken_to| spoken_to == node);
        if (here || !self.is_expected(node, own, starts))
            && let Some(entry) = self.entries[node].get_mut(&asked)
            && (!starts || entry.is_live())
        {
            if !starts && !here && expected.kind != Kind::Hairpin {
                entry.used();
            }
            own = with_client_port(own, entry.client_port);
        }
        if self.is_expected(node, own, starts) {
            let key = (true, own.0);
            if let Some(entry) = self.entries[node].get_mut(&key)
                && !packet.is_error()
            {
                (entry.node, entry.backend) = (expected.node, expected.backend);
                if starts {
                    entry.contested = false;
                    self.candidates[node].remove(&key);
                } else {
                    entry.used();
                }
            }
            return (true, own.0);
        }
        if packet.is_error() {
            return (true, own.0);
        }
        let may_change = own.1.client_port.is_none()
            && expected.kind != Kind::Hairpin
            && (tcp && starts || replies.protocol == UDP);
        if may_change && self.is_taken(node, own) {
            own = self.change_port(node, asked, own);
        }
        let (replies, expected) = own;
        let key = (true, replies);
        let begins = expected.begins && self.may_be_direct(node, own, asked.1.source);
        let expected = Entry { begins, ..expected };
        if let Some(entry) = self.entries[node].get_mut(&key)
            && tcp
            && entry.stage == Stage::Established
            && entry.is_anothers(&expected)
        {
            if starts {
                entry.contested = true;
                self.candidates[node].insert(key, expected);
            }
            return (false, replies);
        }
        self.candidates[node].remove(&key);
        self.entries[node].insert(key, expected);
        (true, replies)
    }

    /// Whether the backend may have a direct connection between the same ports: not with somebody
    /// outside, and not where it has answered the flow's former connection.
    fn may_be_direct(&self, node: usize, (replies, expected): (Flow, Entry), client: Address) -> bool {
        let known = |entry: &Entry| entry.is_same(&expected) && (!entry.begins || entry.stage != Stage::New);
        (expected.kind != Kind::Published || self.endpoints.contains_key(&client))
            && !self.entries[node].get(&(true, replies)).is_some_and(known)
    }

    /// Whether there is an entry for replies. That of a connection that is over is none for a new
    /// one.
    fn is_expected(&self, node: usize, (replies, expected): (Flow, Entry), starts: bool) -> bool {
        let is_own = |entry: &Entry| entry.is_same(&expected) && (!starts || entry.stage != Stage::Over);
        self.entries[node].get(&(true, replies)).is_some_and(is_own)
    }

    fn is_taken(&self, node: usize, (replies, expected): (Flow, Entry)) -> bool {
        self.entries[node].get(&(true, replies)).is_some_and(|entry| entry.is_anothers(&expected))
    }

    /// Another port of the client's, with which replies are nobody else's.
    fn change_port(&mut self, node: usize, asked: Key, own: (Flow, Entry)) -> (Flow, Entry) {
        let ports = (0..TRIES).map(|step| u16::from_be_bytes(flow::another_port(&hashed(asked.1), step)));
        for port in ports {
            let changed = with_client_port(own, Some(port));
            if !self.is_taken(node, changed) {
                let forward = Entry::new(Kind::Forward, own.1.backend);
                self.entries[node].insert(asked, Entry { client_port: Some(port), ..forward });
                return changed;
            }
        }
        own
    }

    /// What a backend's packet answers, if it answers any.
    fn answers(&mut self, node: usize, packet: &Packet) -> Option<Entry> {
        let flow = packet.flow();
        let key = (true, flow);
        let (is_error, flags) = (packet.is_error(), packet.flags());
        let contested = |entry: &Entry| entry.contested && entry.stage == Stage::Established && !is_error;
        if flags & SYN != 0 && self.entries[node].get(&key).is_some_and(contested) {
            self.entries[node].remove(&key);
            if let Some(candidate) = self.candidates[node].remove(&key) {
                self.entries[node].insert(key, candidate);
            }
        }
        let entry = *self.entries[node].get(&key).filter(|entry| entry.kind != Kind::Forward)?;
        if is_error {
            return Some(entry);
        }
        if entry.begins && entry.stage == Stage::New && flags & (SYN | RST) == 0 {
            return None;
        }
        let client = if entry.kind == Kind::Hairpin { flow.source } else { flow.destination };
        let port = entry.client_port.unwrap_or(flow.ports[1]);
        let asked = Flow { source: client, destination: entry.address, ports: [port, entry.port], ..flow };
        let asked = (entry.node.is_none(), asked);
        if entry.stage == Stage::Established {
            self.end(node, &[asked, key], packet, BACKEND);
        } else if entry.stage == Stage::New {
            for key in [asked, key] {
                if let Some(entry) = self.entries[node].get_mut(&key) {
                    entry.answered();
                }
            }
        }
        Some(entry)
    }

    /// Notes a segment that ends a direction of its flow.
    fn end(&mut self, node: usize, keys: &[Key], packet: &Packet, by: usize) {
        let flags = packet.flags();
        if flags & (FIN | RST) == 0 {
            return;
        }
        for key in keys {
            if let Some(entry) = self.entries[node].get_mut(key) {
                entry.end(flags, by);
                if entry.stage == Stage::Over {
                    // It lies where the candidate did.
                    self.candidates[node].remove(key);
                }
            }
        }
    }

    fn address_of(&self, number: u32, packet: &Packet) -> Address {
        let [v4, v6] = self.backends[&number];
        if packet.source.to_v4().is_some() { v4 } else { v6 }
    }

    /// There is no backend: a segment is reset, a datagram answered with "port unreachable".
    fn refuse(&self, node: usize, packet: &Packet) -> Outcome {
        match packet.upper {
            Upper::Tcp { .. } => self.reset(node, packet),
            Upper::Udp { .. } => self.answer(node, packet, Upper::Unreachable { quoted: packet.flow() }),
            Upper::Echo { .. } | Upper::Unreachable { .. } => Outcome::Dropped,
        }
    }

    /// RFC 9293, 3.10.7.1.
    fn reset(&self, node: usize, packet: &Packet) -> Outcome {
        let Upper::Tcp { ports: [from, to], flags, sequence, acknowledgement, payload } = &packet.upper
        else {
            return Outcome::Dropped;
        };
        if flags & RST != 0 {
            return Outcome::Dropped;
        }
        let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let next = sequence + u32::try_from(payload.len()).expect("short") + control;
        let (flags, sequence, acknowledgement) =
            if flags & ACK != 0 { (RST, *acknowledgement, 0) } else { (RST | ACK, 0, next) };
        let answer =
            Upper::Tcp { ports: [*to, *from], flags, sequence, acknowledgement, payload: Vec::new() };
        self.answer(node, packet, answer)
    }

    fn answer(&self, node: usize, packet: &Packet, upper: Upper) -> Outcome {
        let answer = Packet { source: packet.destination, destination: packet.source, upper };
        match self.endpoints.get(&answer.destination) {
            Some(_) => Outcome::Endpoint { address: answer.destination, packet: answer },
            None => Outcome::Outside { node, packet: answer },
        }
    }
}

/// Replies, and what is known of them, where the client has that port at the backend.
fn with_client_port((replies, expected): (Flow, Entry), port: Option<u16>) -> (Flow, Entry) {
    let Some(port) = port else { return (replies, expected) };
    let [from, own] = replies.ports;
    (Flow { ports: [from, port], ..replies }, Entry { client_port: Some(own), ..expected })
}

/// A flow as the programs hash it.
fn hashed(flow: Flow) -> ConnectionKey {
    let [p0, p1] = flow.ports.map(u16::to_be_bytes);
    ConnectionKey {
        source: flow.source,
        destination: flow.destination,
        ports: [p0[0], p0[1], p1[0], p1[1]],
        protocol: flow.protocol,
        vni: [0; 3],
    }
}

/// Whom a container sees that reaches itself through a service.
fn hairpin_source(flow: Flow) -> Address {
    if flow.ports[0] != flow.ports[1] {
        flow.destination
    } else if flow.source.to_v4().is_some() {
        Address::from_v4(HAIRPIN_IPV4)
    } else {
        HAIRPIN_IPV6
    }
}
