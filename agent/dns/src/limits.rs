//! How much of the server one client, and one network, may use.

use std::{collections::HashMap, hash::Hash, net::IpAddr, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};

/// Most questions of one client that wait for an answer from outside.
const PER_CLIENT: usize = 64;
/// Most questions of all clients, each of which holds some sockets.
const TOTAL: usize = 1024;
/// As many of them are kept for clients with less than [`FEW`], and as many again for networks with
/// less than [`FEW_OF_NETWORK`].
const RESERVE: usize = 256;
const FEW: usize = 4;
const FEW_OF_NETWORK: usize = 32;

/// Most TCP connections of one client, and of all.
const CONNECTIONS_PER_CLIENT: usize = 16;
const CONNECTIONS: usize = 512;
/// As many of them are kept for networks with less than [`FEW_CONNECTIONS`].
const CONNECTIONS_RESERVE: usize = 128;
const FEW_CONNECTIONS: usize = 16;

/// Counts the questions that wait for an answer from outside.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    by_client: HashMap<IpAddr, usize>,
    by_network: HashMap<String, usize>,
}

/// Permission to wait for one answer, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    waiting: Arc<Waiting>,
    network: String,
    client: IpAddr,
}

impl Waiting {
    /// Returns a permit for one more question of a client to a network's server, or none.
    pub(crate) fn admit(self: &Arc<Self>, network: &str, client: IpAddr) -> Option<Permit> {
        let mut counts = self.counts.lock();
        let total: usize = counts.by_network.values().sum();
        let own = counts.by_client.get(&client).copied().unwrap_or_default();
        let of_network = counts.by_network.get(network).copied().unwrap_or_default();
        let limit = if of_network < FEW_OF_NETWORK {
            TOTAL
        } else if own < FEW {
            TOTAL - RESERVE
        } else {
            TOTAL - 2 * RESERVE
        };
        if own >= PER_CLIENT || total >= limit {
            return None;
        }
        counts.by_client.insert(client, own + 1);
        counts.by_network.insert(network.to_owned(), of_network + 1);
        Some(Permit { waiting: Arc::clone(self), network: network.to_owned(), client })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.waiting.counts.lock();
        subtract(&mut counts.by_client, &self.client);
        subtract(&mut counts.by_network, &self.network);
    }
}

/// Counts one less, and forgets a count of 0.
fn subtract<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The TCP connections that are open.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    state: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    network: String,
    client: IpAddr,
    /// Since when no answer is owed; `None` while one is.
    idle: Option<Instant>,
    close: Arc<Notify>,
}

/// A place among them. Dropped, it is free.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Arc<Connections>,
    number: u64,
    close: Arc<Notify>,
}

impl Connections {
    /// Returns a place for one more connection of a client to a network's server. If there is none,
    /// an idle connection is closed: of the client itself if it has its share; of its own network
    /// if that has its share; else of the client with the most connections. `None` if no such
    /// connection is idle.
    pub(crate) fn open(self: &Arc<Self>, network: &str, client: IpAddr) -> Option<Place> {
        let mut state = self.lock();
        let own = state.count(|one| one.client == client);
        let of_network = state.count(|one| one.network == network);
        let total = state.connections.len();
        if own >= CONNECTIONS_PER_CLIENT {
            state.close_idle(|one| one.client == client)?;
        } else if of_network >= FEW_CONNECTIONS && total >= CONNECTIONS - CONNECTIONS_RESERVE {
            state.close_idle(|one| one.network == network)?;
        } else if total >= CONNECTIONS {
            let largest = state.largest().filter(|(_, count)| *count > own + 1);
            let of_largest = largest.and_then(|(largest, _)| state.close_idle(|one| one.client == largest));
            of_largest.or_else(|| state.close_idle(|_| true))?;
        }
        let close = Arc::new(Notify::new());
        let number = state.next;
        state.next += 1;
        let connection = Connection {
            network: network.to_owned(),
            client,
            idle: Some(Instant::now()),
            close: Arc::clone(&close),
        };
        state.connections.insert(number, connection);
        Some(Place { connections: Arc::clone(self), number, close })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.state.lock()
    }
}

impl Open {
    fn count(&self, selects: impl Fn(&Connection) -> bool) -> usize {
        self.connections.values().filter(|connection| selects(connection)).count()
    }

    /// The client with the most connections, and how many it has.
    fn largest(&self) -> Option<(IpAddr, usize)> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for connection in self.connections.values() {
            *counts.entry(connection.client).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count)
    }

    /// Closes the selected connection that has been idle for longest; `None` if none is idle.
    fn close_idle(&mut self, selects: impl Fn(&Connection) -> bool) -> Option<()> {
        let selected = self.connections.iter().filter(|(_, one)| selects(one));
        let idle = selected.filter_map(|(number, one)| Some((one.idle?, *number)));
        let (_, number) = idle.min()?;
        self.connections.remove(&number)?.close.notify_one();
        Some(())
    }
}

impl Place {
    /// Notes whether an answer is owed.
    pub(crate) fn set_idle(&self, is_idle: bool) {
        if let Some(connection) = self.connections.lock().connections.get_mut(&self.number)
            && connection.idle.is_some() != is_idle
        {
            connection.idle = is_idle.then(Instant::now);
        }
    }

    /// Waits until another connection needs the place.
    pub(crate) async fn taken(&self) {
        self.close.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().connections.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    /// Permits until there is none.
    fn all(waiting: &Arc<Waiting>, network: &str, clients: std::ops::Range<u8>) -> Vec<Permit> {
        let of_client = |n| std::iter::from_fn(move || waiting.admit(network, client(n)));
        clients.flat_map(of_client).collect()
    }

    #[test]
    fn neither_one_client_nor_one_network_takes_the_room_of_others() {
        let waiting = Arc::new(Waiting::default());
        assert_eq!(all(&waiting, "red", 1..2).len(), PER_CLIENT);
        let greedy = all(&waiting, "red", 0..8);
        assert_eq!(greedy.len(), TOTAL - 2 * RESERVE);
        let modest = all(&waiting, "red", 8..250);
        assert_eq!(greedy.len() + modest.len(), TOTAL - RESERVE);
        let [blue, green] = ["blue", "green"].map(|network| all(&waiting, network, 250..255));
        assert_eq!((blue.len(), green.len()), (FEW_OF_NETWORK, FEW_OF_NETWORK));
        drop((greedy, modest, blue, green));
        let counts = waiting.counts.lock();
        assert!(counts.by_client.is_empty() && counts.by_network.is_empty());
    }

    #[tokio::test]
    async fn a_clients_idle_connection_makes_room_for_its_next_and_a_busy_one_does_not() {
        let connections = Arc::new(Connections::default());
        let open = || connections.open("red", client(1));
        let places: Vec<Place> = (0..CONNECTIONS_PER_CLIENT).map(|_| open().unwrap()).collect();
        places[0].set_idle(false);
        let next = open().unwrap();
        places[1].taken().await;
        for place in places.iter().skip(2).chain([&next]) {
            place.set_idle(false);
        }
        assert!(open().is_none());
        assert!(connections.open("red", client(2)).is_some());
    }

    #[test]
    fn a_network_whose_connections_are_all_busy_leaves_room_for_others() {
        let connections = Arc::new(Connections::default());
        let busy = |network: &str, n: u8| {
            let place = connections.open(network, client(n))?;
            place.set_idle(false);
            Some(place)
        };
        let red: Vec<Place> = (0..=255).cycle().map_while(|n| busy("red", n)).collect();
        assert_eq!(red.len(), CONNECTIONS - CONNECTIONS_RESERVE);
        let blue: Vec<Place> = (0..=255).cycle().map_while(|n| busy("blue", n)).collect();
        assert_eq!(blue.len(), FEW_CONNECTIONS);
    }

    #[tokio::test]
    async fn if_all_places_are_taken_the_client_with_the_most_connections_loses_one() {
        let connections = Arc::new(Connections::default());
        let places: Vec<Place> = (0..=255)
            .cycle()
            .take(CONNECTIONS)
            .map(|n: u8| connections.open(&format!("net{n}"), client(if n < 10 { 1 } else { n })).unwrap())
            .collect();
        let _new = connections.open("red", client(3)).unwrap();
        places[0].taken().await;
    }
}
