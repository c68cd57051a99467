//! A node's pool against a naive model that keeps every address in a list.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_ipam::{
    Delays, Lease, LeaseChange, LeaseState, Leases, LocalPool, LocalState, Prefix, SubnetLayout, SubnetSpec,
};
use proptest::prelude::*;

const ME: u8 = 0;

#[derive(Debug, Clone, Copy)]
enum Step {
    Assign,
    AssignStatic(u8),
    Release(u8),
    Lease { at: u8, len: u8, node: u8, from: Option<u8> },
    Unlease(u8),
    Cede(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Assign),
        2 => any::<u8>().prop_map(Step::AssignStatic),
        5 => any::<u8>().prop_map(Step::Release),
        4 => (any::<u8>(), 0u8..=5, 0u8..3, prop::option::weighted(0.2, 0u8..3))
            .prop_map(|(at, len, node, from)| Step::Lease { at, len, node, from }),
        1 => any::<u8>().prop_map(Step::Unlease),
        1 => any::<u8>().prop_map(Step::Cede),
        1 => Just(Step::Restart),
    ]
}

/// Every address of the subnet, one by one.
struct Naive {
    layout: SubnetLayout,
    leases: BTreeMap<Prefix, Lease<u8>>,
    in_use: BTreeMap<IpAddr, u32>,
    /// When each address that was used since it was leased came back.
    released: BTreeMap<IpAddr, u64>,
    ceded: BTreeMap<IpAddr, u64>,
}

impl Naive {
    fn deciding(&self, address: IpAddr) -> Option<&Lease<u8>> {
        let around = self.leases.values().filter(|lease| lease.prefix.contains(address));
        around.max_by_key(|lease| lease.prefix.len())
    }

    fn owns(&self, address: IpAddr) -> bool {
        let mine = |lease: &Lease<u8>| lease.is_active() && lease.node == ME;
        self.deciding(address).is_some_and(mine) && !self.ceded.contains_key(&address)
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let subnet = self.layout.subnet();
        (0..subnet.size()).filter_map(move |index| subnet.nth(index))
    }

    /// The address to assign next: never used, first; or else released longest ago.
    fn next(&self) -> Option<IpAddr> {
        let free = |address: &IpAddr| {
            self.owns(*address) && self.layout.is_assignable(*address) && !self.in_use.contains_key(address)
        };
        self.addresses().filter(free).min_by_key(|address| (self.released.get(address).copied(), *address))
    }

    fn free_count(&self) -> usize {
        let free = |address: &IpAddr| {
            self.owns(*address) && self.layout.is_assignable(*address) && !self.in_use.contains_key(address)
        };
        self.addresses().filter(free).count()
    }

    /// What has left the node is forgotten, but for what may be refused to a borrower.
    fn forget(&mut self) {
        let may_return = |address: &IpAddr| {
            self.deciding(*address)
                .is_some_and(|l| matches!(l.state, LeaseState::Pending { from, .. } if from == ME))
        };
        let keep = |address: &IpAddr| self.owns(*address) || may_return(address);
        let gone: Vec<IpAddr> = self.released.keys().copied().filter(|address| !keep(address)).collect();
        for address in gone {
            self.released.remove(&address);
        }
    }
}

fn layouts() -> impl Strategy<Value = SubnetLayout> {
    let cases = vec![("10.9.0.0/27", None), ("10.9.0.0/27", Some("10.9.0.8/29")), ("fd09::/123", None)];
    prop::sample::select(cases).prop_map(|(subnet, ip_range)| {
        let ip_range: Option<Prefix> = ip_range.map(|range| range.parse().unwrap());
        SubnetLayout::new(SubnetSpec { ip_range, ..SubnetSpec::new(subnet.parse().unwrap()) }).unwrap()
    })
}

proptest! {
    #[test]
    fn a_pool_gives_what_the_naive_model_gives(
        layout in layouts(),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut pool: LocalPool<u8, u32> = LocalPool::new(layout.clone(), ME, Delays::default());
        let mut naive = Naive {
            layout: layout.clone(),
            leases: BTreeMap::new(),
            in_use: BTreeMap::new(),
            released: BTreeMap::new(),
            ceded: BTreeMap::new(),
        };
        let subnet = layout.subnet();
        let at = |index: u8| subnet.nth(u128::from(index) % subnet.size()).unwrap();
        let mut revision = 0;
        for (now, step) in (0u64..).zip(steps) {
            let endpoint = u32::try_from(now).unwrap();
            match step {
                Step::Assign => {
                    let expected = naive.next();
                    prop_assert_eq!(pool.assign(endpoint).ok(), expected);
                    if let Some(address) = expected {
                        naive.released.remove(&address);
                        naive.in_use.insert(address, endpoint);
                    }
                }
                Step::AssignStatic(index) => {
                    let address = at(index);
                    let can = naive.owns(address)
                        && layout.reserved(address).is_none()
                        && !naive.in_use.contains_key(&address);
                    prop_assert_eq!(pool.assign_static(address, endpoint).is_ok(), can);
                    if can {
                        naive.released.remove(&address);
                        naive.in_use.insert(address, endpoint);
                    }
                }
                Step::Release(index) => {
                    let used: Vec<IpAddr> = naive.in_use.keys().copied().collect();
                    let address = if used.is_empty() { at(index) } else { used[usize::from(index) % used.len()] };
                    let by = naive.in_use.remove(&address);
                    prop_assert_eq!(pool.release(address, now), by);
                    if by.is_some() {
                        naive.released.insert(address, now);
                        naive.forget();
                    }
                }
                Step::Lease { at: index, len, node, from } => {
                    let prefix = Prefix::new(at(index), subnet.len() + len).unwrap();
                    let state = from.map_or(LeaseState::Active, |from| LeaseState::Pending { from, replaced: false });
                    let lease = Lease { prefix, node, state, revision: 0 };
                    revision += 1;
                    prop_assert!(pool.apply(revision, &[LeaseChange::Put(lease.clone())], now));
                    naive.leases.insert(prefix, Lease { revision, ..lease });
                    naive.ceded.retain(|_, at| *at > revision);
                    naive.forget();
                }
                Step::Unlease(index) => {
                    let held: Vec<Prefix> = naive.leases.keys().copied().collect();
                    if !held.is_empty() {
                        let prefix = held[usize::from(index) % held.len()];
                        revision += 1;
                        prop_assert!(pool.apply(revision, &[LeaseChange::Remove(prefix)], now));
                        naive.leases.remove(&prefix);
                        naive.ceded.retain(|_, at| *at > revision);
                        naive.forget();
                    }
                }
                Step::Cede(index) => {
                    let address = at(index);
                    let used = naive.in_use.contains_key(&address);
                    prop_assert_eq!(pool.cede(address, revision + 1).is_err(), used);
                    if !used {
                        naive.ceded.insert(address, revision + 1);
                        naive.forget();
                    }
                }
                Step::Restart => {
                    let json = serde_json::to_string(&pool.state()).unwrap();
                    let state: LocalState = serde_json::from_str(&json).unwrap();
                    let leases: Leases<u8> = naive.leases.values().cloned().collect();
                    let in_use = naive.in_use.clone();
                    let leases = (revision, leases);
                    pool = LocalPool::restore(layout.clone(), ME, Delays::default(), state, in_use, leases, now);
                }
            }
            prop_assert_eq!(pool.free(), naive.free_count() as u128);
            prop_assert_eq!(pool.in_use(), &naive.in_use);
        }
    }
}
