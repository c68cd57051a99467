//! Queries of the kernel's routing tables.

/// The IPv4 address family.
pub(super) const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `struct bpf_fib_lookup`. Addresses are words as in a packet; an IPv4 address uses the first
/// word.
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
    /// As [`Route::new`], for addresses of either family, as words of [`mesh_ebpf_types::Address`].
    #[inline(always)]
    pub(super) const fn between(
        v6: bool,
        ifindex: u32,
        protocol: u8,
        source: [u32; 4],
        destination: [u32; 4],
    ) -> Self {
        let [.., source_v4] = source;
        let [.., destination_v4] = destination;
        let mut route = Self::new(ifindex, protocol, source_v4, destination_v4);
        if v6 {
            route.family = AF_INET6;
            route.source = source;
            route.destination = destination;
        }
        route
    }

    /// Creates a query for an IPv4 packet that arrives at this device, or leaves from it, depending
    /// on the helper's flags.
    #[inline(always)]
    pub(super) const fn new(ifindex: u32, protocol: u8, source: u32, destination: u32) -> Self {
        Self {
            family: AF_INET,
            protocol,
            ports: [0; 2],
            // A length above the route's MTU would be refused. With 0, the packet's own length
            // would be used.
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

/// What becomes of a packet by the kernel's routes.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays on this host (as its own, or a broadcast), or there is no way for it.
    Stays = 0,
    /// The kernel has to resolve the next hop first.
    Unresolved = 1,
    /// It leaves, or the kernel does not tell.
    Leaves = 2,
}
