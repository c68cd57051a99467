//! What a network may have of the table of established flows.

use super::packet::{ACK, SYN};
use super::world::World;
use super::{Addresses, Case, Client, Flow, Protocol, Server, Step};

const PORTS: std::ops::Range<u16> = 5000..5004;

fn flow(port: u16, server: Server, client: Client) -> Flow {
    Flow { client, v6: false, protocol: Protocol::Tcp, port, server }
}

impl Case<'_> {
    /// A flow's client sends; the answer arrives, as the model says.
    fn exchange(&mut self, flow: Flow, flags: [u8; 2]) {
        let [asks, answers] = flags;
        self.step(&[flow], &Step::Send { flow: 0, flags: asks, length: 4, cpu: 0 }).expect("sent");
        self.step(&[], &Step::Answer { got: 0, flags: answers, length: 4, cpu: 0 }).expect("answered");
    }

    fn all_established(&mut self) -> usize {
        [0, 1].map(|node| self.world.established(self.addresses, node).iter().sum::<usize>()).iter().sum()
    }
}

#[test]
fn flows_beyond_their_networks_allowance_are_served_but_not_established_until_it_has_more() {
    let ways = [
        (Client::Endpoint(0), Server::Vip(0, 80)),
        // Towards published ports: of the service's network, too.
        (Client::Outside(1), Server::Host(0, super::PUBLISHED.0)),
    ];
    let mut world = World::new();
    for (number, (client, server)) in (3400..).zip(ways) {
        let mut case = Case::new(&mut world, Addresses(number));
        let flows: Vec<_> = PORTS.map(|port| flow(port, server, client)).collect();
        case.world.allow(Addresses(number), 1);
        for flow in &flows {
            case.exchange(*flow, [SYN, SYN | ACK]);
            case.exchange(*flow, [ACK, ACK]);
            case.exchange(*flow, [ACK, ACK]);
        }
        let established = case.all_established();
        assert!((1..=2).contains(&established), "{established}: one on each node");
        case.world.allow(Addresses(number), 1000);
        // The fast path ends with any change, or within a second.
        case.apply(0);
        for flow in flows {
            case.exchange(flow, [ACK, ACK]);
        }
        assert_eq!(case.all_established(), 2 * PORTS.len(), "both directions");
    }
}
