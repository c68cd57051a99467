//! The leases of one network as read, in the terms of `mesh-ipam`, and the operations to change
//! them.

use std::collections::BTreeSet;

use mesh_ipam::{LeaseChange, Leases};
use mesh_model::{Lease, LeaseState, Network, NetworkId, NodeId, Prefix};
use mesh_store::{Compare, Op, Txn};

use crate::core::Core;
use crate::keys;
use crate::records::{Fence, RecordError, Versioned, put};

/// A network and all its leases at one revision.
pub(super) struct LeaseSet {
    network: Versioned<Network>,
    leases: Vec<Lease>,
    fence: Fence,
}

impl LeaseSet {
    /// Reads them; `None` if the network does not exist.
    pub(super) async fn read(core: &Core, network: &NetworkId) -> Result<Option<Self>, RecordError> {
        let fence = keys::lease_fence(network);
        let mut read = core
            .records
            .read([
                Op::get(keys::network(network)),
                Op::get_range(keys::leases_of(network)),
                Op::get(fence.clone()),
            ])
            .await?;
        let Some(network) = read.one()? else { return Ok(None) };
        Ok(Some(Self { network, leases: read.leases()?, fence: read.fence(fence) }))
    }

    pub(super) fn network(&self) -> &Network {
        &self.network.value
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Lease> {
        self.leases.iter()
    }

    /// Returns the lease of exactly this prefix.
    pub(super) fn find(&self, prefix: &Prefix) -> Option<&Lease> {
        self.leases.iter().find(|lease| lease.prefix == *prefix)
    }

    /// Returns the nodes that hold a lease, except one.
    pub(super) fn holders_except(&self, node: &NodeId) -> Vec<NodeId> {
        let holders: BTreeSet<&NodeId> = self.leases.iter().map(|lease| &lease.node).collect();
        holders.into_iter().filter(|holder| *holder != node).cloned().collect()
    }

    /// Returns the leases of the subnet.
    pub(super) fn leases_in(&self, subnet: &Prefix) -> Leases<NodeId> {
        self.leases.iter().filter(|lease| subnet.covers(&lease.prefix)).map(Into::into).collect()
    }

    /// Returns the leases of the subnet that contains a prefix.
    pub(super) fn leases_around(&self, prefix: &Prefix) -> Leases<NodeId> {
        let subnet = self.network().subnets.iter().find(|subnet| subnet.subnet.covers(prefix));
        subnet.map(|subnet| self.leases_in(&subnet.subnet)).unwrap_or_default()
    }

    /// Writes a change, if the network and its leases are unchanged since they were read, and
    /// `member`, if given, is still a node.
    pub(super) async fn commit(
        &self,
        core: &Core,
        member: Option<&NodeId>,
        ops: impl IntoIterator<Item = Op>,
    ) -> Result<Option<u64>, RecordError> {
        let network = keys::network(&self.network().id);
        let compares = [Compare::mod_revision(network, self.network.revision), self.fence.unchanged()];
        let member = member.map(|node| Compare::present(keys::node(node)));
        let txn = Txn::when(compares.into_iter().chain(member)).then([self.fence.advance()]).then(ops);
        Ok(core.records.commit(txn).await?.map(|revision| revision.0))
    }
}

/// Returns whether the lease waits for this node's answer.
pub(super) fn is_pending_from(lease: &Lease, node: &NodeId) -> bool {
    matches!(&lease.state, LeaseState::Pending { from, .. } if from == node)
}

/// Returns the store operation of a change.
pub(super) fn change_op(network: &NetworkId, change: LeaseChange<NodeId>) -> Op {
    match change {
        LeaseChange::Put(lease) => put(keys::lease(network, &lease.prefix), &Lease::of(network, lease)),
        LeaseChange::Remove(prefix) => Op::delete(keys::lease(network, &prefix)),
    }
}
