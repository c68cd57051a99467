//! Which entries of `CONNECTIONS` a network forgets: those of the clients that have most, the
//! longest unused first.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use super::level;
use mesh_ebpf_types::{Address, Connection, ConnectionKey, ConnectionKind, USED_SHIFT, Vni};
use mesh_model::fnv::fnv1a;

/// Clients are told apart by so many hashes.
const CLIENTS: usize = 256;
/// Ages are told apart exactly below [`EXACT`], and above by their magnitude.
const AGES: usize = 64;
const EXACT: u16 = 32;

/// The network whose services an entry's flow is of.
pub fn network(key: &ConnectionKey, value: &Connection) -> Vni {
    if value.kind == ConnectionKind::Forward as u8 && value.node != [0; 4] {
        return Vni(value.node);
    }
    let [v0, v1, v2] = key.vni;
    Vni([0, v0, v1, v2])
}

/// What one network has, by client and age.
#[derive(Debug)]
struct Held {
    entries: Vec<[u32; AGES]>,
}

/// The entries that a network is to forget: those of the clients that have most, the longest unused
/// first.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    /// For each client: all that are older go, and so many that are of this age.
    clients: Vec<(usize, u32)>,
}

/// Chooses entries. All entries are to be counted first, and then shown again.
#[derive(Debug)]
pub struct Chooser {
    now: u16,
    held: BTreeMap<Vni, Held>,
}

impl Chooser {
    /// For networks that have to forget some. `now` is the time as [`Connection::used`] has it.
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

    /// What is to be forgotten, of each network so many entries.
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

/// Which entries are to be forgotten.
#[derive(Debug)]
pub struct Choice {
    now: u16,
    cuts: BTreeMap<Vni, Cut>,
}

impl Choice {
    /// Whether an entry is one of them.
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

/// The time as [`Connection::used`] has it.
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

/// How long ago an entry was used, in one of [`AGES`] classes.
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

    /// Client and time of what is forgotten of network 1.
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
    fn the_largest_client_forgets_what_was_unused_for_longest() {
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
    fn time_goes_round() {
        let value = |used| Connection { used, ..Connection::default() };
        assert_eq!(age(3, &value(65_535)), 4);
        assert!(age(3, &value(4)) > age(3, &value(60_000)));
    }
}
