//! Chooses the entries of `CONNECTIONS` that a network must delete: those of the clients with most
//! entries, least recently used first.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use super::level;
use mesh_ebpf_types::{Address, Connection, ConnectionKey, ConnectionKind, USED_SHIFT, Vni};
use mesh_model::fnv::fnv1a;

/// Number of hash classes of clients.
const CLIENTS: usize = 256;
/// Number of age classes: exact below [`EXACT`], logarithmic above.
const AGES: usize = 64;
const EXACT: u16 = 32;

/// Returns the network of an entry's service.
pub fn network(key: &ConnectionKey, value: &Connection) -> Vni {
    if value.kind == ConnectionKind::Forward as u8 && value.node != [0; 4] {
        return Vni(value.node);
    }
    let [v0, v1, v2] = key.vni;
    Vni([0, v0, v1, v2])
}

/// The entries of one network, by client and age.
#[derive(Debug)]
struct Held {
    entries: Vec<[u32; AGES]>,
}

/// The entries that a network must delete: those of the clients with most entries, least recently
/// used first.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    /// For each client: delete all that are older than this age class, and this many of the class.
    clients: Vec<(usize, u32)>,
}

/// Chooses entries. Count all entries first, then visit them again.
#[derive(Debug)]
pub struct Chooser {
    now: u16,
    held: BTreeMap<Vni, Held>,
}

impl Chooser {
    /// Creates a chooser for networks that must delete entries. `now` is in the unit of
    /// [`Connection::used`].
    pub fn new(networks: impl IntoIterator<Item = Vni>, now: u16) -> Self {
        let none = || Held { entries: vec![[0; AGES]; CLIENTS] };
        Self { now, held: networks.into_iter().map(|vni| (vni, none())).collect() }
    }

    /// Counts an entry.
    pub fn count(&mut self, key: &ConnectionKey, value: &Connection) {
        let (client, age) = (client(key, value), age(self.now, value));
        if let Some(held) = self.held.get_mut(&network(key, value)) {
            held.entries[client][age] += 1;
        }
    }

    /// Chooses this many entries of each network.
    pub fn choose(self, numbers: &BTreeMap<Vni, u64>) -> Choice {
        let cut = |(vni, held): (Vni, Held)| {
            let number = numbers.get(&vni).copied().unwrap_or_default();
            (vni, held.cut(number))
        };
        Choice { now: self.now, cuts: self.held.into_iter().map(cut).collect() }
    }
}

impl Held {
    fn cut(&self, number: u64) -> Cut {
        let totals: Vec<u64> =
            self.entries.iter().map(|ages| ages.iter().map(|count| u64::from(*count)).sum()).collect();
        let all: u64 = totals.iter().sum();
        let level = level(&totals, all.saturating_sub(number));
        let of_client = |(ages, total): (&[u32; AGES], &u64)| {
            let mut left = u32::try_from(total.saturating_sub(level)).unwrap_or(u32::MAX);
            for (age, count) in ages.iter().enumerate().rev() {
                if *count >= left {
                    return (age, left);
                }
                left -= count;
            }
            (0, left)
        };
        Cut { clients: self.entries.iter().zip(&totals).map(of_client).collect() }
    }
}

/// The entries to delete.
#[derive(Debug)]
pub struct Choice {
    now: u16,
    cuts: BTreeMap<Vni, Cut>,
}

impl Choice {
    /// Returns whether an entry is one of them.
    pub fn takes(&mut self, key: &ConnectionKey, value: &Connection) -> bool {
        let Some(cut) = self.cuts.get_mut(&network(key, value)) else { return false };
        let (from, left) = &mut cut.clients[client(key, value)];
        match age(self.now, value).cmp(from) {
            Ordering::Less => false,
            Ordering::Greater => true,
            Ordering::Equal => {
                let takes = *left > 0;
                *left = left.saturating_sub(1);
                takes
            }
        }
    }
}

/// Returns the time in the unit of [`Connection::used`].
#[expect(clippy::cast_possible_truncation, reason = "it goes round")]
pub fn clock(uptime: Duration) -> u16 {
    (uptime.as_nanos() >> USED_SHIFT) as u16
}

/// A number for the client of an entry's flow.
fn client(key: &ConnectionKey, value: &Connection) -> usize {
    let Address(bytes) =
        if value.kind == ConnectionKind::Forward as u8 { key.source } else { key.destination };
    let hash = fnv1a(&bytes);
    (hash ^ hash >> 16) as usize % CLIENTS
}

/// Returns the age class of an entry, one of [`AGES`].
fn age(now: u16, value: &Connection) -> usize {
    let age = now.wrapping_sub(value.used);
    if age < EXACT { usize::from(age) } else { usize::from(EXACT) + age.ilog2() as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(client: u8, vni: u8, used: u16) -> (ConnectionKey, Connection) {
        let source = Address::from_v4([10, 0, 0, client]);
        let key = ConnectionKey {
            source,
            vni: [0, 0, vni],
            ports: used.to_be_bytes().repeat(2).try_into().unwrap(),
            ..ConnectionKey::default()
        };
        (key, Connection { used, node: [0, 0, 0, vni], ..Connection::default() })
    }

    /// Returns client and time of the deleted entries of network 1.
    fn forgotten(entries: &[(ConnectionKey, Connection)], number: u64) -> Vec<(u8, u16)> {
        let now = 60_000;
        let mut chooser = Chooser::new([Vni::new(1)], now);
        for (key, value) in entries {
            chooser.count(key, value);
        }
        let mut choice = chooser.choose(&BTreeMap::from([(Vni::new(1), number)]));
        let gone = entries.iter().filter(|(key, value)| choice.takes(key, value));
        gone.map(|(key, value)| (key.source.0[15], value.used)).collect()
    }

    #[test]
    fn the_largest_client_loses_its_least_recently_used_entries() {
        let mut entries: Vec<_> = (0..100).map(|second| entry(1, 1, 59_900 + second)).collect();
        entries.extend((0..10).map(|second| entry(2, 1, 10 + second)));
        entries.extend((0..200).map(|second| entry(1, 2, second)));
        assert_eq!(forgotten(&entries, 0), []);
        let gone = forgotten(&entries, 30);
        assert_eq!(gone.len(), 30);
        assert!(gone.iter().all(|(client, used)| *client == 1 && *used < 59_940), "{gone:?}");
        let gone = forgotten(&entries, 104);
        assert_eq!(gone.iter().filter(|(client, _)| *client == 2).count(), 7, "{gone:?}");
        assert_eq!(forgotten(&entries, 1000).len(), 110);
    }

    #[test]
    fn ages_are_right_after_the_clock_wraps_around() {
        let value = |used| Connection { used, ..Connection::default() };
        assert_eq!(age(3, &value(65_535)), 4);
        assert!(age(3, &value(4)) > age(3, &value(60_000)));
    }
}
