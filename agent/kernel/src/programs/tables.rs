//! The service tables. They may have a hundred thousand entries, so they are read and written in
//! batches.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use aya::Pod;
use aya::maps::MapData;
use mesh_ebpf_types::{
    Allowance, BACKEND_TABLES_ROW, Backend, ConnectionKey, EndpointKey, HostFlow, Published, PublishedKey,
    Service, ServiceKey, TableEntry, TableKey, Vni, WATCHED,
};
use mesh_sys::bpf::{self, Words};
use nix::libc;
use nix::time::{ClockId, clock_gettime};

use super::bpffs::Pins;
use super::layouts;
use super::{ProgramsError, Take, Visit};
use crate::conntrack;

/// Entries of `BACKEND_TABLES` in one element of the array.
#[expect(clippy::cast_possible_truncation, reason = "it is 16")]
const ROW: u32 = BACKEND_TABLES_ROW as u32;

/// Entries read or written in one batch. A batch of reads must hold the longest chain of a hash
/// bucket.
const BATCH: usize = 4096;

/// The tables, opened through their pins.
pub(super) struct Tables {
    services: OwnedFd,
    published: OwnedFd,
    host_flows: OwnedFd,
    backends: OwnedFd,
    addresses: OwnedFd,
    connections: OwnedFd,
    connections_size: u32,
    allowances: OwnedFd,
    array: Words,
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

impl Tables {
    /// Opens the pinned maps.
    pub(super) fn open(pins: &Pins) -> Result<Self, ProgramsError> {
        let open =
            |map: &'static str| bpf::open_pin(&pins.map(map)).map_err(|error| failed("open", map, error));
        let size = |map: &'static str| {
            let info = MapData::from_pin(pins.map(map)).and_then(|map| map.info());
            info.map(|info| info.max_entries()).map_err(|source| ProgramsError::Map {
                action: "open",
                map,
                source: Box::new(source),
            })
        };
        let elements = size(layouts::BACKEND_TABLES)? as usize;
        Ok(Self {
            services: open(layouts::SERVICES)?,
            published: open(layouts::PUBLISHED)?,
            host_flows: open(layouts::HOST_FLOWS)?,
            backends: open(layouts::BACKENDS)?,
            addresses: open(layouts::BACKEND_ADDRESSES)?,
            connections: open(layouts::CONNECTIONS)?,
            connections_size: size(layouts::CONNECTIONS)?,
            allowances: open(layouts::ALLOWANCES)?,
            array: Words::new(open(layouts::BACKEND_TABLES)?, elements * BACKEND_TABLES_ROW),
        })
    }

    /// Writes entries, backends first: an entry that refers to a table refers only to existing
    /// backends.
    pub(super) fn put(&self, entries: &[TableEntry]) -> Result<(), ProgramsError> {
        let (mut services, mut published) = (Vec::new(), Vec::new());
        let (mut backends, mut addresses) = (Vec::new(), Vec::new());
        for entry in entries {
            match *entry {
                TableEntry::Service(key, value) => services.push((key, value)),
                TableEntry::Published(key, value) => published.push((key, value)),
                TableEntry::Backend(key, value) => backends.push((key, value)),
                TableEntry::BackendAddress(key) => addresses.push((key, 0_u32)),
            }
        }
        put(&self.addresses, layouts::BACKEND_ADDRESSES, &addresses)?;
        put(&self.backends, layouts::BACKENDS, &backends)?;
        put(&self.services, layouts::SERVICES, &services)?;
        self.watch(&published)?;
        put(&self.published, layouts::PUBLISHED, &published)
    }

    /// Prepares ports for publishing, so that replies to the host's own existing flows from these
    /// ports still reach the host. Once a port is watched, the programs record its flows as packets
    /// leave. Flows that started earlier are in conntrack by then.
    fn watch(&self, published: &[(PublishedKey, Published)]) -> Result<(), ProgramsError> {
        let mut new = Vec::new();
        for (key, value) in published {
            let has = bpf::has(self.published.as_fd(), key, *value);
            if !has.map_err(|error| failed("read", layouts::PUBLISHED, error))? {
                new.push((*key, Published { flags: value.flags | WATCHED, ..*value }));
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        put(&self.published, layouts::PUBLISHED, &new)?;
        let ports: BTreeSet<([u8; 2], u8)> = new.iter().map(|(key, _)| (key.port, key.protocol)).collect();
        let flow = HostFlow { time: monotonic(), ..HostFlow::default() };
        let running: Vec<_> = conntrack::replies()
            .into_iter()
            .filter(|key| {
                let [.., p0, p1] = key.ports;
                ports.contains(&([p0, p1], key.protocol))
            })
            .map(|key| (key, flow))
            .collect();
        put(&self.host_flows, layouts::HOST_FLOWS, &running)
    }

    /// Removes entries, in the opposite order. Continues after an error, and returns the first.
    pub(super) fn delete(&self, keys: &[TableKey]) -> Result<(), ProgramsError> {
        let (mut services, mut published) = (Vec::new(), Vec::new());
        let (mut backends, mut addresses) = (Vec::new(), Vec::new());
        for key in keys {
            match *key {
                TableKey::Service(key) => services.push(key),
                TableKey::Published(key) => published.push(key),
                TableKey::Backend(key) => backends.push(key),
                TableKey::BackendAddress(key) => addresses.push(key),
            }
        }
        [
            delete(&self.published, layouts::PUBLISHED, &published),
            delete(&self.services, layouts::SERVICES, &services),
            delete(&self.backends, layouts::BACKENDS, &backends),
            delete(&self.addresses, layouts::BACKEND_ADDRESSES, &addresses),
        ]
        .into_iter()
        .collect()
    }

    /// Returns all entries.
    pub(super) fn entries(&self) -> Result<BTreeMap<TableKey, TableEntry>, ProgramsError> {
        let mut entries = Vec::new();
        dump(&self.services, layouts::SERVICES, |key: ServiceKey, value: Service| {
            entries.push(TableEntry::Service(key, value));
        })?;
        dump(&self.published, layouts::PUBLISHED, |key: PublishedKey, value: Published| {
            entries.push(TableEntry::Published(key, value));
        })?;
        dump(&self.backends, layouts::BACKENDS, |key: u32, value: Backend| {
            entries.push(TableEntry::Backend(key, value));
        })?;
        dump(&self.addresses, layouts::BACKEND_ADDRESSES, |key: EndpointKey, _: u32| {
            entries.push(TableEntry::BackendAddress(key));
        })?;
        Ok(entries.into_iter().map(|entry| (entry.key(), entry)).collect())
    }

    /// Creates another array for `BACKEND_TABLES` with room for at least this many entries. Copies
    /// this one's contents, or as much as fits.
    pub(super) fn wider_backend_tables(&self, entries: u32) -> Result<Words, ProgramsError> {
        let failed = |error| failed("enlarge", layouts::BACKEND_TABLES, error);
        let rows = entries.div_ceil(ROW);
        let array = bpf::create_array(layouts::BACKEND_TABLES, ROW * 4, rows).map_err(failed)?;
        let wider = Words::new(array, rows as usize * BACKEND_TABLES_ROW);
        wider.copy(&self.array).map_err(failed)?;
        Ok(wider)
    }

    /// Returns the number of entries of `BACKEND_TABLES`.
    pub(super) fn backend_tables_size(&self) -> u32 {
        u32::try_from(self.array.count()).unwrap_or(u32::MAX)
    }

    /// Returns the capacity of `CONNECTIONS` in entries.
    pub(super) const fn connections_size(&self) -> u32 {
        self.connections_size
    }

    /// Returns how many entries `CONNECTIONS` can have before it evicts one: each CPU reserves some
    /// free entries.
    pub(super) fn connections_room(&self) -> u64 {
        const TAKEN_IN_ADVANCE: u64 = 128;
        let size = u64::from(self.connections_size);
        let processors = aya::util::nr_cpus().unwrap_or(1) as u64;
        size.saturating_sub(processors * TAKEN_IN_ADVANCE).max(size / 2)
    }

    /// Writes entries of `BACKEND_TABLES`.
    pub(super) fn write_backend_tables(&self, first: u32, backends: &[u32]) -> Result<(), ProgramsError> {
        match self.array.write(first as usize, backends) {
            Ok(true) => Ok(()),
            Ok(false) => Err(ProgramsError::TableFull { map: layouts::BACKEND_TABLES }),
            Err(error) => Err(failed("write", layouts::BACKEND_TABLES, error)),
        }
    }

    /// Reads entries of `BACKEND_TABLES`; fails past its end.
    pub(super) fn read_backend_tables(&self, first: u32, size: u32) -> Result<Vec<u32>, ProgramsError> {
        let past = || io::ErrorKind::InvalidInput.into();
        let read = self.array.read(first as usize, size as usize).and_then(|words| words.ok_or_else(past));
        read.map_err(|error| failed("read", layouts::BACKEND_TABLES, error))
    }

    /// Returns the number of entries of `CONNECTIONS` by network.
    pub(super) fn connections(&self) -> Result<BTreeMap<Vni, u64>, ProgramsError> {
        let mut counts = BTreeMap::new();
        self.visit_connections(&mut |key, _| {
            let [v0, v1, v2] = key.vni;
            *counts.entry(Vni([0, v0, v1, v2])).or_default() += 1;
        })?;
        Ok(counts)
    }

    /// Calls `visit` with each entry of `CONNECTIONS`.
    pub(super) fn visit_connections(&self, visit: &mut Visit<'_>) -> Result<(), ProgramsError> {
        dump(&self.connections, layouts::CONNECTIONS, |key, value| visit(&key, &value))
    }

    /// Removes entries of `CONNECTIONS`.
    pub(super) fn forget_connections(&self, takes: &mut Take<'_>) -> Result<(), ProgramsError> {
        let mut chosen: Vec<ConnectionKey> = Vec::new();
        dump(&self.connections, layouts::CONNECTIONS, |key, value| {
            if takes(&key, &value) {
                chosen.push(key);
            }
        })?;
        delete(&self.connections, layouts::CONNECTIONS, &chosen)
    }

    /// Returns the entries of `ALLOWANCES`.
    pub(super) fn allowances(&self) -> Result<BTreeMap<Vni, Allowance>, ProgramsError> {
        let mut allowances = BTreeMap::new();
        dump(&self.allowances, layouts::ALLOWANCES, |vni: Vni, value: Allowance| {
            allowances.insert(vni, value);
        })?;
        Ok(allowances)
    }

    /// Replaces the entries of `ALLOWANCES` by these.
    pub(super) fn set_allowances(&self, allowances: &BTreeMap<Vni, u64>) -> Result<(), ProgramsError> {
        let allowance = |(vni, left): (&Vni, &u64)| {
            (*vni, Allowance { left: i64::try_from(*left).unwrap_or(i64::MAX), refused: 0 })
        };
        let entries: Vec<_> = allowances.iter().map(allowance).collect();
        let gone = self.allowances()?.into_keys().filter(|vni| !allowances.contains_key(vni));
        delete(&self.allowances, layouts::ALLOWANCES, &gone.collect::<Vec<_>>())?;
        put(&self.allowances, layouts::ALLOWANCES, &entries)
    }
}

/// Returns the time as programs see it, in nanoseconds.
fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or_default()
}

fn put<K: Pod, V: Pod>(table: &OwnedFd, map: &'static str, entries: &[(K, V)]) -> Result<(), ProgramsError> {
    for part in entries.chunks(BATCH) {
        let (keys, values): (Vec<K>, Vec<V>) = part.iter().copied().unzip();
        bpf::update_batch(table.as_fd(), &keys, &values).map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => ProgramsError::TableFull { map },
            _ => failed("write", map, error),
        })?;
    }
    Ok(())
}

/// Deletes keys one by one: a batch would stop at the first key that does not exist.
fn delete<K: Pod>(table: &OwnedFd, map: &'static str, keys: &[K]) -> Result<(), ProgramsError> {
    let mut outcome = Ok(());
    for key in keys {
        if let Err(error) = bpf::delete(table.as_fd(), key)
            && error.kind() != io::ErrorKind::NotFound
        {
            outcome = outcome.and(Err(failed("delete from", map, error)));
        }
    }
    outcome
}

fn dump<K: Pod, V: Pod>(
    table: &OwnedFd,
    map: &'static str,
    mut take: impl FnMut(K, V),
) -> Result<(), ProgramsError> {
    bpf::lookup_batches(table.as_fd(), BATCH, |keys, values| {
        for (key, value) in keys.iter().zip(values) {
            take(*key, *value);
        }
    })
    .map_err(|error| failed("read", map, error))
}

fn failed(action: &'static str, map: &'static str, source: io::Error) -> ProgramsError {
    ProgramsError::Table { action, map, source }
}
