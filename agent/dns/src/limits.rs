//! How much of the server one client may use.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};

/// Most questions of one client that wait for an answer from outside.
const PER_CLIENT: usize = 64;
/// Most questions of all clients, each of which holds some sockets.
const TOTAL: usize = 1024;
/// So many of them are kept for clients that have few.
const RESERVE: usize = 256;
const FEW: usize = 4;

/// Most TCP connections of one client, and of all.
const CONNECTIONS_PER_CLIENT: usize = 16;
const CONNECTIONS: usize = 512;

/// Counts the questions that wait for an answer from outside.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    by_client: Mutex<HashMap<IpAddr, usize>>,
}

/// Leave to wait for one answer. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Permit {
    waiting: Arc<Waiting>,
    client: IpAddr,
}

impl Waiting {
    /// Leave for one more question of a client, or none.
    pub(crate) fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Permit> {
        let mut by_client = self.lock();
        let total: usize = by_client.values().sum();
        let own = by_client.get(&client).copied().unwrap_or(0);
        let limit = if own < FEW { TOTAL } else { TOTAL - RESERVE };
        if own >= PER_CLIENT || total >= limit {
            return None;
        }
        by_client.insert(client, own + 1);
        Some(Permit { waiting: Arc::clone(self), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Numbers only, each changed whole.
        self.by_client.lock()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut by_client = self.waiting.lock();
        if let Some(own) = by_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                by_client.remove(&self.client);
            }
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
    /// A place for one more connection of a client. Where there is none, the connection that has
    /// been idle for longest is closed for it: of the client itself if it has its share, else of
    /// the client that has most. `None` if none is idle.
    pub(crate) fn open(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut state = self.lock();
        let own = state.count(client);
        if own >= CONNECTIONS_PER_CLIENT {
            state.close_idle(Some(client))?;
        } else if state.connections.len() >= CONNECTIONS {
            let largest = state.largest().filter(|largest| state.count(*largest) > own + 1);
            state.close_idle(largest).or_else(|| state.close_idle(None))?;
        }
        let close = Arc::new(Notify::new());
        let number = state.next;
        state.next += 1;
        let connection = Connection { client, idle: Some(Instant::now()), close: Arc::clone(&close) };
        state.connections.insert(number, connection);
        Some(Place { connections: Arc::clone(self), number, close })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.state.lock()
    }
}

impl Open {
    fn count(&self, client: IpAddr) -> usize {
        self.connections.values().filter(|connection| connection.client == client).count()
    }

    fn largest(&self) -> Option<IpAddr> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for connection in self.connections.values() {
            *counts.entry(connection.client).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(client, _)| client)
    }

    fn close_idle(&mut self, client: Option<IpAddr>) -> Option<()> {
        let of_client =
            self.connections.iter().filter(|(_, one)| client.is_none_or(|client| one.client == client));
        let idle = of_client.filter_map(|(number, one)| Some((one.idle?, *number)));
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

    #[test]
    fn one_client_waits_for_so_many_answers_and_others_always_have_room() {
        let waiting = Arc::new(Waiting::default());
        let mut permits = Vec::new();
        for n in 0..12 {
            permits.extend(std::iter::from_fn(|| waiting.admit(client(n))));
        }
        assert_eq!(permits.len(), TOTAL - RESERVE);
        for n in 20..20 + 64 {
            permits.extend(std::iter::from_fn(|| waiting.admit(client(n))));
        }
        assert_eq!(permits.len(), TOTAL);
        drop(permits);
        assert!(waiting.lock().is_empty());
        let own: Vec<Permit> = std::iter::from_fn(|| waiting.admit(client(1))).collect();
        assert_eq!(own.len(), PER_CLIENT);
    }

    #[tokio::test]
    async fn a_clients_idle_connection_makes_room_for_its_next_and_a_busy_one_does_not() {
        let connections = Arc::new(Connections::default());
        let open = || connections.open(client(1));
        let places: Vec<Place> = (0..CONNECTIONS_PER_CLIENT).map(|_| open().unwrap()).collect();
        places[0].set_idle(false);
        let next = open().unwrap();
        places[1].taken().await;
        for place in places.iter().skip(2).chain([&next]) {
            place.set_idle(false);
        }
        assert!(open().is_none());
        assert!(connections.open(client(2)).is_some());
    }

    #[tokio::test]
    async fn where_all_places_are_taken_the_client_with_most_gives_one() {
        let connections = Arc::new(Connections::default());
        let places: Vec<Place> = (0..=255)
            .cycle()
            .take(CONNECTIONS)
            .map(|n| connections.open(client(if n < 10 { 1 } else { n })).unwrap())
            .collect();
        let _new = connections.open(client(3)).unwrap();
        places[0].taken().await;
    }
}
