//! Flow hashes, and ports that make flows unique.

use mesh_ebpf_types::ConnectionKey;

/// Returns a hash of a flow: IPv4 addresses, ports (0 if there are none) and protocol, each as in
/// the packet. Never 0. All bits of the input affect the upper bits, which determine the UDP source
/// port.
#[inline(always)]
pub const fn hash(addresses: [u32; 2], ports: u32, protocol: u8) -> u32 {
    let [source, destination] = addresses;
    let mut hash = mix(source ^ 0x9e37_79b9);
    hash = mix(hash ^ destination);
    hash = mix(hash ^ ports ^ ((protocol as u32) << 16));
    hash | 1
}

/// The finalizer of `MurmurHash3`: a bijection in which each input bit changes half of the output
/// bits on average.
#[inline(always)]
const fn mix(mut word: u32) -> u32 {
    word ^= word >> 16;
    word = word.wrapping_mul(0x85eb_ca6b);
    word ^= word >> 13;
    word = word.wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

/// Returns the hash that chooses a flow's backend. It must be the same on every node and in every
/// version, or flows would move. With `affinity`, only the client's address counts.
#[inline(always)]
pub fn balance(key: &ConnectionKey, affinity: bool) -> u32 {
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (key.source.words(), key.destination.words());
    let mut hash = mix(s0 ^ 0x6d65_7368);
    hash = mix(hash ^ s1);
    hash = mix(hash ^ s2);
    hash = mix(hash ^ s3);
    if affinity {
        return hash;
    }
    hash = mix(hash.wrapping_add(0x9e37_79b9) ^ d0 ^ d1.rotate_left(11));
    hash = mix(hash ^ d2 ^ d3.rotate_left(7));
    hash = mix(hash ^ u32::from_ne_bytes(key.ports));
    mix(hash ^ u32::from(key.protocol))
}

/// Returns which of `size` entries a hash chooses; 0 if `size` is 0.
#[inline(always)]
pub const fn entry(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

/// Returns another source port for a flow that would otherwise equal another flow; `step` selects
/// the candidate. Privileged ports stay privileged. The result is outside the range that Linux
/// allocates to sockets (`ip_local_port_range`, by default 32768 to 60999), so that an untranslated
/// connection seldom has it.
#[inline(always)]
pub fn another_port(key: &ConnectionKey, step: u32) -> [u8; 2] {
    let [s0, s1, _, _] = key.ports;
    let (first, count) = if u16::from_be_bytes([s0, s1]) < 1024 { (512, 512) } else { (1024, 31744) };
    let chosen = entry(mix(balance(key, false).wrapping_add(step)), count);
    let [.., p0, p1] = (first + chosen).to_be_bytes();
    [p0, p1]
}

#[cfg(test)]
mod tests {
    use mesh_ebpf_types::Address;

    use super::*;

    fn key(client: u8, port: u8) -> ConnectionKey {
        ConnectionKey {
            source: Address::from_v4([10, 64, 0, client]),
            destination: Address::from_v4([10, 64, 0, 40]),
            ports: [0x9c, port, 0, 80],
            protocol: 6,
            vni: [0; 3],
        }
    }

    #[test]
    fn flows_are_spread_evenly() {
        let mut counts = [0_u32; 10];
        for client in 0..100 {
            for port in 0..100 {
                counts[entry(balance(&key(client, port), false), 10) as usize] += 1;
            }
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn every_node_and_every_version_chooses_the_same_backend() {
        assert_eq!(balance(&key(5, 1), false), 2_446_196_227);
    }

    #[test]
    fn with_affinity_only_the_client_counts() {
        let other = ConnectionKey { destination: Address::from_v4([192, 0, 2, 1]), ..key(5, 9) };
        assert_eq!(balance(&key(5, 1), true), balance(&other, true));
        assert_ne!(balance(&key(5, 1), true), balance(&key(6, 1), true));
        assert_ne!(balance(&key(5, 1), false), balance(&key(5, 9), false));
    }

    #[test]
    fn replacement_ports_are_many_and_keep_the_privilege_class() {
        let others = |port: [u8; 2]| {
            let key = ConnectionKey { ports: [port[0], port[1], 0, 80], ..key(5, 1) };
            [0, 1, 2, 3, 4, 5, 6, 7].map(|step| u16::from_be_bytes(another_port(&key, step)))
        };
        for (own, kind) in [([0x9c, 1], 1024..32768), ([3, 0xff], 512..1024)] {
            let mut ports = others(own);
            assert!(ports.iter().all(|port| kind.contains(port)), "{ports:?}");
            ports.sort_unstable();
            assert!(ports.windows(2).all(|pair| pair[0] != pair[1]), "{ports:?}");
        }
    }

    #[test]
    fn a_hash_chooses_an_entry_of_the_table() {
        assert_eq!((entry(0, 7), entry(u32::MAX, 7), entry(u32::MAX, 0), entry(1 << 31, 2)), (0, 6, 0, 1));
    }
}
