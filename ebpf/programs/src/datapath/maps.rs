//! The maps. Sizes are the defaults; the loader may change them. Entries are allocated as they
//! come.

use core::ptr;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use mesh_ebpf_types::{
    Address, Allowance, Backend, Block, Config, Connection, ConnectionKey, Counter, CounterKey, Endpoint,
    EndpointKey, HostCall, HostFlow, Interface, MAGLEV_ROW, Member, Network, PathKey, Published,
    PublishedKey, Service, ServiceKey, SocketPeer, Vni, host_published_number,
};

/// A map with the name of the static. Those whose values are a module's own stand in that module.
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
// What the XDP program sent on: each packet is counted in `COUNTERS` too, for what it is.
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
map!(MAGLEV: Array<[u32; MAGLEV_ROW]> = Array::pinned(65536, BPF_F_MMAPABLE));
map!(CONNECTIONS: LruHashMap<ConnectionKey, Connection> = LruHashMap::pinned(65536, 0));
// What has not been answered, and what is over: a flood of new flows pushes no established one out.
map!(PENDING: LruHashMap<ConnectionKey, Connection> = LruHashMap::pinned(16384, 0));
// What the host, or something behind its NAT, began from a port that is published.
map!(HOST_FLOWS: LruHashMap<ConnectionKey, HostFlow> = LruHashMap::pinned(8192, 0));
// Who began flows between endpoints and sockets of this host.
map!(HOST_CALLS: LruHashMap<ConnectionKey, HostCall> = LruHashMap::pinned(16384, 0));
map!(ALLOWANCES: HashMap<Vni, Allowance> = HashMap::pinned(8192, BPF_F_NO_PREALLOC));
map!(SOCKET_PEERS: LruHashMap<SocketPeer, Address> = LruHashMap::pinned(16384, 0));
// The cookie of the network namespace whose sockets may use published ports; 0 for none.
map!(NETNS: Array<u64> = Array::pinned(1, 0));
// Ports by addresses, protocol and (in place of the ports) the identification of a packet that came
// in fragments.
map!(FRAGMENTS: LruHashMap<ConnectionKey, [u8; 4]> = LruHashMap::pinned(4096, 0));

/// How many ways of either direction each CPU remembers; a power of two.
pub(super) const WAYS: u32 = 1 << WAYS_BITS;
const WAYS_BITS: u32 = 9;
/// How many balanced flows each CPU remembers; a power of two.
pub(super) const FLOWS: u32 = 1 << FLOWS_BITS;
const FLOWS_BITS: u32 = 11;
// Of all CPUs, for each balanced flow that they may remember.
map!(EPOCHS: Array<u64> = Array::with_max_entries(1 << FLOWS_BITS, 0));

/// Changes whenever user space has changed an entry of any map: what was derived from entries
/// before holds no more.
#[inline(always)]
pub(super) fn generation() -> u64 {
    // Read once: what is looked up afterwards is at least as new.
    GENERATION.get_ptr(0).map_or(0, |generation| unsafe { generation.read_volatile() })
}

/// Where, among so many, an answer that depends on these words is remembered on this CPU.
#[inline(always)]
const fn slot(words: [u32; 3], bits: u32) -> u32 {
    let [a, b, c] = words;
    let mixed = (a ^ c.rotate_left(16)).wrapping_mul(0x9e37_79b1) ^ b.wrapping_mul(0x85eb_ca77);
    mixed.wrapping_mul(0xc2b2_ae3d) >> (32 - bits)
}

/// The place of a flow by its packets' addresses and ports.
#[inline(always)]
pub(super) const fn flow_slot([source, destination]: [u32; 2], ports: u32) -> u32 {
    slot([source, destination, ports], FLOWS_BITS)
}

/// Changes whenever a program has changed what any tuple of that place stands for: what was derived
/// before holds no more.
#[inline(always)]
pub(super) fn epoch(slot: u32) -> u64 {
    // Read once, before anything is looked up, as in `generation`.
    EPOCHS.get_ptr(slot).map_or(0, |epoch| unsafe { epoch.read_volatile() })
}

/// A tuple has come to stand for something else: no CPU may use what it knows of it. To be called
/// after the change.
#[inline(always)]
pub(super) fn renew(key: &ConnectionKey) {
    let ([.., source], [.., destination]) = (key.source.words(), key.destination.words());
    let slot = flow_slot([source, destination], u32::from_ne_bytes(key.ports));
    if let Some(epoch) = EPOCHS.get_ptr_mut(slot) {
        // SAFETY: the entry is memory of the map. Where two CPUs write at once one change may be
        // lost, but each saw another number before.
        unsafe { epoch.write_volatile(epoch.read_volatile().wrapping_add(1)) };
    }
}

/// The place of a packet's way, by words that choose it.
#[inline(always)]
pub(super) const fn way_slot(words: [u32; 3]) -> u32 {
    slot(words, WAYS_BITS)
}

/// This node's configuration. There always is one: the array has one entry.
#[inline(always)]
pub(super) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// A network that has endpoints here.
#[inline(always)]
pub(super) fn network(vni: Vni) -> Option<&'static Network> {
    // SAFETY: without preallocation an entry lives until the program ends (RCU), as the kernel
    // documents.
    unsafe { NETWORKS.get(vni) }
}

/// Who sends at a device.
#[inline(always)]
pub(super) fn interface(ifindex: u32) -> Option<&'static Interface> {
    // SAFETY: as in `network`.
    unsafe { INTERFACES.get(ifindex) }
}

/// A local endpoint.
#[inline(always)]
pub(super) fn endpoint(key: &EndpointKey) -> Option<&'static Endpoint> {
    // SAFETY: as in `network`.
    unsafe { ENDPOINTS.get(key) }
}

/// The key that looks an address up in `BLOCKS`; its data looks the address up in `ENDPOINTS`. Laid
/// out as the kernel wants it, and unlike [`Key`] aligned.
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

/// The most specific block that an address of a network is in.
#[inline(always)]
pub(super) fn block(key: &BlockLookup) -> Option<&'static Block> {
    let map = ptr::from_ref(&BLOCKS).cast_mut().cast();
    // SAFETY: the key has the map's layout. The value lives until the program ends (RCU), and has
    // the map's type.
    unsafe { bpf_map_lookup_elem(map, ptr::from_ref(key).cast()).cast::<Block>().as_ref() }
}

/// The local network whose subnet an address is in.
#[inline(always)]
pub(super) fn network_of(address: Address) -> Option<Vni> {
    HOST_ROUTES.get(Key::new(128, address)).copied()
}

/// Whether an address is a node's data-path address.
#[inline(always)]
pub(super) fn is_member(address: Address) -> bool {
    // SAFETY: as in `network`.
    unsafe { MEMBERS.get(address) }.is_some_and(|member| member.kind == 0)
}

/// Whether an address is known to be another node's.
#[inline(always)]
pub(super) fn is_node(address: Address) -> bool {
    MEMBERS.get_ptr(address).is_some()
}

/// Whether a node takes tunnels' packets at that UDP port, network order.
#[inline(never)]
pub(super) fn is_tunnel(address: &Address, port: u16) -> bool {
    // SAFETY: as in `network`.
    let (Some(member), Some(config)) = (unsafe { MEMBERS.get(address) }, config()) else { return false };
    port == u16::from_ne_bytes(config.vxlan_port)
        || port != 0 && port == u16::from_ne_bytes(member.wireguard_port)
}

/// Whether an address of a network is, or lately was, a backend's.
#[inline(always)]
pub(super) fn is_backend(vni: Vni, address: Address) -> bool {
    BACKEND_ADDRESSES.get_ptr(EndpointKey { vni, address }).is_some()
}

/// Whether an address is one of the host's own.
#[inline(always)]
pub(super) fn is_host_address(address: Address) -> bool {
    HOST_ADDRESSES.get_ptr(address).is_some()
}

/// The number of what stands for one of the host's own addresses, 0 if nothing does; `None` for
/// other addresses.
#[inline(always)]
pub(super) fn number_of_host_address(address: Address) -> Option<u8> {
    // SAFETY: as in `network`.
    let [number, ..] = unsafe { HOST_ADDRESSES.get(address) }?.to_le_bytes();
    Some(number)
}

/// The host's address for which another one stands.
#[inline(always)]
pub(super) fn stood_for(stand_in: Address) -> Option<&'static Address> {
    // SAFETY: as in `network`.
    unsafe { STAND_INS.get(u32::from(host_published_number(stand_in)?)) }
}

/// The service of a VIP.
#[inline(always)]
pub(super) fn service(vni: Vni, vip: Address) -> Option<&'static Service> {
    // SAFETY: as in `network`.
    unsafe { SERVICES.get(ServiceKey { vni, address: vip }) }
}

/// What a port on a host's address is published for.
#[inline(always)]
pub(super) fn published(address: Address, port: [u8; 2], protocol: u8) -> Option<&'static Published> {
    published_on(address, port, protocol).or_else(|| published_on(Address::NONE, port, protocol))
}

/// What is published on exactly this address, or, for none, on any of the host's.
#[inline(always)]
pub(super) fn published_on(address: Address, port: [u8; 2], protocol: u8) -> Option<&'static Published> {
    // SAFETY: as in `network`.
    unsafe { PUBLISHED.get(PublishedKey { address, port, protocol, padding: 0 }) }
}

/// A backend.
#[inline(always)]
pub(super) fn backend(number: u32) -> Option<&'static Backend> {
    // SAFETY: as in `network`.
    unsafe { BACKENDS.get(number) }
}

/// An entry of the backends' tables; 0 past their end.
#[inline(always)]
pub(super) fn maglev(entry: u32) -> u32 {
    let row = const { MAGLEV_ROW as u32 };
    // Read once: user space may be writing.
    MAGLEV
        .get_ptr(entry / row)
        .map_or(0, |numbers| unsafe { numbers.cast::<u32>().add((entry % row) as usize).read_volatile() })
}

/// Remembers that a member answered a probe.
#[inline(always)]
pub(super) fn record_probe(member: Address, now: u64) {
    // A full map keeps the members that it has; the agent removes those that are gone.
    let _ = PROBES.insert(member, now, 0);
}

/// Remembers when a probe of this kind, or an answer, last came from a member.
#[inline(always)]
pub(super) fn record_path(member: Address, kind: u32, now: u64) {
    let _ = PATHS.insert(PathKey { member, kind }, now, 0);
}
