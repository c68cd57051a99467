//! The connections that a manager holds, and which of them it closes for others.
//!
//! A connection without a member's certificate can only belong to a joining host. Such connections
//! are few and short. They get a limited share of the process's descriptors: the rest is for
//! members. When one too many arrives, the oldest connection of the address with most connections
//! is closed, so that one address cannot exclude others. Of one node only the newest connections
//! are held.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_model::NodeId;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::limits;

/// The maximum numbers of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Without a member's certificate, including those in their handshake.
    pub(crate) anonymous: usize,
    /// Of these, from one address.
    pub(crate) per_address: usize,
    /// Of one node.
    pub(crate) per_node: usize,
}

impl Bounds {
    /// Returns the bounds for a process with this many descriptors: most of them are for members.
    pub(crate) fn of_descriptors(descriptors: u64) -> Self {
        let share = usize::try_from(descriptors / 4).unwrap_or(usize::MAX);
        Self {
            anonymous: share.min(limits::MAX_ANONYMOUS),
            per_address: (share / 2).clamp(1, limits::MAX_ANONYMOUS_PER_ADDRESS),
            per_node: limits::MAX_PER_NODE,
        }
    }
}

/// The current connections.
#[derive(Debug)]
pub(crate) struct Connections {
    bounds: Bounds,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// In order of arrival.
    anonymous: BTreeMap<u64, (IpAddr, oneshot::Sender<()>)>,
    members: BTreeMap<NodeId, VecDeque<(u64, oneshot::Sender<()>)>>,
}

/// A slot for a connection; released when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Arc<Connections>,
    number: u64,
    node: Option<NodeId>,
    /// Resolves when the connection must be closed.
    closed: oneshot::Receiver<()>,
}

impl Connections {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, held: Mutex::default() })
    }

    /// Takes a slot for a connection from an address that has not authenticated yet. May close
    /// another connection.
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

    /// Returns the address with the most connections.
    fn busiest(&self) -> Option<IpAddr> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (address, _) in self.anonymous.values() {
            *counts.entry(*address).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(address, _)| address)
    }

    fn close_oldest_of(&mut self, address: IpAddr) {
        let oldest = self.anonymous.iter().find(|(_, (of, _))| *of == address).map(|(number, _)| *number);
        // The owner of the slot sees that the sender is gone.
        drop(oldest.and_then(|number| self.anonymous.remove(&number)));
    }
}

impl Place {
    /// Records that the connection belongs to a node. The slot becomes one of that node's, whose
    /// oldest connection may be closed for it.
    pub(crate) fn belongs_to(&mut self, node: &NodeId) {
        let mut held = self.connections.lock();
        // A connection that was chosen to be closed meanwhile stays so.
        let Some((_, close)) = held.anonymous.remove(&self.number) else { return };
        self.node = Some(node.clone());
        let of_node = held.members.entry(node.clone()).or_default();
        of_node.push_back((self.number, close));
        if of_node.len() > self.connections.bounds.per_node {
            of_node.pop_front();
        }
    }

    /// Returns whether the connection belongs to a member.
    pub(crate) fn is_members(&self) -> bool {
        self.node.is_some()
    }

    /// Resolves when the connection must be closed.
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
    fn one_address_loses_its_oldest_connection_and_excludes_no_other() {
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
    fn members_have_separate_slots_and_the_newest_of_one_node_stay() {
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
