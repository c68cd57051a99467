//! Which of the cluster's addresses this node allocates: one pool for each subnet that it has
//! leases in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_ipam::prefix::Family;
use mesh_ipam::{Delays, Leases, LocalPool, LocalState, NeedBlock, StaticError, SubnetLayout, SubnetSpec};
use mesh_model::{Endpoint, EndpointId, Network, NetworkId, NodeId, Prefix, Subnet};
use serde::{Deserialize, Serialize};

use crate::view::ClusterView;

type Pool = LocalPool<NodeId, EndpointId>;
type Key = (NetworkId, Prefix);

/// The pools of a node, by network and subnet.
#[derive(Debug)]
pub struct AddressPools {
    node: NodeId,
    delays: Delays,
    pools: BTreeMap<Key, Pool>,
    changed: bool,
}

/// What of the pools outlives a restart, beside endpoints and leases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPools {
    /// One entry for each subnet.
    pub subnets: Vec<SavedPool>,
}

/// What of one pool outlives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPool {
    network: NetworkId,
    subnet: Prefix,
    state: LocalState,
}

/// A lease that this node no longer uses: it is reported to the manager until it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasedLease {
    /// Of which network.
    pub network: NetworkId,
    /// Which addresses.
    pub prefix: Prefix,
    /// The revision of the lease that is meant.
    pub revision: u64,
}

impl AddressPools {
    /// The pools as they were before a restart.
    pub fn restore(
        node: NodeId,
        delays: Delays,
        view: &ClusterView,
        endpoints: &BTreeMap<EndpointId, Endpoint>,
        saved: SavedPools,
        now: u64,
    ) -> Self {
        let mut saved: BTreeMap<Key, LocalState> =
            saved.subnets.into_iter().map(|pool| ((pool.network, pool.subnet), pool.state)).collect();
        let mut pools = BTreeMap::new();
        for network in view.networks.values() {
            for layout in layouts(network) {
                let key = (network.id.clone(), layout.subnet());
                let state = saved.remove(&key).unwrap_or_default();
                let in_use = in_use(endpoints, &key);
                let leases = (view.revision, leases(view, &key));
                let pool = Pool::restore(layout, node.clone(), delays, state, in_use, leases, now);
                pools.insert(key, pool);
            }
        }
        Self { node, delays, pools, changed: false }
    }

    /// Takes the view's leases: of all networks, or of those that a delta changed.
    pub fn update(&mut self, view: &ClusterView, changed: Option<&BTreeSet<NetworkId>>, now: u64) {
        self.pools
            .retain(|(network, _), pool| view.networks.contains_key(network) || !pool.in_use().is_empty());
        let concerned = |network: &NetworkId| changed.is_none_or(|changed| changed.contains(network));
        for network in view.networks.values().filter(|network| concerned(&network.id)) {
            for layout in layouts(network) {
                let key = (network.id.clone(), layout.subnet());
                let leases = leases(view, &key);
                let fresh = || Pool::new(layout, self.node.clone(), self.delays);
                self.pools.entry(key).or_insert_with(fresh).replace(view.revision, leases, now);
            }
        }
        self.changed = true;
    }

    /// Forgets the revisions that the pools know, since the store was restored from a backup and
    /// starts its revisions again.
    pub fn rebuild(&mut self, view: &ClusterView, endpoints: &BTreeMap<EndpointId, Endpoint>, now: u64) {
        *self = Self::restore(self.node.clone(), self.delays, view, endpoints, self.saved(), now);
        self.changed = true;
    }

    /// Chooses an address of the family for an endpoint. `early` allows one that was released a
    /// moment ago.
    pub fn assign(
        &mut self,
        network: &NetworkId,
        family: Family,
        by: &EndpointId,
        early: bool,
        now: u64,
    ) -> Option<IpAddr> {
        let assign = |pool: &mut Pool| -> Result<IpAddr, NeedBlock> { pool.assign(by.clone()) };
        let rested = self.of(network, family).find(|pool| pool.free() > 0 && !pool.would_reuse_early(now));
        let assigned = match rested {
            Some(pool) => assign(pool).ok(),
            None if early => self.of(network, family).find_map(|pool| assign(pool).ok()),
            None => None,
        };
        self.changed |= assigned.is_some();
        assigned
    }

    /// Gives an endpoint exactly this address. `None` when the address is in no subnet that is
    /// known here.
    pub fn assign_static(
        &mut self,
        network: &NetworkId,
        address: IpAddr,
        by: &EndpointId,
    ) -> Option<Result<(), StaticError<EndpointId>>> {
        let pool = self.around(network, address)?;
        let result = pool.assign_static(address, by.clone());
        self.changed |= result.is_ok();
        Some(result)
    }

    /// Takes an endpoint's address back.
    pub fn release(&mut self, network: &NetworkId, address: IpAddr, now: u64) {
        if let Some(pool) = self.around(network, address) {
            pool.release(address, now);
            self.changed = true;
        }
    }

    /// How many addresses of the family can be assigned without another lease.
    pub fn free(&mut self, network: &NetworkId, family: Family) -> u128 {
        self.of(network, family).map(|pool| pool.free()).sum()
    }

    /// The subnets that should lease another block before it is needed.
    pub fn low_water(&self, now: u64) -> BTreeSet<(NetworkId, Family)> {
        self.pools
            .iter()
            .filter(|(_, pool)| pool.low_water(now))
            .map(|((network, subnet), _)| (network.clone(), subnet.family()))
            .collect()
    }

    /// Stops using blocks that were idle for long. Save the state before you report them to a
    /// manager.
    pub fn release_idle(&mut self, now: u64) {
        for pool in self.pools.values_mut() {
            for prefix in pool.idle_blocks(now) {
                self.changed |= pool.give_back(&prefix).is_some();
            }
        }
    }

    /// The leases that the manager is yet to delete.
    pub fn released_leases(&self) -> Vec<ReleasedLease> {
        let of_pool = |((network, _), pool): (&Key, &Pool)| -> Vec<ReleasedLease> {
            let each = pool.giving_back().iter();
            each.map(|(&prefix, &revision)| ReleasedLease { network: network.clone(), prefix, revision })
                .collect()
        };
        self.pools.iter().flat_map(of_pool).collect()
    }

    /// Answers another node's borrow: whether it may have the address. An acceptance has to be
    /// saved before it is sent.
    pub fn cede(&mut self, network: &NetworkId, address: IpAddr, revision: u64) -> bool {
        let Some(pool) = self.around(network, address) else {
            // We hold nothing around it, so that we cannot be using it.
            return true;
        };
        let accepted = pool.cede(address, revision).is_ok();
        self.changed |= accepted;
        accepted
    }

    /// What to save, when something has changed since this was last asked.
    pub fn take_changed(&mut self) -> Option<SavedPools> {
        std::mem::take(&mut self.changed).then(|| self.saved())
    }

    /// Counts as changed: what was taken to be saved has not been.
    pub fn touch(&mut self) {
        self.changed = true;
    }

    /// What to save.
    pub fn saved(&self) -> SavedPools {
        let subnets = self.pools.iter().map(|((network, subnet), pool)| SavedPool {
            network: network.clone(),
            subnet: *subnet,
            state: pool.state(),
        });
        SavedPools { subnets: subnets.collect() }
    }

    fn of(&mut self, network: &NetworkId, family: Family) -> impl Iterator<Item = &mut Pool> {
        self.pools
            .iter_mut()
            .filter(move |((of, subnet), _)| of == network && subnet.family() == family)
            .map(|(_, pool)| pool)
    }

    fn around(&mut self, network: &NetworkId, address: IpAddr) -> Option<&mut Pool> {
        self.of(network, Family::of(address)).find(|pool| pool.layout().subnet().contains(address))
    }
}

/// The families that an endpoint of the network gets an address of.
pub fn families(network: &Network) -> BTreeSet<Family> {
    network.subnets.iter().map(|subnet| subnet.subnet.family()).collect()
}

/// The subnets' layouts. A manager that sends a subnet which cannot be laid out has a version with
/// other rules. This node assigns no addresses of such a subnet, since the manager may reserve
/// them.
fn layouts(network: &Network) -> impl Iterator<Item = SubnetLayout> {
    let layout = |subnet: &Subnet| {
        SubnetLayout::new(SubnetSpec {
            subnet: subnet.subnet,
            gateway: Some(subnet.gateway),
            ip_range: subnet.ip_range,
            aux: subnet.aux.clone(),
        })
    };
    network.subnets.iter().filter_map(move |subnet| match layout(subnet) {
        Ok(layout) => Some(layout),
        Err(error) => {
            tracing::warn!(network = %network.name, %error, "a subnet is not usable here");
            None
        }
    })
}

fn leases(view: &ClusterView, (network, subnet): &Key) -> Leases<NodeId> {
    let inside = view.leases_of(network).filter(|lease| subnet.covers(&lease.prefix));
    inside.map(Into::into).collect()
}

fn in_use(
    endpoints: &BTreeMap<EndpointId, Endpoint>,
    (network, subnet): &Key,
) -> BTreeMap<IpAddr, EndpointId> {
    endpoints
        .values()
        .filter(|endpoint| endpoint.network == *network)
        .flat_map(|endpoint| endpoint.addresses().map(|address| (address, endpoint.id.clone())))
        .filter(|(address, _)| subnet.contains(*address))
        .collect()
}
