//! The maps, opened from their pins.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap};
use mesh_ebpf_types::{
    Address, Block, BlockKey, Config, Counter, CounterKey, Endpoint, EndpointKey, HostRouteKey, Interface,
    MapEntry, MapKey, Member, Network, PathKey, Reason, TableEntry, TableKey, Vni,
};
use nix::libc;

use super::bpffs::Pins;
use super::layouts::{
    BLOCKS, CONFIG, COUNTERS, EARLY, ENDPOINTS, GENERATION, HOST_ADDRESSES, HOST_ROUTES, INTERFACES, MEMBERS,
    NETNS, NETWORKS, PATHS, PROBES, STAND_INS,
};
use super::tables::Tables;
use super::{Counters, ProgramsError};

/// The VNI's bits in the key of `BLOCKS`.
const VNI_BITS: u32 = 32;

/// All maps that user space reads or writes.
pub(super) struct Maps {
    config: Array<MapData, Config>,
    networks: HashMap<MapData, Vni, Network>,
    interfaces: HashMap<MapData, u32, Interface>,
    endpoints: HashMap<MapData, EndpointKey, Endpoint>,
    blocks: LpmTrie<MapData, EndpointKey, Block>,
    host_routes: LpmTrie<MapData, Address, Vni>,
    members: HashMap<MapData, Address, Member>,
    counters: PerCpuHashMap<MapData, CounterKey, Counter>,
    early: PerCpuArray<MapData, Counter>,
    probes: HashMap<MapData, Address, u64>,
    paths: HashMap<MapData, PathKey, u64>,
    generation: Array<MapData, u64>,
    host_addresses: HashMap<MapData, Address, u32>,
    stand_ins: HashMap<MapData, u32, Address>,
    netns: Array<MapData, u64>,
    tables: Tables,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    /// Opens the pinned maps.
    pub(super) fn open(pins: &Pins) -> Result<Self, ProgramsError> {
        Ok(Self {
            config: open(pins, CONFIG, Map::Array)?,
            networks: open(pins, NETWORKS, Map::HashMap)?,
            interfaces: open(pins, INTERFACES, Map::HashMap)?,
            endpoints: open(pins, ENDPOINTS, Map::HashMap)?,
            blocks: open(pins, BLOCKS, Map::LpmTrie)?,
            host_routes: open(pins, HOST_ROUTES, Map::LpmTrie)?,
            members: open(pins, MEMBERS, Map::HashMap)?,
            counters: open(pins, COUNTERS, Map::PerCpuHashMap)?,
            early: open(pins, EARLY, Map::PerCpuArray)?,
            probes: open(pins, PROBES, Map::HashMap)?,
            paths: open(pins, PATHS, Map::HashMap)?,
            generation: open(pins, GENERATION, Map::Array)?,
            host_addresses: open(pins, HOST_ADDRESSES, Map::HashMap)?,
            stand_ins: open(pins, STAND_INS, Map::HashMap)?,
            netns: open(pins, NETNS, Map::Array)?,
            tables: Tables::open(pins)?,
        })
    }

    /// Every entry of the maps that user space fills.
    pub(super) fn entries(&self) -> Result<BTreeMap<MapKey, MapEntry>, ProgramsError> {
        let mut entries = Vec::new();
        let config = self.config.get(&0, 0).map_err(failed("read", CONFIG))?;
        if config != Config::default() {
            entries.push(MapEntry::Config(config));
        }
        dump(NETWORKS, self.networks.iter(), |key, value| entries.push(MapEntry::Network(key, value)))?;
        dump(INTERFACES, self.interfaces.iter(), |key, value| entries.push(MapEntry::Interface(key, value)))?;
        dump(ENDPOINTS, self.endpoints.iter(), |key, value| entries.push(MapEntry::Endpoint(key, value)))?;
        dump(BLOCKS, self.blocks.iter(), |key, value| {
            let EndpointKey { vni, address } = key.data();
            let prefix_bits = bits(key.prefix_len() - VNI_BITS);
            entries.push(MapEntry::Block(BlockKey { vni, prefix_bits, address }, value));
        })?;
        dump(HOST_ROUTES, self.host_routes.iter(), |key, vni| {
            let key = HostRouteKey { prefix_bits: bits(key.prefix_len()), address: key.data() };
            entries.push(MapEntry::HostRoute(key, vni));
        })?;
        dump(MEMBERS, self.members.iter(), |key, value| entries.push(MapEntry::Member(key, value)))?;
        dump(STAND_INS, self.stand_ins.iter(), |key, value| entries.push(MapEntry::StandIn(key, value)))?;
        dump(HOST_ADDRESSES, self.host_addresses.iter(), |key, value| {
            entries.push(MapEntry::HostAddress(key, value));
        })?;
        Ok(entries.into_iter().map(|entry| (entry.key(), entry)).collect())
    }

    /// Writes an entry, new or not.
    pub(super) fn put(&mut self, entry: &MapEntry) -> Result<(), ProgramsError> {
        let (map, written) = match *entry {
            MapEntry::Config(config) => (CONFIG, self.config.set(0, config, 0)),
            MapEntry::Network(key, value) => (NETWORKS, self.networks.insert(key, value, 0)),
            MapEntry::Interface(key, value) => (INTERFACES, self.interfaces.insert(key, value, 0)),
            MapEntry::Endpoint(key, value) => (ENDPOINTS, self.endpoints.insert(key, value, 0)),
            MapEntry::Block(key, value) => (BLOCKS, self.blocks.insert(&block_key(key), value, 0)),
            MapEntry::HostRoute(key, vni) => (HOST_ROUTES, self.host_routes.insert(&route_key(key), vni, 0)),
            MapEntry::Member(key, value) => (MEMBERS, self.members.insert(key, value, 0)),
            MapEntry::StandIn(key, value) => (STAND_INS, self.stand_ins.insert(key, value, 0)),
            MapEntry::HostAddress(key, value) => (HOST_ADDRESSES, self.host_addresses.insert(key, value, 0)),
        };
        written.map_err(|error| {
            if is_errno(&error, &[libc::E2BIG, libc::ENOSPC]) {
                ProgramsError::MapFull { map, key: entry.key() }
            } else {
                failed("write", map)(error)
            }
        })?;
        self.changed()
    }

    /// Invalidates what the programs have cached of entries. Called after the change: a program
    /// that reads the old number may have seen the old entry, one that reads the new number has
    /// not.
    fn changed(&mut self) -> Result<(), ProgramsError> {
        let generation = self.generation.get(&0, 0).map_err(failed("read", GENERATION))?;
        self.generation.set(0, generation.wrapping_add(1), 0).map_err(failed("write", GENERATION))
    }

    /// Removes an entry; one that is not there is no error.
    pub(super) fn delete(&mut self, key: &MapKey) -> Result<(), ProgramsError> {
        let (map, deleted) = match *key {
            MapKey::Config => (CONFIG, self.config.set(0, Config::default(), 0)),
            MapKey::Network(key) => (NETWORKS, self.networks.remove(&key)),
            MapKey::Interface(key) => (INTERFACES, self.interfaces.remove(&key)),
            MapKey::Endpoint(key) => (ENDPOINTS, self.endpoints.remove(&key)),
            MapKey::Block(key) => (BLOCKS, self.blocks.remove(&block_key(key))),
            MapKey::HostRoute(key) => (HOST_ROUTES, self.host_routes.remove(&route_key(key))),
            MapKey::Member(key) => (MEMBERS, self.members.remove(&key)),
            MapKey::StandIn(key) => (STAND_INS, self.stand_ins.remove(&key)),
            MapKey::HostAddress(key) => (HOST_ADDRESSES, self.host_addresses.remove(&key)),
        };
        ignore_absent(deleted).map_err(failed("delete from", map))?;
        self.changed()
    }

    /// Sets the cookie of the host's network namespace for the socket programs.
    pub(super) fn set_netns(&mut self, cookie: u64) -> Result<(), ProgramsError> {
        self.netns.set(0, cookie, 0).map_err(failed("write", NETNS))
    }

    /// Writes entries of the service tables, new or not.
    pub(super) fn put_tables(&mut self, entries: &[TableEntry]) -> Result<(), ProgramsError> {
        self.tables.put(entries)?;
        self.changed()
    }

    /// Removes entries of the service tables; those that are not there are no error.
    pub(super) fn delete_tables(&mut self, keys: &[TableKey]) -> Result<(), ProgramsError> {
        let deleted = self.tables.delete(keys);
        self.changed()?;
        deleted
    }

    pub(super) const fn tables(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// The counters, summed over CPUs.
    pub(super) fn counters(&self) -> Result<Counters, ProgramsError> {
        let mut counters = Counters::new();
        dump(COUNTERS, self.counters.iter(), |CounterKey { vni, reason }, values| {
            let Some(reason) = Reason::from_number(reason) else { return };
            counters.insert((vni, reason), sum(values.iter()));
        })?;
        let early = sum(self.early.get(&0, 0).map_err(failed("read", EARLY))?.iter());
        if early.packets != 0 {
            counters.insert((Vni::NONE, Reason::SentEarly), early);
        }
        Ok(counters)
    }

    /// Removes a network's counters.
    pub(super) fn forget_counters(&mut self, vni: Vni) -> Result<(), ProgramsError> {
        for reason in Reason::ALL {
            let key = CounterKey { vni, reason: *reason as u32 };
            ignore_absent(self.counters.remove(&key)).map_err(failed("delete from", COUNTERS))?;
        }
        Ok(())
    }

    /// When each member last answered a probe.
    pub(super) fn probe_replies(&self) -> Result<BTreeMap<Address, Duration>, ProgramsError> {
        let mut replies = BTreeMap::new();
        dump(PROBES, self.probes.iter(), |member, time| {
            replies.insert(member, Duration::from_nanos(time));
        })?;
        Ok(replies)
    }

    /// Removes the replies of all but these members.
    pub(super) fn retain_probe_replies(&mut self, members: &BTreeSet<Address>) -> Result<(), ProgramsError> {
        for member in self.probe_replies()?.keys().filter(|member| !members.contains(member)) {
            ignore_absent(self.probes.remove(member)).map_err(failed("delete from", PROBES))?;
        }
        for path in self.paths()?.keys().filter(|path| !members.contains(&path.member)) {
            ignore_absent(self.paths.remove(path)).map_err(failed("delete from", PATHS))?;
        }
        Ok(())
    }

    /// When probes and answers last came from each member, by either path.
    pub(super) fn paths(&self) -> Result<BTreeMap<PathKey, Duration>, ProgramsError> {
        let mut paths = BTreeMap::new();
        dump(PATHS, self.paths.iter(), |path, time| {
            paths.insert(path, Duration::from_nanos(time));
        })?;
        Ok(paths)
    }
}

/// What all CPUs have counted together.
fn sum<'a>(values: impl Iterator<Item = &'a Counter>) -> Counter {
    values.fold(Counter::default(), |sum, value| Counter {
        packets: sum.packets + value.packets,
        bytes: sum.bytes + value.bytes,
    })
}

fn open<T: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    name: &'static str,
    wrap: fn(MapData) -> Map,
) -> Result<T, ProgramsError> {
    MapData::from_pin(pins.map(name)).and_then(|data| wrap(data).try_into()).map_err(failed("open", name))
}

/// Reads a whole map. Entries that vanish meanwhile are left out.
fn dump<K, V>(
    map: &'static str,
    iterator: impl Iterator<Item = Result<(K, V), MapError>>,
    mut take: impl FnMut(K, V),
) -> Result<(), ProgramsError> {
    for item in iterator {
        match item {
            Ok((key, value)) => take(key, value),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(failed("read", map)(error)),
        }
    }
    Ok(())
}

fn block_key(BlockKey { vni, prefix_bits, address }: BlockKey) -> Key<EndpointKey> {
    Key::new(VNI_BITS + u32::from(prefix_bits), EndpointKey { vni, address })
}

fn route_key(HostRouteKey { prefix_bits, address }: HostRouteKey) -> Key<Address> {
    Key::new(prefix_bits.into(), address)
}

/// A prefix length that came out of a map, whose key has at most 128 bits of address.
fn bits(length: u32) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

fn failed(action: &'static str, map: &'static str) -> impl Fn(MapError) -> ProgramsError {
    move |source| ProgramsError::Map { action, map, source: Box::new(source) }
}

fn ignore_absent(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if is_absent(&error) => Ok(()),
        result => result,
    }
}

fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound | MapError::ElementNotFound) || is_errno(error, &[libc::ENOENT])
}

fn is_errno(error: &MapError, numbers: &[i32]) -> bool {
    let MapError::SyscallError(error) = error else { return false };
    error.io_error.raw_os_error().is_some_and(|errno| numbers.contains(&errno))
}
