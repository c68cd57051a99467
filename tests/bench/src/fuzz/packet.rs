//! Packets to begin with, and how they are mutated.

use std::net::Ipv4Addr;

use anyhow::Context;
use mesh_harness::{Container, Lab, Netns};
use serde_json::Value;

/// Longest packet, bytes.
const LONGEST: usize = 1800;
/// Shortest packet that `BPF_PROG_TEST_RUN` takes, bytes: an Ethernet header and a byte more.
const SHORTEST: usize = 15;
/// Values at which parsers' bounds lie.
const INTERESTING: [u8; 12] = [0, 1, 4, 5, 6, 17, 44, 58, 0x45, 0x7f, 0x80, 0xff];

/// Addresses of the fuzzed host and of what it is connected with.
pub(super) struct Site {
    /// MAC addresses of the two networks' containers on the fuzzed host.
    pub(super) red_mac: [u8; 6],
    pub(super) blue_mac: [u8; 6],
    pub(super) red_vni: u32,
    pub(super) blue_vni: u32,
    secret_vni: u32,
    addresses: Vec<[u8; 4]>,
    host_mac: [u8; 6],
    /// The fuzzed host's address.
    pub(super) local: [u8; 4],
    peer: [u8; 4],
}

impl Site {
    pub(super) fn new(lab: &Lab, containers: &[Container]) -> anyhow::Result<Self> {
        let host = lab.host(1);
        let vni = |network: &str| {
            let network: Value = host.meshctl(["network", "inspect", network, "--format", "json"])?.json()?;
            let vni = network["vni"].as_u64().context("a network has a VNI")?;
            anyhow::Ok(u32::try_from(vni)?)
        };
        let shop: Value = host.meshctl(["service", "inspect", "shop", "--format", "json"])?.json()?;
        let vip: Ipv4Addr = shop["vip"].as_str().context("a service has a VIP")?.parse()?;
        let mut addresses = vec![vip, host.address(), lab.host(2).address(), [169, 254, 42, 2].into()];
        for container in containers {
            addresses.push(container.ipv4()?);
        }
        Ok(Self {
            red_mac: mac(containers[0].netns())?,
            blue_mac: mac(containers[1].netns())?,
            red_vni: vni("red")?,
            blue_vni: vni("blue")?,
            secret_vni: vni("secret")?,
            addresses: addresses.iter().map(Ipv4Addr::octets).collect(),
            host_mac: mac(host.netns())?,
            local: host.address().octets(),
            peer: lab.host(2).address().octets(),
        })
    }

    /// A valid packet as a container or the host sends it.
    fn inner(&self, random: &mut Mutator) -> Vec<u8> {
        let (source, destination) = (random.pick(&self.addresses), random.pick(&self.addresses));
        let protocol = random.pick(&[6, 17, 1, 132]);
        let fragment = random.pick(&[0x4000_u16, 0, 0x2000, 0x0008, 0x2010]);
        let mut frame = self.red_mac.to_vec();
        // The MAC that stands for an address names the next hop.
        let next_hop = [&[2, 0x42][..], &destination].concat();
        frame.splice(0..0, random.pick(&[next_hop, self.host_mac.to_vec(), self.blue_mac.to_vec()]));
        match random.below(8) {
            0 => {
                frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
                frame.extend(self.red_mac);
                frame.extend(source);
                frame.extend([0; 6]);
                frame.extend(destination);
            }
            1 => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, random.pick(&[0, 6, 17, 44, 58]), 64]);
                let six = |address: [u8; 4]| [&[0xfd, 0x4d][..], &[0; 10], &address].concat();
                frame.extend(six(source));
                frame.extend(six(destination));
                frame.extend([random.byte(); 40]);
            }
            _ => {
                let ports =
                    [random.pick(&[80_u16, 8080, 4789, 51820, 40_000]), random.pick(&[80, 8080, 4789])];
                let [f0, f1] = fragment.to_be_bytes();
                frame.extend([8, 0, 0x45, 0, 0, 60, 0, 1, f0, f1, 64, protocol, 0, 0]);
                frame.extend(source);
                frame.extend(destination);
                frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
                frame.extend([0, 40, 0, 0, 0, 0, 0, 1, 0x50, random.byte()]);
                frame.resize(74, 0);
            }
        }
        frame
    }

    /// A valid packet as another node sends it over the wire.
    fn tunnelled(&self, random: &mut Mutator) -> Vec<u8> {
        let inner = self.inner(random);
        let published = 0x80_0000 | random.below(128);
        let known = [self.red_vni, self.blue_vni, self.secret_vni, published, published | 0x40_0000];
        let vni = random.pick(&known);
        let length = |extra: usize| u16::try_from(inner.len() + extra).unwrap_or(u16::MAX).to_be_bytes();
        let mut frame = [&self.host_mac[..], &[0x52, 0x54, 0, 0, 0, 2, 8, 0]].concat();
        frame.extend([0x45, 0]);
        frame.extend(length(36));
        frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend(self.peer);
        frame.extend(self.local);
        frame.extend([0xc0, 0x01, 0x12, 0xb5]);
        frame.extend(length(16));
        frame.extend([0, 0, 8, 0, 0, 0]);
        frame.extend(&vni.to_be_bytes()[1..]);
        frame.push(0);
        frame.extend(inner);
        frame
    }
}

/// A reproducible source of mutations (xorshift64*, Vigna 2016).
pub(super) struct Mutator(u64);

impl Mutator {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed | 1 << 63)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number less than `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(((self.next() >> 32) * u64::from(bound)) >> 32).unwrap_or_default()
    }

    fn index(&mut self, length: usize) -> usize {
        self.below(u32::try_from(length).unwrap_or(u32::MAX)) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    fn pick<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.index(values.len())].clone()
    }

    /// The next packet: a valid one, mutated in up to seven places, or only noise.
    pub(super) fn packet(&mut self, site: &Site, from_wire: bool) -> Vec<u8> {
        if self.below(64) == 0 {
            let length = SHORTEST + self.index(256);
            return runnable((0..length).map(|_| self.byte()).collect());
        }
        let mut packet =
            if from_wire && self.below(8) != 0 { site.tunnelled(self) } else { site.inner(self) };
        for _ in 0..self.below(8) {
            self.mutate(&mut packet, site);
        }
        runnable(packet)
    }

    fn mutate(&mut self, packet: &mut Vec<u8>, site: &Site) {
        // Headers decide what becomes of a packet.
        let at = self.index(packet.len().min(130));
        match self.below(8) {
            0 => packet[at] = self.byte(),
            1 => packet[at] ^= 1 << self.below(8),
            2 | 3 => packet[at] = self.pick(&INTERESTING),
            4 => {
                let address = self.pick(&site.addresses);
                let end = packet.len().min(at + 4);
                packet[at..end].copy_from_slice(&address[..end - at]);
            }
            5 => packet.truncate(SHORTEST.max(self.index(packet.len()))),
            6 => packet.resize((packet.len() + self.index(1400)).min(LONGEST), 0),
            _ => {
                let byte = self.byte();
                packet.insert(at, byte);
            }
        }
    }
}

/// The packet, as long as the kernel demands of one that is to be run: it refuses one that says IP
/// and is too short for an IP header (`bpf_prog_test_run_skb`).
fn runnable(mut packet: Vec<u8>) -> Vec<u8> {
    let header = match packet[12..14] {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => 0,
    };
    packet.resize(packet.len().max(14 + header), 0);
    packet
}

/// MAC address of `eth0` in a namespace.
fn mac(netns: &Netns) -> anyhow::Result<[u8; 6]> {
    let links: Value = netns.run(["ip", "-j", "link", "show", "dev", "eth0"])?.json()?;
    let text = links[0]["address"].as_str().context("eth0 has a MAC address")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().ok().context("a MAC address has six bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (mut one, mut other) = (Mutator::new(7), Mutator::new(7));
        assert!((0..100).all(|_| one.next() == other.next()));
        assert!((0..1000).all(|_| one.below(3) < 3));
    }
}
