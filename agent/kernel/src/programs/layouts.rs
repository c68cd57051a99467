//! The maps' names, and the layouts that pinned ones must have to be adopted.

use aya::maps::{MapData, MapType};
use mesh_ebpf_types::{
    Address, Allowance, BACKEND_TABLES_ROW, Backend, Block, Config, Connection, ConnectionKey, Counter,
    CounterKey, Endpoint, EndpointKey, HostCall, HostFlow, Interface, Member, Network, PathKey, Published,
    PublishedKey, Service, ServiceKey, SocketPeer, Vni,
};

use super::bpffs::Pins;

/// Each map's name, type, and sizes of key and value, in bytes: what a pinned map must have to be
/// adopted.
const LAYOUTS: [(&str, MapType, usize, usize); 28] = [
    (CONFIG, MapType::Array, 4, size_of::<Config>()),
    (NETWORKS, MapType::Hash, size_of::<Vni>(), size_of::<Network>()),
    (INTERFACES, MapType::Hash, 4, size_of::<Interface>()),
    (ENDPOINTS, MapType::Hash, size_of::<EndpointKey>(), size_of::<Endpoint>()),
    (BLOCKS, MapType::LpmTrie, 4 + size_of::<EndpointKey>(), size_of::<Block>()),
    (HOST_ROUTES, MapType::LpmTrie, 4 + size_of::<Address>(), size_of::<Vni>()),
    (MEMBERS, MapType::Hash, size_of::<Address>(), size_of::<Member>()),
    (COUNTERS, MapType::PerCpuHash, size_of::<CounterKey>(), size_of::<Counter>()),
    (EARLY, MapType::PerCpuArray, 4, size_of::<Counter>()),
    (PROBES, MapType::Hash, size_of::<Address>(), 8),
    (PATHS, MapType::Hash, size_of::<PathKey>(), 8),
    (EVENTS, MapType::RingBuf, 0, 0),
    (GENERATION, MapType::Array, 4, 8),
    (HOST_ADDRESSES, MapType::Hash, size_of::<Address>(), 4),
    (STAND_INS, MapType::Hash, 4, size_of::<Address>()),
    (SERVICES, MapType::Hash, size_of::<ServiceKey>(), size_of::<Service>()),
    (PUBLISHED, MapType::Hash, size_of::<PublishedKey>(), size_of::<Published>()),
    (BACKENDS, MapType::Hash, 4, size_of::<Backend>()),
    (BACKEND_ADDRESSES, MapType::Hash, size_of::<EndpointKey>(), 4),
    (BACKEND_TABLES, MapType::Array, 4, size_of::<[u32; BACKEND_TABLES_ROW]>()),
    (CONNECTIONS, MapType::LruHash, size_of::<ConnectionKey>(), size_of::<Connection>()),
    (PENDING, MapType::LruHash, size_of::<ConnectionKey>(), size_of::<Connection>()),
    (ALLOWANCES, MapType::Hash, size_of::<Vni>(), size_of::<Allowance>()),
    (FRAGMENTS, MapType::LruHash, size_of::<ConnectionKey>(), 4),
    (SOCKET_PEERS, MapType::LruHash, size_of::<SocketPeer>(), size_of::<Address>()),
    (HOST_FLOWS, MapType::LruHash, size_of::<ConnectionKey>(), size_of::<HostFlow>()),
    (HOST_CALLS, MapType::LruHash, size_of::<ConnectionKey>(), size_of::<HostCall>()),
    (NETNS, MapType::Array, 4, 8),
];

pub(super) const CONFIG: &str = "CONFIG";
pub(super) const NETWORKS: &str = "NETWORKS";
pub(super) const INTERFACES: &str = "INTERFACES";
pub(super) const ENDPOINTS: &str = "ENDPOINTS";
pub(super) const BLOCKS: &str = "BLOCKS";
pub(super) const HOST_ROUTES: &str = "HOST_ROUTES";
pub(super) const MEMBERS: &str = "MEMBERS";
pub(super) const COUNTERS: &str = "COUNTERS";
pub(super) const EARLY: &str = "EARLY";
pub(super) const PROBES: &str = "PROBES";
pub(super) const PATHS: &str = "PATHS";
pub(super) const EVENTS: &str = "EVENTS";
pub(super) const GENERATION: &str = "GENERATION";
pub(super) const HOST_ADDRESSES: &str = "HOST_ADDRESSES";
pub(super) const STAND_INS: &str = "STAND_INS";
pub(super) const SERVICES: &str = "SERVICES";
pub(super) const PUBLISHED: &str = "PUBLISHED";
pub(super) const BACKENDS: &str = "BACKENDS";
pub(super) const BACKEND_ADDRESSES: &str = "BACKEND_ADDRESSES";
pub(super) const BACKEND_TABLES: &str = "BACKEND_TABLES";
pub(super) const CONNECTIONS: &str = "CONNECTIONS";
pub(super) const PENDING: &str = "PENDING";
pub(super) const ALLOWANCES: &str = "ALLOWANCES";
pub(super) const FRAGMENTS: &str = "FRAGMENTS";
pub(super) const SOCKET_PEERS: &str = "SOCKET_PEERS";
pub(super) const HOST_FLOWS: &str = "HOST_FLOWS";
pub(super) const HOST_CALLS: &str = "HOST_CALLS";
pub(super) const NETNS: &str = "NETNS";

/// Maps of this schema that earlier versions pinned under another name: that name, and the current.
pub(super) const FORMER_NAMES: [(&str, &str); 1] = [("MAGLEV", BACKEND_TABLES)];

/// Whether the pinned maps, as far as there are any, have the layouts of this schema.
pub(super) fn layouts_match(pins: &Pins) -> bool {
    LAYOUTS.iter().all(|(name, map_type, key, value)| {
        let path = pins.map(name);
        if !path.exists() {
            return true;
        }
        let Ok(info) = MapData::from_pin(path).and_then(|map| map.info()) else { return false };
        info.map_type().is_ok_and(|found| found == *map_type)
            && info.key_size() as usize == *key
            && info.value_size() as usize == *value
    })
}
