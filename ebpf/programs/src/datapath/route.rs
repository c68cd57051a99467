//! What the kernel's routing tables are asked.

/// The address family of IPv4.
pub(super) const AF_INET: u8 = 2;

/// `struct bpf_fib_lookup`, of IPv4. Addresses are words as they lie in a packet.
#[repr(C)]
pub(super) struct Route {
    pub(super) family: u8,
    protocol: u8,
    ports: [u16; 2],
    length: u16,
    pub(super) ifindex: u32,
    tos: u32,
    source: [u32; 4],
    pub(super) destination: [u32; 4],
    vlan: u32,
    pub(super) source_mac: [u8; 6],
    pub(super) destination_mac: [u8; 6],
}

impl Route {
    /// A question for a packet by that device, or from it, as the helper's flags say.
    #[inline(always)]
    pub(super) const fn new(ifindex: u32, protocol: u8, source: u32, destination: u32) -> Self {
        Self {
            family: AF_INET,
            protocol,
            ports: [0; 2],
            // More than the route's MTU would be refused; the packet's own length, if this were 0.
            length: 1,
            ifindex,
            tos: 0,
            source: [source, 0, 0, 0],
            destination: [destination, 0, 0, 0],
            vlan: 0,
            source_mac: [0; 6],
            destination_mac: [0; 6],
        }
    }
}
