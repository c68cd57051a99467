//! Mirrors the services' maps, and computes the steps to their desired contents.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use mesh_ebpf_types::{EndpointKey, TableEntry, TableKey};
use mesh_model::ServiceId;

use super::desired::{Entries, Facts, Records, Scope, Share};
use super::digest::Digest;
use super::rendezvous;
use super::space::Space;

/// How long an unreferenced table must not be changed. Programs run for microseconds.
const TABLE_RESTS: Duration = Duration::from_secs(1);

/// How long a former backend's address is still looked up for reverse translation. Packets that the
/// backend sent before its removal have arrived by then.
const ADDRESS_RESTS: Duration = Duration::from_secs(10);

/// A problem that no step can solve.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum TableProblem {
    /// The array is full: the service keeps its previous backends.
    #[error(
        "service {service} could not be updated: its table of {size} entries does not fit into the array of {capacity}, \
         which could not be enlarged"
    )]
    NoRoom {
        /// The service's name.
        service: String,
        /// The table's size.
        size: u32,
        /// The array's size.
        capacity: u32,
    },
}

/// A table to be written into the array `BACKEND_TABLES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTable {
    /// Index of its first entry, a multiple of [`super::ALIGNMENT`].
    pub first: u32,
    /// The backend numbers of its entries.
    pub backends: Vec<u32>,
}

/// The steps to take. In the order of these fields, no entry ever refers to a missing one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Backends and their addresses to write.
    pub backends: Vec<TableEntry>,
    /// Tables to write, each to a place that no entry refers to yet.
    pub tables: Vec<NewTable>,
    /// Entries to write that refer to tables.
    pub entries: Vec<TableEntry>,
    /// Entries to remove: those that refer to tables, then backends, then addresses.
    pub gone: Vec<TableKey>,
    /// Failures, which do not block the other steps.
    pub problems: BTreeSet<TableProblem>,
}

impl Update {
    /// Returns whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty() && self.tables.is_empty() && self.entries.is_empty() && self.gone.is_empty()
    }
}

/// The contents of the maps when they were last read.
#[derive(Debug, Default)]
pub struct Dump {
    /// All entries of `SERVICES`, `PUBLISHED`, `BACKENDS` and `BACKEND_ADDRESSES`.
    pub entries: BTreeMap<TableKey, TableEntry>,
    /// The tables to which those refer: by index of their first entry, with the longest length in
    /// the entries.
    pub tables: BTreeMap<u32, Digest>,
}

/// A mirror of the maps: their contents once all steps so far were taken. After a failed step it is
/// wrong, and must be rebuilt from a dump ([`Tables::adopt`]).
#[derive(Debug)]
pub struct Tables {
    capacity: u32,
    space: Space,
    services: BTreeMap<ServiceId, Held>,
    /// Entries of no known service, left by an earlier process.
    strays: BTreeMap<TableKey, TableEntry>,
    /// Their tables, by index of the first entry.
    stray_picks: BTreeMap<u32, Digest>,
    /// Tables known before the maps were read again, so that a table for the same share need not be
    /// rebuilt for comparison.
    former: BTreeMap<ServiceId, BTreeMap<Scope, Table>>,
    /// The backends of each address.
    addresses: BTreeMap<EndpointKey, BTreeSet<u32>>,
    /// Addresses without backends, in the order of their removal.
    leaving: VecDeque<(Duration, EndpointKey)>,
    /// Services without room, with the tables that they need.
    problems: BTreeMap<ServiceId, TableProblem>,
}

/// One service's part of the maps.
#[derive(Debug, Clone, Default)]
struct Held {
    tables: BTreeMap<Scope, Table>,
    entries: BTreeMap<TableKey, TableEntry>,
    backends: BTreeMap<u32, TableEntry>,
    addresses: BTreeMap<u32, BTreeSet<EndpointKey>>,
}

/// A table in the array.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Table {
    first: u32,
    share: Share,
    digest: Digest,
}

impl Table {
    /// Number of entries in the array; 0 for a service without backends.
    fn len(&self) -> u32 {
        self.share.len()
    }
}

/// An update under construction.
#[derive(Debug, Default)]
struct Draft {
    update: Update,
    /// Keys of entries that a service dropped, and that another may use.
    gone: BTreeSet<TableKey>,
    taken: BTreeSet<TableKey>,
    /// Removals of backends, and of addresses.
    after: Vec<TableKey>,
    /// Space that no entry refers to once the update is applied.
    freed: Vec<(u32, u32)>,
    /// Addresses that no backend has any more.
    left: Vec<EndpointKey>,
}

impl Draft {
    fn free(&mut self, table: &Table) {
        if table.len() > 0 {
            self.freed.push((table.first, table.len()));
        }
    }
}

impl Tables {
    /// Creates the mirror of new, empty maps. `capacity` is the size of `BACKEND_TABLES`, in
    /// entries.
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity,
            space: Space::new(capacity),
            services: BTreeMap::new(),
            strays: BTreeMap::new(),
            stray_picks: BTreeMap::new(),
            former: BTreeMap::new(),
            addresses: BTreeMap::new(),
            leaving: VecDeque::new(),
            problems: BTreeMap::new(),
        }
    }

    /// Creates the mirror of existing maps. An update of all services must follow, or updates of
    /// parts of them and then [`Tables::adopted`]. It keeps correct entries, replaces wrong ones,
    /// and removes those of no service.
    ///
    /// `former` is the previous mirror: resting space continues to rest.
    pub fn adopt(capacity: u32, mut dump: Dump, former: Option<Self>, now: Duration) -> Self {
        let mut tables = Self::new(capacity);
        if let Some(former) = former.filter(|former| former.capacity <= capacity) {
            tables.space = former.space.only_resting(capacity);
            tables.leaving = former.leaving;
            tables.former = former.services.into_iter().map(|(id, held)| (id, held.tables)).collect();
        }
        for (first, length) in super::named_tables(dump.entries.values()) {
            let content = dump.tables.remove(&first).filter(|content| content.size() == length);
            if let Some(content) = content
                && tables.space.claim(first, length)
            {
                tables.stray_picks.insert(first, content);
            }
        }
        let known: BTreeSet<EndpointKey> = tables.leaving.iter().map(|(_, key)| *key).collect();
        for (key, entry) in dump.entries {
            match key {
                TableKey::BackendAddress(address) => {
                    tables.addresses.insert(address, BTreeSet::new());
                    if !known.contains(&address) {
                        tables.leaving.push_back((now + ADDRESS_RESTS, address));
                    }
                }
                _ => {
                    tables.strays.insert(key, entry);
                }
            }
        }
        tables.leaving.retain(|(_, address)| tables.addresses.contains_key(address));
        tables
    }

    /// Returns when [`Tables::update`] will have something to do even without a change.
    pub fn due(&self) -> Option<Duration> {
        let address = self.leaving.front().map(|(at, _)| *at);
        // Only services without room wait for space.
        let room = self.space.next_wake().filter(|_| !self.problems.is_empty());
        address.into_iter().chain(room).min()
    }

    /// Returns the array's size, in entries.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Records that the array was enlarged, with its contents kept.
    pub fn widen(&mut self, capacity: u32) {
        self.space.widen(self.capacity, capacity);
        self.capacity = self.capacity.max(capacity);
    }

    /// Returns the number of services with entries, and of their backends.
    pub fn count(&self) -> (usize, usize) {
        (self.services.len(), self.services.values().map(|held| held.backends.len()).sum())
    }

    /// Returns the steps to the desired entries of all services.
    pub fn update_all<'a>(
        &mut self,
        services: impl IntoIterator<Item = (&'a ServiceId, &'a Records)>,
        facts: &Facts<'_>,
        now: Duration,
    ) -> Update {
        let desired: BTreeMap<&ServiceId, &Records> = services.into_iter().collect();
        let gone: Vec<ServiceId> =
            self.services.keys().filter(|id| !desired.contains_key(id)).cloned().collect();
        let gone = gone.iter().map(|id| (id, None));
        let all = desired.iter().map(|(id, records)| (*id, Some(*records)));
        let mut draft = Draft::default();
        self.wake(now, &mut draft);
        let changes: Vec<_> = gone.chain(all).collect();
        self.change(changes, facts, &mut draft);
        self.remove_strays(&mut draft);
        self.finish(draft, now)
    }

    /// Returns the last steps of an adoption, after all services were updated: removes the entries
    /// of no service.
    pub fn adopted(&mut self, now: Duration) -> Update {
        let mut draft = Draft::default();
        self.wake(now, &mut draft);
        self.remove_strays(&mut draft);
        self.finish(draft, now)
    }

    /// Returns the steps to the desired entries of some services; `None` for a deleted one. Changes
    /// nothing else.
    pub fn update<'a>(
        &mut self,
        changes: impl IntoIterator<Item = (&'a ServiceId, Option<&'a Records>)>,
        facts: &Facts<'_>,
        now: Duration,
    ) -> Update {
        let mut draft = Draft::default();
        self.wake(now, &mut draft);
        let changes: Vec<_> = changes.into_iter().collect();
        self.change(changes, facts, &mut draft);
        self.finish(draft, now)
    }

    /// Returns services without room for which there may be room now.
    pub fn may_have_room(&mut self, now: Duration) -> Vec<ServiceId> {
        self.space.wake(now);
        let largest = self.space.largest();
        let fitting = self.problems.iter().filter(|(_, TableProblem::NoRoom { size, .. })| *size <= largest);
        fitting.map(|(id, _)| id.clone()).collect()
    }

    fn wake(&mut self, now: Duration, draft: &mut Draft) {
        self.space.wake(now);
        while let Some((_, address)) = self.leaving.pop_front_if(|(at, _)| *at <= now) {
            // Another backend may have the address by now.
            if self.addresses.get(&address).is_some_and(BTreeSet::is_empty) {
                self.addresses.remove(&address);
                draft.after.push(TableKey::BackendAddress(address));
            }
        }
    }

    fn change(&mut self, changes: Vec<(&ServiceId, Option<&Records>)>, facts: &Facts<'_>, draft: &mut Draft) {
        for (id, records) in changes {
            let mut held = self.services.remove(id).unwrap_or_default();
            self.problems.remove(id);
            let desired = records.map(|records| Entries::of(records, facts)).unwrap_or_default();
            self.backends(&mut held, &desired, draft);
            self.tables(id, &mut held, &desired, draft);
            if records.is_some() {
                self.services.insert(id.clone(), held);
            }
        }
    }

    fn backends(&mut self, held: &mut Held, desired: &Entries, draft: &mut Draft) {
        for (backend, entry) in &desired.backends {
            let key = TableKey::Backend(*backend);
            let before = held.backends.insert(*backend, *entry).or_else(|| self.strays.remove(&key));
            if before.as_ref() != Some(entry) {
                draft.update.backends.push(*entry);
            }
        }
        let gone: Vec<u32> =
            held.backends.keys().filter(|backend| !desired.backends.contains_key(backend)).copied().collect();
        for backend in gone {
            held.backends.remove(&backend);
            draft.after.push(TableKey::Backend(backend));
        }
        let before = std::mem::replace(&mut held.addresses, desired.addresses.clone());
        for (backend, addresses) in &desired.addresses {
            for address in addresses {
                let known = self.addresses.entry(*address);
                if matches!(known, std::collections::btree_map::Entry::Vacant(_)) {
                    draft.update.backends.push(TableEntry::BackendAddress(*address));
                }
                known.or_default().insert(*backend);
            }
        }
        for (backend, addresses) in before {
            for address in addresses {
                if desired.addresses.get(&backend).is_some_and(|kept| kept.contains(&address)) {
                    continue;
                }
                if let Some(backends) = self.addresses.get_mut(&address)
                    && backends.remove(&backend)
                    && backends.is_empty()
                {
                    draft.left.push(address);
                }
            }
        }
    }

    fn tables(&mut self, id: &ServiceId, held: &mut Held, desired: &Entries, draft: &mut Draft) {
        for (scope, share) in &desired.shares {
            match self.table(id, desired, *scope, share, held, draft) {
                Some(table) => {
                    held.tables.insert(*scope, table);
                }
                None => {
                    self.problems.insert(
                        id.clone(),
                        TableProblem::NoRoom {
                            service: desired.name.clone(),
                            size: share.len(),
                            capacity: self.capacity,
                        },
                    );
                }
            }
        }
        let mut entries = BTreeMap::new();
        for (key, template) in &desired.named {
            let Some(table) = held.tables.get(&template.scope()) else { continue };
            let entry = template.naming(table.first, table.len());
            let before = held.entries.remove(key).or_else(|| self.strays.remove(key));
            draft.taken.insert(*key);
            if before != Some(entry) {
                draft.update.entries.push(entry);
            }
            entries.insert(*key, entry);
        }
        draft.gone.extend(std::mem::replace(&mut held.entries, entries).into_keys());
        let unused: Vec<Scope> =
            held.tables.keys().filter(|scope| !desired.shares.contains_key(scope)).copied().collect();
        for scope in unused {
            if let Some(table) = held.tables.remove(&scope) {
                draft.free(&table);
            }
        }
    }

    /// Returns the table of a service's share: the current one, an adopted one, or a new one.
    /// Returns `None` if there is no room.
    fn table(
        &mut self,
        id: &ServiceId,
        desired: &Entries,
        scope: Scope,
        share: &Share,
        held: &Held,
        draft: &mut Draft,
    ) -> Option<Table> {
        let before = held.tables.get(&scope);
        if let Some(before) = before.filter(|before| before.share == *share) {
            return Some(before.clone());
        }
        let found = |first, digest| Table { first, share: share.clone(), digest };
        if share.len() == 0 {
            before.inspect(|before| draft.free(before));
            return Some(found(0, Digest::of(&[])));
        }
        let mut backends = None;
        let places = if before.is_none() { self.found(desired, scope, share.len()) } else { BTreeSet::new() };
        if !places.is_empty() {
            let known = self.former.get(id).and_then(|tables| tables.get(&scope));
            let digest = known.filter(|known| known.share == *share).map(|known| known.digest);
            let digest = digest.unwrap_or_else(|| {
                Digest::of(backends.insert(rendezvous::table(&share.backends, share.size)))
            });
            let right = places.into_iter().find(|start| self.stray_picks.get(start) == Some(&digest));
            if let Some(start) = right {
                self.stray_picks.remove(&start);
                return Some(found(start, digest));
            }
        }
        let first = match self.space.allocate(share.len()) {
            Some(first) => {
                before.inspect(|before| draft.free(before));
                first
            }
            // Without room for a second table, rewrite this one in place. Each entry is written
            // atomically and names a backend before and after. So a failed host is removed from all
            // services even if the array is full.
            None => before.filter(|before| before.len() == share.len())?.first,
        };
        // Do this last, since building a table is expensive, and there may be no room for it.
        let backends = backends.unwrap_or_else(|| rendezvous::table(&share.backends, share.size));
        let digest = Digest::of(&backends);
        draft.update.tables.push(NewTable { first, backends });
        Some(found(first, digest))
    }

    /// Returns the places of existing tables of this size to which this service's adopted entries
    /// refer.
    fn found(&self, desired: &Entries, scope: Scope, size: u32) -> BTreeSet<u32> {
        let keys = desired.named.iter().filter(|(_, template)| template.scope() == scope);
        let named = keys.filter_map(|(key, _)| super::named_table(self.strays.get(key)?));
        named.filter(|(_, found)| *found == size).map(|(start, _)| start).collect()
    }

    /// Removes entries that an earlier process left and no service has.
    fn remove_strays(&mut self, draft: &mut Draft) {
        for key in std::mem::take(&mut self.strays).into_keys() {
            match key {
                TableKey::Service(_) | TableKey::Published(_) => {
                    draft.gone.insert(key);
                }
                _ => draft.after.push(key),
            }
        }
        for (start, picks) in std::mem::take(&mut self.stray_picks) {
            draft.freed.push((start, picks.size()));
        }
        self.former.clear();
    }

    fn finish(&mut self, draft: Draft, now: Duration) -> Update {
        for (first, size) in draft.freed {
            self.space.rest(first, size, now + TABLE_RESTS);
        }
        self.leaving.extend(draft.left.into_iter().map(|address| (now + ADDRESS_RESTS, address)));
        let mut update = draft.update;
        update.gone = draft.gone.difference(&draft.taken).copied().chain(draft.after).collect();
        update.problems = self.problems.values().cloned().collect();
        update
    }
}
