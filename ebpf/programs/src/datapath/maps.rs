//! The maps. Sizes are defaults; the loader may change them. Entries are allocated on demand.

use core::ptr;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use mesh_ebpf_types::{
    Address, Allowance, BACKEND_TABLES_ROW, Backend, Block, Config, Connection, ConnectionKey, Counter,
    CounterKey, Endpoint, EndpointKey, HostCall, HostFlow, Interface, Member, Network, PathKey, Published,
    PublishedKey, Service, ServiceKey, SocketPeer, Vni, host_published_number,
};

/// Defines a map named after the static. A map whose value type is private to a module is defined
/// there.
macro_rules! map {
    ($name:ident: $type:ty = $new:expr) => {
        #[unsafe(link_section = "maps")]
        #[unsafe(export_name = stringify!($name))]
        pub(super) static $name: $type = $new;
    };
}

pub(super) use map;

map!(CONFIG: Array<Config> = Array::pinned(1, 0));
map!(NETWORKS: HashMap<Vni, Network> = HashMap::pinned(4096, BPF_F_NO_PREALLOC));
map!(INTERFACES: HashMap<u32, Interface> = HashMap::pinned(4096, BPF_F_NO_PREALLOC));
map!(ENDPOINTS: HashMap<EndpointKey, Endpoint> = HashMap::pinned(8192, BPF_F_NO_PREALLOC));
map!(BLOCKS: LpmTrie<EndpointKey, Block> = LpmTrie::pinned(131_072, BPF_F_NO_PREALLOC));
map!(HOST_ROUTES: LpmTrie<Address, Vni> = LpmTrie::pinned(8192, BPF_F_NO_PREALLOC));
map!(MEMBERS: HashMap<Address, Member> = HashMap::pinned(4096, BPF_F_NO_PREALLOC));
map!(COUNTERS: PerCpuHashMap<CounterKey, Counter> = PerCpuHashMap::pinned(16384, BPF_F_NO_PREALLOC));
// Counts packets that the XDP program forwarded. Each is also counted in `COUNTERS` by its kind.
map!(EARLY: PerCpuArray<Counter> = PerCpuArray::pinned(1, 0));
map!(PROBES: HashMap<Address, u64> = HashMap::pinned(4096, BPF_F_NO_PREALLOC));
map!(PATHS: HashMap<PathKey, u64> = HashMap::pinned(16384, BPF_F_NO_PREALLOC));
map!(EVENTS: RingBuf = RingBuf::pinned(65536, 0));
map!(GENERATION: Array<u64> = Array::pinned(1, 0));
map!(HOST_ADDRESSES: HashMap<Address, u32> = HashMap::pinned(1024, BPF_F_NO_PREALLOC));
map!(STAND_INS: HashMap<u32, Address> = HashMap::pinned(256, BPF_F_NO_PREALLOC));
map!(SERVICES: HashMap<ServiceKey, Service> = HashMap::pinned(32768, BPF_F_NO_PREALLOC));
map!(PUBLISHED: HashMap<PublishedKey, Published> = HashMap::pinned(32768, BPF_F_NO_PREALLOC));
map!(BACKENDS: HashMap<u32, Backend> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC));
map!(BACKEND_ADDRESSES: HashMap<EndpointKey, u32> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC));
map!(BACKEND_TABLES: Array<[u32; BACKEND_TABLES_ROW]> = Array::pinned(65536, BPF_F_MMAPABLE));
map!(CONNECTIONS: LruHashMap<ConnectionKey, Connection> = LruHashMap::pinned(65536, 0));
// Unanswered and finished flows. Separate, so that a flood of new flows evicts no established flow.
map!(PENDING: LruHashMap<ConnectionKey, Connection> = LruHashMap::pinned(16384, 0));
// Flows from published ports that the host, or a machine behind its NAT, began.
map!(HOST_FLOWS: LruHashMap<ConnectionKey, HostFlow> = LruHashMap::pinned(8192, 0));
// The side that began each flow between an endpoint and a socket of this host.
map!(HOST_CALLS: LruHashMap<ConnectionKey, HostCall> = LruHashMap::pinned(16384, 0));
map!(ALLOWANCES: HashMap<Vni, Allowance> = HashMap::pinned(8192, BPF_F_NO_PREALLOC));
map!(SOCKET_PEERS: LruHashMap<SocketPeer, Address> = LruHashMap::pinned(16384, 0));
// The cookie of the network namespace whose sockets may use published ports; 0 for none.
map!(NETNS: Array<u64> = Array::pinned(1, 0));
// Ports of fragmented packets, by addresses, protocol and (in place of the ports) identification.
map!(FRAGMENTS: LruHashMap<ConnectionKey, [u8; 4]> = LruHashMap::pinned(4096, 0));

/// Entries of each CPU's caches of forwarding decisions, for either direction; a power of two.
pub(super) const CACHE_SLOTS: u32 = 1 << CACHE_BITS;
const CACHE_BITS: u32 = 9;
/// Entries of each CPU's cache of balanced flows; a power of two.
pub(super) const FLOWS: u32 = 1 << FLOWS_BITS;
const FLOWS_BITS: u32 = 11;
// Shared by all CPUs: one epoch for each entry of their flow caches.
map!(EPOCHS: Array<u64> = Array::with_max_entries(1 << FLOWS_BITS, 0));

/// Returns a number that changes whenever user space changes an entry of any map. Cached decisions
/// of another generation are invalid.
#[inline(always)]
pub(super) fn generation() -> u64 {
    // Read first: entries that are looked up afterwards are at least as new.
    GENERATION.get_ptr(0).map_or(0, |generation| unsafe { generation.read_volatile() })
}

/// Returns the slot of this CPU's cache, of 2^`bits` slots, for a decision that depends on these
/// words.
#[inline(always)]
const fn slot(words: [u32; 3], bits: u32) -> u32 {
    let [a, b, c] = words;
    let mixed = (a ^ c.rotate_left(16)).wrapping_mul(0x9e37_79b1) ^ b.wrapping_mul(0x85eb_ca77);
    mixed.wrapping_mul(0xc2b2_ae3d) >> (32 - bits)
}

/// Returns the cache slot of a flow, from its packets' addresses and ports.
#[inline(always)]
pub(super) const fn flow_slot([source, destination]: [u32; 2], ports: u32) -> u32 {
    slot([source, destination, ports], FLOWS_BITS)
}

/// Returns a number that changes whenever a program changes the meaning of a tuple in this slot.
/// Cached flows of another epoch are invalid.
#[inline(always)]
pub(super) fn epoch(slot: u32) -> u64 {
    // Read before any lookup, as in `generation`.
    EPOCHS.get_ptr(slot).map_or(0, |epoch| unsafe { epoch.read_volatile() })
}

/// Invalidates what all CPUs have cached about a tuple. Call it after the change.
#[inline(always)]
pub(super) fn renew(key: &ConnectionKey) {
    let ([.., source], [.., destination]) = (key.source.words(), key.destination.words());
    let slot = flow_slot([source, destination], u32::from_ne_bytes(key.ports));
    if let Some(epoch) = EPOCHS.get_ptr_mut(slot) {
        // SAFETY: the entry is memory of the map. If two CPUs write at once, one increment may be
        // lost, but both leave a number that differs from the one before.
        unsafe { epoch.write_volatile(epoch.read_volatile().wrapping_add(1)) };
    }
}

/// Returns the cache slot of a forwarding decision, from the words that determine it.
#[inline(always)]
pub(super) const fn cache_slot(words: [u32; 3]) -> u32 {
    slot(words, CACHE_BITS)
}

/// Returns this node's configuration. It always exists: the array has one entry.
#[inline(always)]
pub(super) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Returns a network with endpoints on this node.
#[inline(always)]
pub(super) fn network(vni: Vni) -> Option<&'static Network> {
    // SAFETY: without preallocation an entry lives until the program ends (RCU), as the kernel
    // documents.
    unsafe { NETWORKS.get(vni) }
}

/// Returns the endpoint behind a device.
#[inline(always)]
pub(super) fn interface(ifindex: u32) -> Option<&'static Interface> {
    // SAFETY: as in `network`.
    unsafe { INTERFACES.get(ifindex) }
}

/// Returns a local endpoint.
#[inline(always)]
pub(super) fn endpoint(key: &EndpointKey) -> Option<&'static Endpoint> {
    // SAFETY: as in `network`.
    unsafe { ENDPOINTS.get(key) }
}

/// The key for lookups in `BLOCKS`; its `data` is the key for `ENDPOINTS`. It has the layout that
/// the kernel expects and, unlike [`Key`], is aligned.
#[repr(C)]
pub(super) struct BlockLookup {
    prefix_bits: u32,
    pub(super) data: EndpointKey,
}

impl BlockLookup {
    #[inline(always)]
    pub(super) const fn new(vni: Vni, address: Address) -> Self {
        Self { prefix_bits: 160, data: EndpointKey { vni, address } }
    }
}

/// Returns the most specific block that contains an address of a network.
#[inline(always)]
pub(super) fn block(key: &BlockLookup) -> Option<&'static Block> {
    let map = ptr::from_ref(&BLOCKS).cast_mut().cast();
    // SAFETY: the key has the map's layout. The value lives until the program ends (RCU), and has
    // the map's type.
    unsafe { bpf_map_lookup_elem(map, ptr::from_ref(key).cast()).cast::<Block>().as_ref() }
}

/// Returns the local network whose subnet contains an address.
#[inline(always)]
pub(super) fn network_of(address: Address) -> Option<Vni> {
    HOST_ROUTES.get(Key::new(128, address)).copied()
}

/// Returns whether an address is a node's data-path address.
#[inline(always)]
pub(super) fn is_member(address: Address) -> bool {
    // SAFETY: as in `network`.
    unsafe { MEMBERS.get(address) }.is_some_and(|member| member.kind == 0)
}

/// Returns whether an address is known to belong to another node.
#[inline(always)]
pub(super) fn is_node(address: Address) -> bool {
    MEMBERS.get_ptr(address).is_some()
}

/// Returns whether a node accepts tunnel packets at this UDP port (network order).
#[inline(never)]
pub(super) fn is_tunnel(address: &Address, port: u16) -> bool {
    // SAFETY: as in `network`.
    let (Some(member), Some(config)) = (unsafe { MEMBERS.get(address) }, config()) else { return false };
    port == u16::from_ne_bytes(config.vxlan_port)
        || port != 0 && port == u16::from_ne_bytes(member.wireguard_port)
}

/// Returns whether an address of a network is, or was recently, a backend's.
#[inline(always)]
pub(super) fn is_backend(vni: Vni, address: Address) -> bool {
    BACKEND_ADDRESSES.get_ptr(EndpointKey { vni, address }).is_some()
}

/// Returns whether an address is one of the host's own.
#[inline(always)]
pub(super) fn is_host_address(address: Address) -> bool {
    HOST_ADDRESSES.get_ptr(address).is_some()
}

/// Returns the number of the stand-in for one of the host's own addresses, 0 if it has none; `None`
/// for other addresses.
#[inline(always)]
pub(super) fn number_of_host_address(address: Address) -> Option<u8> {
    // SAFETY: as in `network`.
    let [number, ..] = unsafe { HOST_ADDRESSES.get(address) }?.to_le_bytes();
    Some(number)
}

/// Returns the host address that a stand-in address represents.
#[inline(always)]
pub(super) fn real_address(stand_in: Address) -> Option<&'static Address> {
    // SAFETY: as in `network`.
    unsafe { STAND_INS.get(u32::from(host_published_number(stand_in)?)) }
}

/// Returns the service of a VIP.
#[inline(always)]
pub(super) fn service(vni: Vni, vip: Address) -> Option<&'static Service> {
    // SAFETY: as in `network`.
    unsafe { SERVICES.get(ServiceKey { vni, address: vip }) }
}

/// Returns the service that is published at a port of a host address.
#[inline(always)]
pub(super) fn published(address: Address, port: [u8; 2], protocol: u8) -> Option<&'static Published> {
    published_on(address, port, protocol).or_else(|| published_on(Address::NONE, port, protocol))
}

/// Returns the service that is published on exactly this address or, for [`Address::NONE`], on all
/// host addresses.
#[inline(always)]
pub(super) fn published_on(address: Address, port: [u8; 2], protocol: u8) -> Option<&'static Published> {
    // SAFETY: as in `network`.
    unsafe { PUBLISHED.get(PublishedKey { address, port, protocol, padding: 0 }) }
}

/// Returns a backend.
#[inline(always)]
pub(super) fn backend(number: u32) -> Option<&'static Backend> {
    // SAFETY: as in `network`.
    unsafe { BACKENDS.get(number) }
}

/// Returns an entry of the backend tables; 0 past their end.
#[inline(always)]
pub(super) fn backend_at(entry: u32) -> u32 {
    let row = const { BACKEND_TABLES_ROW as u32 };
    // Read once: user space may be writing.
    BACKEND_TABLES
        .get_ptr(entry / row)
        .map_or(0, |numbers| unsafe { numbers.cast::<u32>().add((entry % row) as usize).read_volatile() })
}

/// Records that a member answered a probe.
#[inline(always)]
pub(super) fn record_probe(member: Address, now: u64) {
    // A full map keeps its members; the agent removes those that left the cluster.
    let _ = PROBES.insert(member, now, 0);
}

/// Records when a probe of this kind, or an answer, last arrived from a member.
#[inline(always)]
pub(super) fn record_path(member: Address, kind: u32, now: u64) {
    let _ = PATHS.insert(PathKey { member, kind }, now, 0);
}
