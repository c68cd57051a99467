//! One port of a client in two connections to one backend: neither the programs nor the model may
//! mix them up.

use mesh_ebpf_types::Address;

use super::packet::{ACK, FIN, Packet, RST, SYN};
use super::world::{BACKENDS, ENDPOINTS, PUBLISHED, State, World};
use super::{Addresses, Case, Client, Flow, Outcome, Protocol, Server, Step};

const CLIENT: usize = 0;
/// The client's port, of every flow.
const PORT: u16 = 4000;

fn flow(client: Client, server: Server) -> Flow {
    Flow { client, v6: false, protocol: Protocol::Tcp, port: PORT, server }
}

fn inside(server: Server) -> Flow {
    flow(Client::Endpoint(CLIENT), server)
}

impl<'w> Case<'w> {
    /// A case with one of the backends only, of either service.
    fn with_backend(world: &'w mut World, number: u16, kept: usize) -> Self {
        let mut case = Self::new(world, Addresses(number));
        for service in 0..2 {
            for backend in (0..BACKENDS.len()).filter(|backend| *backend != kept) {
                let gone = Step::Change { service, backend, state: State::Absent };
                case.step(&[], &gone).expect("as the model says");
            }
        }
        case
    }

    /// A flow's client sends; the address that the packet is from, and the one that it gets to.
    fn send(&mut self, flow: Flow, flags: u8) -> (Address, Address) {
        let step = Step::Send { flow: 0, flags, length: 8, cpu: 0 };
        self.step(&[flow], &step).expect("as the model says");
        self.ends()
    }

    /// Whoever got the last packet but so many answers; the answer's ends.
    fn answer(&mut self, got: usize, flags: u8) -> (Address, Address) {
        let step = Step::Answer { got, flags, length: 8, cpu: 0 };
        self.step(&[], &step).expect("as the model says");
        self.ends()
    }

    /// Whoever got the last packet but so many says that nobody listens there. What the error
    /// quotes is from that port.
    fn refuse(&mut self, got: usize) -> u16 {
        self.step(&[], &Step::Error { got, cpu: 0 }).expect("as the model says");
        let [_, port] = self.last().flow().ports;
        port
    }

    fn ends(&self) -> (Address, Address) {
        (self.last().source, self.last().destination)
    }

    /// The last packet as it was got.
    fn last(&self) -> &Packet {
        match &self.outcome {
            Some(Outcome::Endpoint { packet, .. } | Outcome::Outside { packet, .. }) => packet,
            outcome => panic!("{outcome:?}"),
        }
    }

    /// The source port of the last packet.
    fn source_port(&self) -> u16 {
        let [port, _] = self.last().flow().ports;
        port
    }

    /// The last packet's destination port.
    fn destination_port(&self) -> u16 {
        let [_, port] = self.last().flow().ports;
        port
    }

    /// A flow's client speaks, and is answered; the port that its backend knows it by.
    fn ask(&mut self, flow: Flow, [asks, answers]: [u8; 2]) -> u16 {
        self.send(flow, asks);
        let port = self.source_port();
        self.answer(0, answers);
        assert_eq!(self.destination_port(), PORT, "its client's port");
        port
    }

    /// Establishes a connection; its backend's address.
    fn establish(&mut self, flow: Flow) -> Address {
        let (_, backend) = self.send(flow, SYN);
        self.answer(0, SYN | ACK);
        self.send(flow, ACK);
        backend
    }

    /// How many directions of connections through VIPs are established.
    fn established(&mut self) -> usize {
        let mut count = |node| {
            let [network, _] = self.world.established(self.addresses, node);
            network
        };
        count(0) + count(1)
    }

    /// What is established is what the model says.
    fn count(&mut self) {
        for node in [0, 1] {
            let counted = self.world.established(self.addresses, node);
            assert_eq!(counted, self.model.established(node), "on node {node}");
        }
    }

    fn vip(&self, service: usize) -> Address {
        self.model.services[service].vips[0]
    }
}

/// The same backend by two ways: through two VIPs, or at two hosts' addresses.
fn two_ways() -> [[Flow; 2]; 2] {
    [
        [0, 1].map(|service| inside(Server::Vip(service, 80))),
        [0, 1].map(|host| flow(Client::Outside(1), Server::Host(host, PUBLISHED.0))),
    ]
}

#[test]
fn a_second_flow_from_one_port_to_one_backend_gets_another_port_there() {
    let mut world = World::new();
    let mut number = 0;
    for protocol in [Protocol::Tcp, Protocol::Udp { summed: true }, Protocol::Udp { summed: false }] {
        for (ways, v6) in two_ways().into_iter().flat_map(|ways| [(ways, false), (ways, true)]) {
            for kept in 0..BACKENDS.len() {
                number += 1;
                let mut case = Case::with_backend(&mut world, number, kept);
                let [first, second] = ways.map(|way| Flow { v6, protocol, ..way });
                assert_eq!(case.ask(first, [SYN, SYN | ACK]), PORT);
                let own = case.ends().0;
                let other_port = case.ask(second, [SYN, SYN | ACK]);
                assert_ne!(other_port, PORT);
                let other = case.ends().0;
                assert_ne!(own, other);
                for _ in 0..2 {
                    assert_eq!(case.ask(first, [ACK, ACK]), PORT);
                    assert_eq!(case.ends().0, own);
                    assert_eq!(case.ask(second, [ACK, ACK]), other_port);
                    assert_eq!(case.ends().0, other);
                }
                case.count();
            }
        }
    }
}

/// A backend that closes first has the connection in TIME-WAIT for a minute, and takes a SYN for an
/// old one.
#[test]
fn a_connection_that_is_over_keeps_its_port_from_those_by_another_way() {
    let mut world = World::new();
    let mut number = 1000;
    for ways in two_ways() {
        for kept in 0..BACKENDS.len() {
            number += 1;
            let mut case = Case::with_backend(&mut world, number, kept);
            let [first, second] = ways;
            for flags in [[SYN, SYN | ACK], [ACK, FIN | ACK], [FIN | ACK, ACK]] {
                assert_eq!(case.ask(first, flags), PORT);
            }
            let other_port = case.ask(second, [SYN, SYN | ACK]);
            assert_ne!(other_port, PORT);
            for flags in [[ACK, FIN | ACK], [FIN | ACK, ACK]] {
                assert_eq!(case.ask(second, flags), other_port);
            }
            case.count();
            assert_eq!(case.ask(first, [SYN, SYN | ACK]), PORT, "its own tuple again");
            assert_eq!(case.ask(second, [SYN, SYN | ACK]), other_port, "and so the other's");
        }
    }
}

#[test]
fn a_port_that_stands_for_another_one_is_not_taken_for_its_clients_own() {
    let mut world = World::new();
    let mut number = 1200;
    for ways in two_ways() {
        for kept in 0..BACKENDS.len() {
            number += 1;
            let mut case = Case::with_backend(&mut world, number, kept);
            let [first, second] = ways;
            case.ask(first, [SYN, SYN | ACK]);
            let other_port = case.ask(second, [SYN, SYN | ACK]);
            let third = Flow { port: other_port, ..second };
            case.send(third, SYN);
            assert!(![PORT, other_port].contains(&case.source_port()), "a third one at the backend");
            case.answer(0, SYN | ACK);
            assert_eq!(case.destination_port(), other_port);
            assert_eq!(case.ask(second, [ACK, ACK]), other_port);
            case.count();
        }
    }
}

#[test]
fn errors_about_a_changed_port_name_the_one_that_is_known() {
    let mut world = World::new();
    let mut number = 1100;
    for (ways, v6) in two_ways().into_iter().flat_map(|ways| [(ways, false), (ways, true)]) {
        for kept in 0..BACKENDS.len() {
            number += 1;
            let mut case = Case::with_backend(&mut world, number, kept);
            let [first, second] = ways.map(|way| Flow { v6, ..way });
            case.ask(first, [SYN, SYN | ACK]);
            let other_port = case.ask(second, [SYN, SYN | ACK]);
            case.send(second, ACK);
            assert_eq!(case.refuse(0), PORT, "to the client");
            if matches!(second.client, Client::Endpoint(_)) {
                case.send(second, ACK);
                case.answer(0, ACK);
                case.refuse(0);
                assert_eq!(case.source_port(), other_port, "to the backend");
            }
        }
    }
}

#[test]
fn an_established_connection_keeps_its_replies_until_the_backend_begins_another() {
    let mut world = World::new();
    let mut number = 100;
    for (kept, endpoint) in BACKENDS.into_iter().enumerate() {
        // Straight to the backend; or the backend itself, by its own port, through another VIP.
        for hairpin in [false, true] {
            number += 1;
            let mut case = Case::with_backend(&mut world, number, kept);
            let from = |server| {
                let client = Client::Endpoint(if hairpin { endpoint } else { CLIENT });
                Flow { port: if hairpin { 80 } else { PORT }, ..flow(client, server) }
            };
            let first = from(Server::Vip(0, 80));
            let backend = case.establish(first);
            let (second, seen) = if hairpin {
                (from(Server::Vip(1, 80)), case.vip(1))
            } else {
                (from(Server::Endpoint(endpoint, 80)), backend)
            };
            for _ in 0..2 {
                assert_eq!(case.send(second, SYN).1, backend, "there is no other");
                assert_eq!(case.answer(0, ACK).0, case.vip(0), "it is in the first one still");
                assert_eq!(case.send(first, ACK).1, backend);
                assert_eq!(case.answer(0, ACK).0, case.vip(0));
                case.send(second, RST);
                assert_eq!(case.established(), 2, "both directions of the first one");
            }
            case.send(second, SYN);
            assert_eq!(case.answer(0, SYN | ACK).0, seen);
            case.send(second, ACK);
            assert_eq!(case.answer(0, ACK).0, seen);
        }
    }
}

#[test]
fn replies_of_a_direct_connection_stay_its_own_until_the_backend_begins_one_through_the_vip() {
    let mut world = World::new();
    for (kept, number) in (0..BACKENDS.len()).zip(200..) {
        let mut case = Case::with_backend(&mut world, number, kept);
        let direct = inside(Server::Endpoint(BACKENDS[kept], 80));
        let backend = case.establish(direct);
        assert_eq!(backend, Addresses(number).v4(ENDPOINTS[BACKENDS[kept]]));
        for _ in 0..2 {
            assert_eq!(case.send(inside(Server::Vip(0, 80)), SYN).1, backend);
            assert_eq!(case.answer(0, ACK).0, backend);
            case.send(direct, ACK);
            assert_eq!(case.answer(0, ACK).0, backend);
        }
        case.send(inside(Server::Vip(0, 80)), SYN);
        assert_eq!(case.answer(0, SYN | ACK).0, case.vip(0));
        case.send(inside(Server::Vip(0, 80)), ACK);
        assert_eq!(case.answer(0, ACK).0, case.vip(0));
    }
}
