//! Which connections a manager holds, and which of them it closes for others.
//!
//! A connection without a member's certificate can only be that of a host which joins. Such
//! connections are few, live for a moment, and take no more than their share of the process's
//! descriptors: the rest is the members'. When one too many comes, the oldest of the address that
//! has the most is closed, so that one address cannot keep others out. Of one node only the newest
//! connections are held.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_model::NodeId;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::limits;

/// How many connections are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// In all, without a member's certificate; handshakes included.
    pub(crate) anonymous: usize,
    /// Of them, from one address.
    pub(crate) per_address: usize,
    /// Of one node.
    pub(crate) per_node: usize,
}

impl Bounds {
    /// The bounds for a process that may have so many descriptors: most of them are kept for
    /// members.
    pub(crate) fn of_descriptors(descriptors: u64) -> Self {
        let share = usize::try_from(descriptors / 4).unwrap_or(usize::MAX);
        Self {
            anonymous: share.min(limits::MAX_ANONYMOUS),
            per_address: (share / 2).clamp(1, limits::MAX_ANONYMOUS_PER_ADDRESS),
            per_node: limits::MAX_PER_NODE,
        }
    }
}

/// The connections that are held.
#[derive(Debug)]
pub(crate) struct Connections {
    bounds: Bounds,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// In the order in which they came.
    anonymous: BTreeMap<u64, (IpAddr, oneshot::Sender<()>)>,
    members: BTreeMap<NodeId, VecDeque<(u64, oneshot::Sender<()>)>>,
}

/// A place among the connections; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Arc<Connections>,
    number: u64,
    node: Option<NodeId>,
    /// Ends when the connection is to be closed.
    closed: oneshot::Receiver<()>,
}

impl Connections {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, held: Mutex::default() })
    }

    /// Takes a place for a connection from an address, whose owner has proved nothing yet. May
    /// close another one.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Place {
        let mut held = self.lock();
        let number = held.number();
        let (close, closed) = oneshot::channel();
        held.anonymous.insert(number, (address, close));
        if held.of_address(address) > self.bounds.per_address {
            held.close_oldest_of(address);
        } else if held.anonymous.len() > self.bounds.anonymous {
            let busiest = held.busiest();
            held.close_oldest_of(busiest.unwrap_or(address));
        }
        Place { connections: self.clone(), number, node: None, closed }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock()
    }
}

impl Held {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn of_address(&self, address: IpAddr) -> usize {
        self.anonymous.values().filter(|(of, _)| *of == address).count()
    }

    /// The address with the most connections.
    fn busiest(&self) -> Option<IpAddr> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (address, _) in self.anonymous.values() {
            *counts.entry(*address).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(address, _)| address)
    }

    fn close_oldest_of(&mut self, address: IpAddr) {
        let oldest = self.anonymous.iter().find(|(_, (of, _))| *of == address).map(|(number, _)| *number);
        // Whose place it was sees that the sender is gone.
        drop(oldest.and_then(|number| self.anonymous.remove(&number)));
    }
}

impl Place {
    /// The owner has proved to be a node: the place is one of that node's, whose oldest connection
    /// may be closed for it.
    pub(crate) fn belongs_to(&mut self, node: &NodeId) {
        let mut held = self.connections.lock();
        // One that was chosen to be closed meanwhile is closed.
        let Some((_, close)) = held.anonymous.remove(&self.number) else { return };
        self.node = Some(node.clone());
        let of_node = held.members.entry(node.clone()).or_default();
        of_node.push_back((self.number, close));
        if of_node.len() > self.connections.bounds.per_node {
            of_node.pop_front();
        }
    }

    /// Whether the connection is a member's.
    pub(crate) fn is_members(&self) -> bool {
        self.node.is_some()
    }

    /// Ends when the connection is to be closed.
    pub(crate) fn closed(&mut self) -> &mut oneshot::Receiver<()> {
        &mut self.closed
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.connections.lock();
        let Some(node) = &self.node else {
            held.anonymous.remove(&self.number);
            return;
        };
        if let Some(of_node) = held.members.get_mut(node) {
            of_node.retain(|(number, _)| *number != self.number);
            if of_node.is_empty() {
                held.members.remove(node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections() -> Arc<Connections> {
        Connections::new(Bounds { anonymous: 6, per_address: 4, per_node: 2 })
    }

    fn is_closed(place: &mut Place) -> bool {
        !matches!(place.closed().try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    #[test]
    fn one_address_loses_its_oldest_connection_and_keeps_nobody_out() {
        let connections = connections();
        let [loud, quiet]: [IpAddr; 2] = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        let mut first = connections.admit(quiet);
        let mut places: Vec<Place> = (0..100).map(|_| connections.admit(loud)).collect();
        let open = places.iter_mut().filter_map(|place| (!is_closed(place)).then_some(place.number)).count();
        assert_eq!(open, 4);
        assert!(!is_closed(&mut first) && !is_closed(&mut places[99]) && is_closed(&mut places[95]));
        let mut second = connections.admit(quiet);
        let mut third = connections.admit(quiet);
        assert!(
            ![&mut first, &mut second, &mut third].into_iter().any(is_closed),
            "the busiest address gives way"
        );
    }

    #[test]
    fn members_have_places_of_their_own_and_of_one_node_the_newest_stay() {
        let connections = connections();
        let node: NodeId = format!("{:024x}", 7).parse().unwrap();
        let address: IpAddr = [192, 0, 2, 1].into();
        let mut members: Vec<Place> = (0..3).map(|_| connections.admit(address)).collect();
        for place in &mut members {
            place.belongs_to(&node);
        }
        assert_eq!(members.iter_mut().map(is_closed).collect::<Vec<_>>(), [true, false, false]);
        let flood: Vec<Place> = (0..50).map(|_| connections.admit(address)).collect();
        assert!(!is_closed(&mut members[2]));
        drop((members, flood));
        let held = connections.lock();
        assert!(held.anonymous.is_empty() && held.members.is_empty());
    }

    #[test]
    fn a_process_with_few_descriptors_keeps_most_of_them_for_members() {
        assert!(Bounds::of_descriptors(1024).anonymous <= 256);
        assert_eq!(Bounds::of_descriptors(1 << 20).anonymous, limits::MAX_ANONYMOUS);
        assert!(Bounds::of_descriptors(8).per_address >= 1);
    }
}
