//! A SYN of a connection that is alive, or was a moment ago: what its backend answers returns as
//! the connection's other packets do.

use mesh_ebpf_types::Address;

use super::packet::{ACK, FIN, Packet, RST, SYN};
use super::world::{BACKENDS, HOSTS, PUBLISHED, State, World};
use super::{Addresses, Case, Client, Flow, Outcome, Protocol, Server, Step};

/// Each way to a service: a VIP from either node, a published port at each of the hosts' addresses.
fn ways() -> Vec<Flow> {
    let flow = |client, server, v6| Flow { client, v6, protocol: Protocol::Tcp, port: 4000, server };
    let families = [false, true].into_iter();
    families
        .flat_map(|v6| {
            let vips = [0, 3].map(|client| flow(Client::Endpoint(client), Server::Vip(0, 80), v6));
            let ports = (0..HOSTS.len())
                .map(move |host| flow(Client::Outside(1), Server::Host(host, PUBLISHED.0), v6));
            vips.into_iter().chain(ports)
        })
        .collect()
}

struct Connection<'a, 'w> {
    case: &'a mut Case<'w>,
    flow: Flow,
}

impl Connection<'_, '_> {
    /// The client sends; the address that gets it.
    fn send(&mut self, flags: u8) -> Address {
        let step = Step::Send { flow: 0, flags, length: 0, cpu: 0 };
        self.case.step(&[self.flow], &step).expect("as the model says");
        self.last().destination
    }

    /// The backend answers what it got last; the answer as the client gets it.
    fn answer(&mut self, flags: u8) -> [(Address, u16); 2] {
        let step = Step::Answer { got: 0, flags, length: 0, cpu: 0 };
        self.case.step(&[], &step).expect("as the model says");
        let answer = self.last().clone();
        // What a client got is nothing that a backend answers.
        self.case.got.retain(|packet| *packet != answer);
        let [source, destination] = answer.flow().ports;
        [(answer.source, source), (answer.destination, destination)]
    }

    fn last(&self) -> &Packet {
        match &self.case.outcome {
            Some(Outcome::Endpoint { packet, .. } | Outcome::Outside { packet, .. }) => packet,
            outcome => panic!("{outcome:?}"),
        }
    }

    /// How the client knows its own answers: from whom it asked, to itself.
    fn expected(&self) -> [(Address, u16); 2] {
        let packet = self.case.first(self.flow, ACK, 0).expect("a packet");
        let [source, destination] = packet.flow().ports;
        [(packet.destination, destination), (packet.source, source)]
    }
}

/// Calls `check` for each way and each backend, all others being absent.
fn for_each(number: u16, mut check: impl FnMut(Connection<'_, '_>)) {
    let mut world = World::new();
    let cases = ways().into_iter().flat_map(|flow| (0..BACKENDS.len()).map(move |kept| (flow, kept)));
    for (number, (flow, kept)) in (number..).zip(cases) {
        let mut case = Case::new(&mut world, Addresses(number));
        case.states[0] = [State::Absent; BACKENDS.len()];
        case.states[0][kept] = State::Active;
        case.apply(0);
        check(Connection { case: &mut case, flow });
    }
}

#[test]
fn whatever_a_backend_answers_to_a_second_syn_returns_to_the_client() {
    // Answered; established; half closed; over (in TIME-WAIT); reset.
    let histories: [&[(u8, u8)]; 5] = [
        &[(SYN, SYN | ACK)],
        &[(SYN, SYN | ACK), (ACK, ACK), (ACK, ACK)],
        &[(SYN, SYN | ACK), (ACK, ACK), (FIN | ACK, ACK)],
        &[(SYN, SYN | ACK), (ACK, FIN | ACK), (FIN | ACK, ACK)],
        &[(SYN, SYN | ACK), (ACK, ACK), (ACK, RST)],
    ];
    for (history, number) in histories.into_iter().zip((2000..).step_by(100)) {
        for_each(number, |mut connection| {
            for (asks, answers) in history {
                connection.send(*asks);
                connection.answer(*answers);
            }
            let expected = connection.expected();
            let backend = connection.send(SYN);
            for flags in [ACK, FIN | ACK, RST, RST | ACK, SYN | ACK, ACK] {
                assert_eq!(connection.answer(flags), expected, "{:?} {flags:x}", connection.flow);
                assert_eq!(connection.send(ACK), backend);
            }
        });
    }
}

/// The tables may have forgotten a connection that its backend remembers.
#[test]
fn a_backend_may_answer_the_first_syn_from_outside_with_anything() {
    for_each(3000, |mut connection| {
        if matches!(connection.flow.client, Client::Outside(_)) {
            let expected = connection.expected();
            connection.send(SYN);
            assert_eq!(connection.answer(ACK), expected, "{:?}", connection.flow);
        }
    });
}

#[test]
fn a_second_syn_does_not_leave_a_backend_that_is_drained_but_one_that_fails() {
    for (state, stays) in [(State::Draining, true), (State::Failing, false)] {
        for_each(if stays { 3100 } else { 3200 }, |mut connection| {
            let first = connection.send(SYN);
            connection.answer(SYN | ACK);
            connection.send(ACK);
            connection.answer(ACK);
            let states = connection.case.states[0].map(|former| match former {
                State::Active => state,
                _ => State::Active,
            });
            connection.case.states[0] = states;
            connection.case.apply(0);
            assert_eq!(connection.send(SYN) == first, stays, "{:?}", connection.flow);
            if stays {
                let expected = connection.expected();
                assert_eq!(connection.answer(ACK), expected);
                // A client that begins anew resets what the backend remembers, and is free to go
                // elsewhere.
                assert_eq!(connection.send(RST), first);
                assert_ne!(connection.send(SYN), first);
            }
        });
    }
}

/// Which backend has an address may change while a flow goes on.
#[test]
fn replies_return_when_the_backend_was_removed_and_added_again() {
    for_each(3300, |mut connection| {
        connection.flow.protocol = Protocol::Udp { summed: true };
        let expected = connection.expected();
        let states = connection.case.states[0];
        for _ in 0..2 {
            connection.send(0);
            assert_eq!(connection.answer(0), expected, "{:?}", connection.flow);
            connection.send(0);
            connection.case.states[0] = [State::Absent; BACKENDS.len()];
            connection.case.apply(0);
            connection.case.states[0] = states;
            connection.case.apply(0);
        }
    });
}
