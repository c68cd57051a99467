//! The connection table against a model of it: random packets through the programs of two nodes,
//! while backends come and go.

mod allowance;
mod model;
mod packet;
mod same_ports;
mod second_syn;
mod world;

use std::cell::RefCell;

use mesh_ebpf_types::Address;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

use self::model::{Model, Outcome};
use self::packet::{ACK, FIN, Packet, RST, SYN, Upper};
use self::world::{Addresses, BACKENDS, ENDPOINTS, HOSTS, PUBLISHED, State, World, host_address, node_of};

/// A flow's client, and whom it asks.
#[derive(Debug, Clone, Copy)]
struct Flow {
    client: Client,
    v6: bool,
    protocol: Protocol,
    port: u16,
    server: Server,
}

#[derive(Debug, Clone, Copy)]
enum Client {
    Endpoint(usize),
    Outside(u8),
}

#[derive(Debug, Clone, Copy)]
enum Protocol {
    Tcp,
    Udp { summed: bool },
    Echo,
}

#[derive(Debug, Clone, Copy)]
enum Server {
    /// A service by its VIP, at a port.
    Vip(usize, u16),
    /// A port at one of the hosts' addresses.
    Host(usize, u16),
    /// An endpoint itself, as if there were no services.
    Endpoint(usize, u16),
}

#[derive(Debug, Clone)]
enum Step {
    /// A client sends a packet.
    Send { flow: usize, flags: u8, length: usize, cpu: usize },
    /// Whoever got a packet answers it.
    Answer { got: usize, flags: u8, length: usize, cpu: usize },
    /// Whoever got a packet says that nobody listens there.
    Error { got: usize, cpu: usize },
    /// A backend of a service comes, drains or goes.
    Change { service: usize, backend: usize, state: State },
}

fn flow() -> impl Strategy<Value = Flow> {
    let client = prop_oneof![
        3 => (0..ENDPOINTS.len()).prop_map(Client::Endpoint),
        2 => (1..3_u8).prop_map(Client::Outside),
    ];
    let protocol = prop_oneof![
        3 => Just(Protocol::Tcp),
        2 => any::<bool>().prop_map(|summed| Protocol::Udp { summed }),
        1 => Just(Protocol::Echo),
    ];
    let port = || prop_oneof![9 => Just(80_u16), 1 => Just(53)];
    let server = prop_oneof![
        4 => (0..2_usize, port()).prop_map(|(service, port)| Server::Vip(service, port)),
        3 => (0..HOSTS.len()).prop_map(|host| Server::Host(host, PUBLISHED.0)),
        1 => (0..HOSTS.len()).prop_map(|host| Server::Host(host, 9)),
        2 => (0..ENDPOINTS.len(), port()).prop_map(|(endpoint, port)| Server::Endpoint(endpoint, port)),
    ];
    let source = prop_oneof![3 => 4000..4002_u16, 1 => Just(80_u16)];
    (client, any::<bool>(), protocol, source, server).prop_map(|(client, v6, protocol, port, server)| Flow {
        client,
        v6,
        protocol,
        port,
        server,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let sent = prop_oneof![
        3 => Just(SYN),
        6 => Just(ACK),
        2 => Just(FIN | ACK),
        1 => Just(RST),
        1 => Just(RST | ACK),
    ];
    let answered = prop_oneof![3 => Just(SYN | ACK), 4 => Just(ACK), 2 => Just(FIN | ACK), 1 => Just(RST)];
    let state = prop_oneof![
        3 => Just(State::Active),
        2 => Just(State::Draining),
        1 => Just(State::Failing),
        3 => Just(State::Absent),
    ];
    prop_oneof![
        10 => (0..64_usize, sent, 0..40_usize, 0..2_usize)
            .prop_map(|(flow, flags, length, cpu)| Step::Send { flow, flags, length, cpu }),
        8 => (0..64_usize, answered, 0..40_usize, 0..2_usize)
            .prop_map(|(got, flags, length, cpu)| Step::Answer { got, flags, length, cpu }),
        1 => (0..64_usize, 0..2_usize).prop_map(|(got, cpu)| Step::Error { got, cpu }),
        3 => (0..2_usize, 0..BACKENDS.len(), state)
            .prop_map(|(service, backend, state)| Step::Change { service, backend, state }),
    ]
}

/// One case: the world, its model, and what was got.
struct Case<'a> {
    world: &'a mut World,
    addresses: Addresses,
    model: Model,
    states: [[State; BACKENDS.len()]; 2],
    numbers: [[Option<u32>; BACKENDS.len()]; 2],
    got: Vec<Packet>,
    /// What became of the last packet.
    outcome: Option<Outcome>,
}

impl<'a> Case<'a> {
    fn new(world: &'a mut World, addresses: Addresses) -> Self {
        let model = world.begin(addresses);
        let mut case = Self {
            world,
            addresses,
            model,
            states: [[State::Active; BACKENDS.len()]; 2],
            numbers: [[None; BACKENDS.len()]; 2],
            got: Vec::new(),
            outcome: None,
        };
        case.apply(0);
        case.apply(1);
        case
    }

    fn apply(&mut self, service: usize) {
        let (states, numbers) = (self.states[service], &mut self.numbers[service]);
        self.world.apply(self.addresses, &mut self.model, service, states, numbers);
    }

    fn step(&mut self, flows: &[Flow], step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Change { service, backend, state } => {
                self.states[*service][*backend] = *state;
                self.apply(*service);
                Ok(())
            }
            Step::Send { flow, flags, length, cpu } => {
                let flow = flows[flow % flows.len()];
                let Some(packet) = self.first(flow, *flags, *length) else { return Ok(()) };
                self.pass(&packet, Self::place(flow), *cpu)
            }
            Step::Answer { got, flags, length, cpu } => {
                let Some(got) = self.some(*got) else { return Ok(()) };
                let Some(packet) = answer(&got, *flags, *length) else { return Ok(()) };
                self.pass(&packet, None, *cpu)
            }
            Step::Error { got, cpu } => {
                let Some(got) = self.some(*got) else { return Ok(()) };
                let (source, destination) = (got.destination, got.source);
                if got.is_error() {
                    return Ok(());
                }
                let upper = Upper::Unreachable { quoted: got.flow() };
                self.pass(&Packet { source, destination, upper }, None, *cpu)
            }
        }
    }

    fn some(&self, got: usize) -> Option<Packet> {
        // The latest first.
        self.got.iter().rev().cycle().nth(got).cloned()
    }

    /// The node that a client outside speaks to.
    fn place(flow: Flow) -> Option<usize> {
        match (flow.client, flow.server) {
            (Client::Outside(_), Server::Host(host, _)) => Some(HOSTS[host].0),
            _ => None,
        }
    }

    /// A client's packet; `None` where no such client would send it.
    fn first(&self, flow: Flow, flags: u8, length: usize) -> Option<Packet> {
        let family = usize::from(flow.v6);
        let of_endpoint = |endpoint: usize| self.addresses.pair(ENDPOINTS[endpoint])[family];
        let source = match flow.client {
            Client::Endpoint(endpoint) => of_endpoint(endpoint),
            Client::Outside(last) => self.addresses.outside(flow.v6, last),
        };
        let (destination, port) = match (flow.client, flow.server) {
            (_, Server::Host(host, port)) => (host_address(host, flow.v6), port),
            (Client::Outside(_), _) => return None,
            (_, Server::Vip(service, port)) => (self.model.services[service].vips[family], port),
            (_, Server::Endpoint(endpoint, port)) => (of_endpoint(endpoint), port),
        };
        let payload = vec![0x5a; length];
        let ports = [flow.port, port];
        let upper = match flow.protocol {
            Protocol::Tcp => Upper::Tcp { ports, flags, sequence: 1000, acknowledgement: 2000, payload },
            Protocol::Udp { summed } => Upper::Udp { ports, summed: summed || flow.v6, payload },
            Protocol::Echo => Upper::Echo { identifier: flow.port, reply: false, payload },
        };
        (source != destination).then_some(Packet { source, destination, upper })
    }

    /// Lets a packet pass through the world and through the model, and compares.
    fn pass(&mut self, packet: &Packet, outside: Option<usize>, cpu: usize) -> Result<(), TestCaseError> {
        let (outcome, expected) = match (outside, self.endpoint(packet.source)) {
            (Some(node), _) => (
                self.world.receive(self.addresses, node, packet, cpu),
                self.model.arrived(node, packet.clone()),
            ),
            (None, Some(endpoint)) => (
                self.world.send(self.addresses, endpoint, packet, cpu),
                self.model.sent(node_of(endpoint), packet.clone()),
            ),
            // Whoever is outside does not answer.
            (None, None) => return Ok(()),
        };
        let unspecified =
            expected == Outcome::Elsewhere && matches!(outcome, Outcome::Dropped | Outcome::Elsewhere);
        prop_assert!(
            outcome == expected || unspecified,
            "{packet:?}\n   became {outcome:?}\n   not    {expected:?}"
        );
        if let Outcome::Endpoint { packet, .. } = &outcome {
            self.got.push(packet.clone());
        }
        self.outcome = Some(outcome);
        Ok(())
    }

    fn endpoint(&self, address: Address) -> Option<usize> {
        (0..ENDPOINTS.len()).find(|endpoint| self.addresses.pair(ENDPOINTS[*endpoint]).contains(&address))
    }
}

/// What answers a packet.
fn answer(got: &Packet, flags: u8, length: usize) -> Option<Packet> {
    let payload = vec![0xa5; length];
    let upper = match got.upper {
        Upper::Tcp { ports: [from, to], .. } => {
            Upper::Tcp { ports: [to, from], flags, sequence: 2000, acknowledgement: 1001, payload }
        }
        Upper::Udp { ports: [from, to], summed, .. } => Upper::Udp { ports: [to, from], summed, payload },
        Upper::Echo { identifier, reply: false, .. } => Upper::Echo { identifier, reply: true, payload },
        Upper::Echo { .. } | Upper::Unreachable { .. } => return None,
    };
    Some(Packet { source: got.destination, destination: got.source, upper })
}

/// A processor that has seen the client speak before it was answered takes part in establishing the
/// flow too.
#[test]
fn a_flow_is_established_on_its_backends_node_whichever_processor_sees_its_packets() {
    let mut world = World::new();
    let flows = [Flow {
        client: Client::Outside(2),
        v6: false,
        protocol: Protocol::Tcp,
        port: 80,
        server: Server::Host(1, 8080),
    }];
    let mut across_nodes = 0;
    for number in 0..8 {
        let mut case = Case::new(&mut world, Addresses(number));
        for step in [
            Step::Send { flow: 0, flags: SYN, length: 0, cpu: 0 },
            Step::Send { flow: 0, flags: ACK, length: 0, cpu: 1 },
            Step::Answer { got: 0, flags: SYN | ACK, length: 0, cpu: 0 },
            Step::Send { flow: 0, flags: ACK, length: 0, cpu: 1 },
        ] {
            case.step(&flows, &step).expect("as the model says");
        }
        let established =
            [0, 1].map(|node| case.world.established(case.addresses, node).iter().sum::<usize>());
        assert_eq!(established.iter().sum::<usize>(), 2, "both directions, of {established:?}");
        across_nodes += usize::from(established == [1, 1]);
    }
    assert!(across_nodes > 0, "a backend of the other node is among them");
}

#[test]
fn random_packets_go_where_the_model_of_the_connection_table_says() {
    let world = RefCell::new(World::new());
    let config =
        Config { cases: 64, max_shrink_iters: 20_000, failure_persistence: None, ..Config::default() };
    let addresses = any::<u16>().no_shrink().prop_map(Addresses);
    let strategy = (addresses, prop::collection::vec(flow(), 1..5), prop::collection::vec(step(), 1..80));
    let outcome = TestRunner::new(config).run(&strategy, |(addresses, flows, steps)| {
        let mut world = world.borrow_mut();
        let mut case = Case::new(&mut world, addresses);
        for step in &steps {
            case.step(&flows, step)?;
        }
        for node in [0, 1] {
            let (counted, expected) =
                (case.world.established(case.addresses, node), case.model.established(node));
            prop_assert_eq!(counted, expected, "established on node {}", node);
        }
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, (_, flows, steps))) => panic!("{reason}\n{flows:?}\n{steps:?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}
