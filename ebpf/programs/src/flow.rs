//! Telling flows apart.

/// A hash of a flow: IPv4 addresses, ports (0 where there are none) and protocol, each as it lies in the packet. Never 0.
/// All bits of the input reach the upper bits, of which the UDP source port is made.
#[inline(always)]
pub const fn hash(addresses: [u32; 2], ports: u32, protocol: u8) -> u32 {
    let [source, destination] = addresses;
    let mut hash = mix(source ^ 0x9e37_79b9);
    hash = mix(hash ^ destination);
    hash = mix(hash ^ ports ^ ((protocol as u32) << 16));
    hash | 1
}

/// The finalizer of `MurmurHash3`: a bijection where each bit of the input changes half of the output's.
#[inline(always)]
const fn mix(mut word: u32) -> u32 {
    word ^= word >> 16;
    word = word.wrapping_mul(0x85eb_ca6b);
    word ^= word >> 13;
    word = word.wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}
