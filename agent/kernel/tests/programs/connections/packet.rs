//! Packets as values: built into bytes, and read from them with every checksum looked at.

use mesh_ebpf_types::Address;

use crate::support::{checksum, ipv4, ipv6};

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 0x10;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// An IP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: Address,
    pub(super) destination: Address,
    pub(super) upper: Upper,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Upper {
    Tcp {
        ports: [u16; 2],
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        payload: Vec<u8>,
    },
    Udp {
        ports: [u16; 2],
        summed: bool,
        payload: Vec<u8>,
    },
    Echo {
        identifier: u16,
        reply: bool,
        payload: Vec<u8>,
    },
    /// "Port unreachable": it quotes a packet of this flow.
    Unreachable {
        quoted: Flow,
    },
}

/// What packets of one direction of a flow have in common. Echo requests have their identifier as
/// source port, replies as destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Flow {
    pub(super) source: Address,
    pub(super) destination: Address,
    pub(super) ports: [u16; 2],
    pub(super) protocol: u8,
}

impl Flow {
    pub(super) const fn reversed(self) -> Self {
        let [source, destination] = self.ports;
        let Self { source: from, destination: to, protocol, .. } = self;
        Self { source: to, destination: from, ports: [destination, source], protocol }
    }

    const fn set_port(&mut self, end: usize, port: u16) {
        if matches!(self.protocol, TCP | UDP) {
            self.ports[end] = port;
        }
    }

    /// The start of a packet of the flow, as errors quote it.
    fn quote(self) -> Vec<u8> {
        let [p0, p1] = self.ports.map(u16::to_be_bytes);
        let v6 = self.source.to_v4().is_none();
        let upper = match (self.protocol, self.ports) {
            (TCP | UDP, _) => [p0[0], p0[1], p1[0], p1[1], 0, 8, 0, 0],
            (_, [_, 0]) => [if v6 { 128 } else { 8 }, 0, 0, 0, p0[0], p0[1], 0, 1],
            _ => [if v6 { 129 } else { 0 }, 0, 0, 0, p1[0], p1[1], 0, 1],
        };
        ip(self.source, self.destination, self.protocol, &upper)
    }

    fn of_quote(quote: &[u8]) -> Self {
        let (source, destination, protocol, upper) = network_header(quote);
        let ports = match (protocol, upper[0]) {
            (TCP | UDP, _) => [half(upper, 0), half(upper, 2)],
            (_, 8 | 128) => [half(upper, 4), 0],
            _ => [0, half(upper, 4)],
        };
        Self { source, destination, ports, protocol }
    }
}

impl Packet {
    /// The flow that it belongs to; an error's is the direction that it goes itself.
    pub(super) const fn flow(&self) -> Flow {
        let (ports, protocol) = match self.upper {
            Upper::Tcp { ports, .. } => (ports, TCP),
            Upper::Udp { ports, .. } => (ports, UDP),
            Upper::Echo { identifier, reply: false, .. } => ([identifier, 0], self.icmp()),
            Upper::Echo { identifier, reply: true, .. } => ([0, identifier], self.icmp()),
            Upper::Unreachable { quoted } => return quoted.reversed(),
        };
        Flow { source: self.source, destination: self.destination, ports, protocol }
    }

    pub(super) const fn flags(&self) -> u8 {
        if let Upper::Tcp { flags, .. } = self.upper { flags } else { 0 }
    }

    pub(super) const fn starts(&self) -> bool {
        self.flags() & (SYN | ACK) == SYN
    }

    pub(super) const fn is_error(&self) -> bool {
        matches!(self.upper, Upper::Unreachable { .. })
    }

    /// With another source; an error about a packet *to* that source, likewise.
    pub(super) fn from(mut self, address: Address, port: u16) -> Self {
        let flow = self.flow();
        if let Upper::Unreachable { quoted } = &mut self.upper {
            if self.source == flow.source {
                self.source = address;
            }
            quoted.destination = address;
            quoted.set_port(1, port);
            return self;
        }
        self.source = address;
        self.set_port(0, port);
        self
    }

    /// With another destination; an error about a packet *from* that destination, likewise.
    pub(super) fn to(mut self, address: Address, port: u16) -> Self {
        let flow = self.flow();
        if let Upper::Unreachable { quoted } = &mut self.upper {
            if self.destination == flow.destination {
                self.destination = address;
            }
            quoted.source = address;
            quoted.set_port(0, port);
            return self;
        }
        self.destination = address;
        self.set_port(1, port);
        self
    }

    /// With another port at one end (0 the source's); in an error, at the quoted packet's other
    /// end.
    pub(super) const fn with_port(mut self, end: usize, port: u16) -> Self {
        if let Upper::Unreachable { quoted } = &mut self.upper {
            quoted.set_port(1 - end, port);
        }
        self.set_port(end, port);
        self
    }

    const fn set_port(&mut self, end: usize, port: u16) {
        if let Upper::Tcp { ports, .. } | Upper::Udp { ports, .. } = &mut self.upper {
            ports[end] = port;
        }
    }

    const fn icmp(&self) -> u8 {
        if self.source.to_v4().is_some() { ICMP } else { ICMPV6 }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let v6 = self.source.to_v4().is_none();
        let (protocol, at, mut upper) = match &self.upper {
            Upper::Tcp { ports: [source, destination], flags, sequence, acknowledgement, payload } => {
                let mut segment = [source.to_be_bytes(), destination.to_be_bytes()].concat();
                segment.extend(sequence.to_be_bytes());
                segment.extend(acknowledgement.to_be_bytes());
                segment.extend([0x50, *flags, 1, 0, 0, 0, 0, 0]);
                segment.extend(payload);
                (TCP, 16, segment)
            }
            Upper::Udp { ports: [source, destination], payload, .. } => {
                (UDP, 6, crate::support::udp(*source, *destination, payload))
            }
            Upper::Echo { identifier, reply, payload } => {
                let kind = match (v6, reply) {
                    (false, false) => 8,
                    (false, true) => 0,
                    (true, false) => 128,
                    (true, true) => 129,
                };
                let [i0, i1] = identifier.to_be_bytes();
                (self.icmp(), 2, [&[kind, 0, 0, 0, i0, i1, 0, 1][..], payload].concat())
            }
            Upper::Unreachable { quoted } => {
                let kind = if v6 { [1, 4] } else { [3, 3] };
                (self.icmp(), 2, [&kind[..], &[0; 6], &quoted.quote()].concat())
            }
        };
        if !matches!(self.upper, Upper::Udp { summed: false, .. }) {
            let sum = match self.sum(protocol, &upper) {
                0 => 0xffff,
                sum => sum,
            };
            upper[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        ip(self.source, self.destination, protocol, &upper)
    }

    /// The checksum of an upper layer, with the pseudo header where the protocol has one. Of one
    /// that is right: 0.
    fn sum(&self, protocol: u8, upper: &[u8]) -> u16 {
        if protocol == ICMP {
            return checksum(upper);
        }
        let length = u32::try_from(upper.len()).expect("short").to_be_bytes();
        let pseudo = match (self.source.to_v4(), self.destination.to_v4()) {
            (Some(source), Some(destination)) => [source, destination].concat(),
            _ => [self.source.0, self.destination.0].concat(),
        };
        checksum(&[&pseudo[..], &length, &[0, 0, 0, protocol], upper].concat())
    }

    /// Reads what [`Packet::bytes`] makes. Panics where a checksum is wrong.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let (source, destination, protocol, upper) = network_header(bytes);
        let kind = upper[0];
        let read = match protocol {
            TCP => Upper::Tcp {
                ports: [half(upper, 0), half(upper, 2)],
                flags: upper[13],
                sequence: word(upper, 4),
                acknowledgement: word(upper, 8),
                payload: upper[20..].to_vec(),
            },
            UDP => Upper::Udp {
                ports: [half(upper, 0), half(upper, 2)],
                summed: half(upper, 6) != 0,
                payload: upper[8..].to_vec(),
            },
            ICMP | ICMPV6 if matches!((protocol, kind), (ICMP, 3) | (ICMPV6, 1)) => {
                Upper::Unreachable { quoted: Flow::of_quote(&upper[8..]) }
            }
            ICMP | ICMPV6 => Upper::Echo {
                identifier: half(upper, 4),
                reply: matches!(kind, 0 | 129),
                payload: upper[8..].to_vec(),
            },
            _ => panic!("protocol {protocol}"),
        };
        let packet = Self { source, destination, upper: read };
        if !matches!(packet.upper, Upper::Udp { summed: false, .. }) {
            assert_eq!(packet.sum(protocol, upper), 0, "the checksum of {packet:?}");
        }
        packet
    }
}

fn ip(source: Address, destination: Address, protocol: u8, upper: &[u8]) -> Vec<u8> {
    match (source.to_v4(), destination.to_v4()) {
        (Some(source), Some(destination)) => ipv4(source, destination, protocol, upper),
        _ => ipv6(source, destination, protocol, 64, upper),
    }
}

/// Addresses, protocol, and what follows the header.
fn network_header(bytes: &[u8]) -> (Address, Address, u8, &[u8]) {
    if bytes[0] >> 4 == 6 {
        let address = |at: usize| Address(bytes[at..at + 16].try_into().expect("sixteen bytes"));
        return (address(8), address(24), bytes[6], &bytes[40..]);
    }
    assert_eq!(checksum(&bytes[..20]), 0, "the checksum of an IPv4 header");
    let address = |at: usize| Address::from_v4(bytes[at..at + 4].try_into().expect("four bytes"));
    (address(12), address(16), bytes[9], &bytes[20..])
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
