//! The maps. Sizes are the defaults; the loader may change them. Entries are allocated as they come.

use core::ptr;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuHashMap, RingBuf};
use mesh_ebpf_types::{
    Address, Block, Config, Counter, CounterKey, Endpoint, EndpointKey, Interface, Member, Network, Vni,
};

macro_rules! map {
    ($name:ident: $type:ty = $new:expr) => {
        #[unsafe(link_section = "maps")]
        #[unsafe(export_name = stringify!($name))]
        pub(super) static $name: $type = $new;
    };
}

map!(CONFIG: Array<Config> = Array::pinned(1, 0));
map!(NETWORKS: HashMap<Vni, Network> = HashMap::pinned(4096, BPF_F_NO_PREALLOC));
map!(INTERFACES: HashMap<u32, Interface> = HashMap::pinned(4096, BPF_F_NO_PREALLOC));
map!(ENDPOINTS: HashMap<EndpointKey, Endpoint> = HashMap::pinned(8192, BPF_F_NO_PREALLOC));
map!(BLOCKS: LpmTrie<EndpointKey, Block> = LpmTrie::pinned(131_072, BPF_F_NO_PREALLOC));
map!(HOST_ROUTES: LpmTrie<Address, Vni> = LpmTrie::pinned(8192, BPF_F_NO_PREALLOC));
map!(MEMBERS: HashMap<Address, Member> = HashMap::pinned(4096, BPF_F_NO_PREALLOC));
map!(COUNTERS: PerCpuHashMap<CounterKey, Counter> = PerCpuHashMap::pinned(16384, BPF_F_NO_PREALLOC));
map!(PROBES: HashMap<Address, u64> = HashMap::pinned(4096, BPF_F_NO_PREALLOC));
map!(EVENTS: RingBuf = RingBuf::pinned(65536, 0));

/// This node's configuration. There always is one: the array has one entry.
#[inline(always)]
pub(super) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// A network that has endpoints here.
#[inline(always)]
pub(super) fn network(vni: Vni) -> Option<&'static Network> {
    // SAFETY: without preallocation an entry lives until the program ends (RCU), as the kernel documents.
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

/// The key that looks an address up in `BLOCKS`; its data looks the address up in `ENDPOINTS`. Laid out as the kernel
/// wants it, and unlike [`Key`] aligned.
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
    // SAFETY: the key has the map's layout. The value lives until the program ends (RCU), and has the map's type.
    unsafe { bpf_map_lookup_elem(map, ptr::from_ref(key).cast()).cast::<Block>().as_ref() }
}

/// The local network whose subnet an address is in.
#[inline(always)]
pub(super) fn network_of(address: Address) -> Option<Vni> {
    HOST_ROUTES.get(Key::new(128, address)).copied()
}

/// Whether an address is a node's.
#[inline(always)]
pub(super) fn is_member(address: Address) -> bool {
    MEMBERS.get_ptr(address).is_some()
}

/// Remembers that a member answered a probe.
#[inline(always)]
pub(super) fn record_probe(member: Address, now: u64) {
    // A full map keeps the members that it has; the agent removes those that are gone.
    let _ = PROBES.insert(member, now, 0);
}
