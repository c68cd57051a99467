//! What the services' maps hold, and the steps to what they should hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use mesh_ebpf_types::{EndpointKey, TableEntry, TableKey};
use mesh_model::ServiceId;

use super::digest::Digest;
use super::rendezvous;
use super::space::Space;
use super::wanted::{Entries, Facts, Records, Scope, Share};

/// How long a table that no entry names any more is left alone. Programs run for microseconds.
const TABLE_RESTS: Duration = Duration::from_secs(1);

/// How long an address that was a backend's is still looked up for replies to be translated back:
/// what the backend sent before it was removed has arrived by then.
const ADDRESS_RESTS: Duration = Duration::from_secs(10);

/// Something that no step can mend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// The array is full: the service goes on with the backends that it had.
    #[error(
        "service {service} is not brought up to date: its table of {size} entries has no room in the array of {capacity}, \
         which could not be made larger"
    )]
    NoRoom {
        /// The service's name.
        service: String,
        /// The table's size.
        size: u32,
        /// The array's.
        capacity: u32,
    },
}

/// A table to be written into the array `MAGLEV`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTable {
    /// Where it begins: the index of its first entry, a multiple of [`super::ALIGNMENT`].
    pub first: u32,
    /// Its entries: backends' numbers.
    pub backends: Vec<u32>,
}

/// What is to be done. In the order of these fields nothing ever names what is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Backends and their addresses to be put.
    pub backends: Vec<TableEntry>,
    /// Tables to be written, each where no entry names it yet.
    pub tables: Vec<NewTable>,
    /// Entries to be put that name tables.
    pub entries: Vec<TableEntry>,
    /// Entries to be removed: those that name tables, then backends, then addresses.
    pub gone: Vec<TableKey>,
    /// What cannot be done, and is in nobody's way.
    pub problems: BTreeSet<Problem>,
}

impl Update {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty() && self.tables.is_empty() && self.entries.is_empty() && self.gone.is_empty()
    }
}

/// What the maps held when they were last read.
#[derive(Debug, Default)]
pub struct Dump {
    /// All entries of `SERVICES`, `PUBLISHED`, `BACKENDS` and `BACKEND_ADDRESSES`.
    pub entries: BTreeMap<TableKey, TableEntry>,
    /// The tables that those name: by index of their first entry, as long as the longest of the
    /// entries says.
    pub tables: BTreeMap<u32, Digest>,
}

/// The maps' mirror: what they hold once all steps so far were taken. After one that failed it is
/// wrong, and has to be made anew from a dump ([`Tables::adopt`]).
#[derive(Debug)]
pub struct Tables {
    capacity: u32,
    space: Space,
    services: BTreeMap<ServiceId, Held>,
    /// Entries that belong to no service known so far, as a former process left them.
    strays: BTreeMap<TableKey, TableEntry>,
    /// Their tables, by where they begin.
    stray_picks: BTreeMap<u32, Digest>,
    /// What tables were known before the maps were read anew: what is made of the same share needs
    /// no making to be compared.
    former: BTreeMap<ServiceId, BTreeMap<Scope, Table>>,
    /// Which backends have an address.
    addresses: BTreeMap<EndpointKey, BTreeSet<u32>>,
    /// Addresses that have none any more, the first to go first.
    leaving: VecDeque<(Duration, EndpointKey)>,
    /// Services that want room, by what their table is to be.
    problems: BTreeMap<ServiceId, Problem>,
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
    /// Entries in the array; none for a service without backends.
    fn len(&self) -> u32 {
        self.share.len()
    }
}

/// An update that is being made.
#[derive(Debug, Default)]
struct Draft {
    update: Update,
    /// Keys of entries that a service gave up, and that one took.
    gone: BTreeSet<TableKey>,
    taken: BTreeSet<TableKey>,
    /// Removals of backends, and of addresses.
    after: Vec<TableKey>,
    /// Room that nothing refers to once the update is made.
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
    /// The mirror of new maps: empty. `capacity` is the size of the array `MAGLEV`, in entries.
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

    /// The mirror of maps as they were found. An update of all services has to follow, or updates
    /// of some after each other and then [`Tables::adopted`]: it keeps what is right, replaces what
    /// is not, and removes what no service has.
    ///
    /// `former` is what is known of the maps so far: what rests goes on resting.
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

    /// When [`Tables::update`] will have something to do, whether or not anything changes.
    pub fn due(&self) -> Option<Duration> {
        let address = self.leaving.front().map(|(at, _)| *at);
        // Room is only waited for by those that had none.
        let room = self.space.next_wake().filter(|_| !self.problems.is_empty());
        address.into_iter().chain(room).min()
    }

    /// The array's size, in entries.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The array has become larger, with what was in it.
    pub fn widen(&mut self, capacity: u32) {
        self.space.widen(self.capacity, capacity);
        self.capacity = self.capacity.max(capacity);
    }

    /// How many services have entries, and how many backends those have.
    pub fn count(&self) -> (usize, usize) {
        (self.services.len(), self.services.values().map(|held| held.backends.len()).sum())
    }

    /// The steps to what all services want.
    pub fn update_all<'a>(
        &mut self,
        services: impl IntoIterator<Item = (&'a ServiceId, &'a Records)>,
        facts: &Facts<'_>,
        now: Duration,
    ) -> Update {
        let wanted: BTreeMap<&ServiceId, &Records> = services.into_iter().collect();
        let gone: Vec<ServiceId> =
            self.services.keys().filter(|id| !wanted.contains_key(id)).cloned().collect();
        let gone = gone.iter().map(|id| (id, None));
        let all = wanted.iter().map(|(id, records)| (*id, Some(*records)));
        let mut draft = Draft::default();
        self.wake(now, &mut draft);
        let changes: Vec<_> = gone.chain(all).collect();
        self.change(changes, facts, &mut draft);
        self.remove_strays(&mut draft);
        self.finish(draft, now)
    }

    /// The last steps of an adoption, after all services were brought up to date: what none of them
    /// has goes.
    pub fn adopted(&mut self, now: Duration) -> Update {
        let mut draft = Draft::default();
        self.wake(now, &mut draft);
        self.remove_strays(&mut draft);
        self.finish(draft, now)
    }

    /// The steps to what some services want; `None` for one that is gone. The rest is not touched.
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

    /// Services that found no room, and for which there may be some by now.
    pub fn may_have_room(&mut self, now: Duration) -> Vec<ServiceId> {
        self.space.wake(now);
        let largest = self.space.largest();
        let fitting = self.problems.iter().filter(|(_, Problem::NoRoom { size, .. })| *size <= largest);
        fitting.map(|(id, _)| id.clone()).collect()
    }

    fn wake(&mut self, now: Duration, draft: &mut Draft) {
        self.space.wake(now);
        while let Some((_, address)) = self.leaving.pop_front_if(|(at, _)| *at <= now) {
            // It may have come back meanwhile.
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
            let wanted = records.map(|records| Entries::of(records, facts)).unwrap_or_default();
            self.backends(&mut held, &wanted, draft);
            self.tables(id, &mut held, &wanted, draft);
            if records.is_some() {
                self.services.insert(id.clone(), held);
            }
        }
    }

    fn backends(&mut self, held: &mut Held, wanted: &Entries, draft: &mut Draft) {
        for (backend, entry) in &wanted.backends {
            let key = TableKey::Backend(*backend);
            let before = held.backends.insert(*backend, *entry).or_else(|| self.strays.remove(&key));
            if before.as_ref() != Some(entry) {
                draft.update.backends.push(*entry);
            }
        }
        let gone: Vec<u32> =
            held.backends.keys().filter(|backend| !wanted.backends.contains_key(backend)).copied().collect();
        for backend in gone {
            held.backends.remove(&backend);
            draft.after.push(TableKey::Backend(backend));
        }
        let before = std::mem::replace(&mut held.addresses, wanted.addresses.clone());
        for (backend, addresses) in &wanted.addresses {
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
                if wanted.addresses.get(&backend).is_some_and(|kept| kept.contains(&address)) {
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

    fn tables(&mut self, id: &ServiceId, held: &mut Held, wanted: &Entries, draft: &mut Draft) {
        for (scope, share) in &wanted.shares {
            match self.table(id, wanted, *scope, share, held, draft) {
                Some(table) => {
                    held.tables.insert(*scope, table);
                }
                None => {
                    self.problems.insert(
                        id.clone(),
                        Problem::NoRoom {
                            service: wanted.name.clone(),
                            size: share.len(),
                            capacity: self.capacity,
                        },
                    );
                }
            }
        }
        let mut entries = BTreeMap::new();
        for (key, template) in &wanted.named {
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
            held.tables.keys().filter(|scope| !wanted.shares.contains_key(scope)).copied().collect();
        for scope in unused {
            if let Some(table) = held.tables.remove(&scope) {
                draft.free(&table);
            }
        }
    }

    /// The table that a share of a service has from now on: the one that it has, one that was
    /// found, or a new one. None when there is no room.
    fn table(
        &mut self,
        id: &ServiceId,
        wanted: &Entries,
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
        let places = if before.is_none() { self.found(wanted, scope, share.len()) } else { BTreeSet::new() };
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
            // Without room for a second one, the table is rewritten where it is: each entry is
            // written at once, and is a backend before and after. So a host that dies is out of all
            // services, however full the array.
            None => before.filter(|before| before.len() == share.len())?.first,
        };
        // Last, since to make a table takes longer than all else, and there may be no room for it.
        let backends = backends.unwrap_or_else(|| rendezvous::table(&share.backends, share.size));
        let digest = Digest::of(&backends);
        draft.update.tables.push(NewTable { first, backends });
        Some(found(first, digest))
    }

    /// Where the tables of this size are that the entries found for a service name.
    fn found(&self, wanted: &Entries, scope: Scope, size: u32) -> BTreeSet<u32> {
        let keys = wanted.named.iter().filter(|(_, template)| template.scope() == scope);
        let named = keys.filter_map(|(key, _)| super::named_table(self.strays.get(key)?));
        named.filter(|(_, found)| *found == size).map(|(start, _)| start).collect()
    }

    /// What a former process left and no service has.
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
