//! One port of a client in two connections to one backend: neither the programs nor the model may mix them up.

use mesh_ebpf_types::Address;

use super::packet::{ACK, RST, SYN};
use super::world::{BACKENDS, ENDPOINTS, PUBLISHED, State, World};
use super::{Addresses, Case, Client, Flow, Outcome, Protocol, Server, Step};

const CLIENT: usize = 0;

fn flow(client: Client, server: Server) -> Flow {
    Flow { client, v6: false, protocol: Protocol::Tcp, port: 4000, server }
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

    fn ends(&self) -> (Address, Address) {
        match &self.outcome {
            Some(Outcome::Endpoint { packet, .. } | Outcome::Outside { packet, .. }) => {
                (packet.source, packet.destination)
            }
            outcome => panic!("{outcome:?}"),
        }
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
        let [network, _] = self.world.established(self.addresses, 0);
        network
    }

    fn vip(&self, service: usize) -> Address {
        self.model.services[service].vips[0]
    }
}

#[test]
fn a_connection_to_another_vip_gets_another_backend() {
    let mut world = World::new();
    for number in 0..24 {
        let mut case = Case::new(&mut world, Addresses(number));
        let [first, second] = [0, 1].map(|service| inside(Server::Vip(service, 80)));
        let backend = case.establish(first);
        let (_, other) = case.send(second, SYN);
        assert_ne!(backend, other);
        let vips = [case.vip(0), case.vip(1)];
        assert_eq!(case.answer(0, SYN | ACK).0, vips[1]);
        assert_eq!(case.send(second, ACK).1, other);
        assert_eq!(case.send(first, ACK).1, backend);
        assert_eq!(case.answer(0, ACK).0, vips[0]);
    }
}

#[test]
fn an_established_connection_keeps_its_replies_until_the_backend_begins_another() {
    let mut world = World::new();
    let mut number = 100;
    for (kept, endpoint) in BACKENDS.into_iter().enumerate() {
        for direct in [false, true] {
            number += 1;
            let mut case = Case::with_backend(&mut world, number, kept);
            let first = inside(Server::Vip(0, 80));
            let backend = case.establish(first);
            let (second, seen) = if direct {
                (inside(Server::Endpoint(endpoint, 80)), backend)
            } else {
                (inside(Server::Vip(1, 80)), case.vip(1))
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

#[test]
fn a_connection_through_another_address_of_a_host_does_not_touch_the_one_that_is() {
    let mut world = World::new();
    for (kept, number) in (0..BACKENDS.len()).zip(300..) {
        let mut case = Case::with_backend(&mut world, number, kept);
        let [first, second] = [0, 1].map(|host| flow(Client::Outside(1), Server::Host(host, PUBLISHED.0)));
        let [own, other] = [0, 1].map(|host| super::host_address(host, false));
        let backend = case.establish(first);
        for _ in 0..2 {
            assert_eq!(case.send(second, SYN).1, backend);
            assert_eq!(case.answer(0, ACK).0, own);
            case.send(first, ACK);
            assert_eq!(case.answer(0, ACK).0, own);
        }
        // The first one's client is gone, and so is the backend's end.
        case.send(second, SYN);
        assert_eq!(case.answer(0, SYN | ACK).0, other);
        case.send(second, ACK);
        assert_eq!(case.answer(0, ACK).0, other);
    }
}
