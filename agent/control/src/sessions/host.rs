//! An agent's reports about its host: the routes that block subnets, and the node's record.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_model::{Node, NodeId, Role};
use mesh_proto::v1::Hello;
use mesh_store::{Compare, Txn};
use tracing::warn;

use crate::access::Caller;
use crate::core::Core;
use crate::records::{RecordError, Tries, put};
use crate::{keys, reports};

/// Largest number of faults of a host's routes that are shown.
const ROUTE_FAULTS: usize = 16;

/// Keeps networks from overlapping the routes of the node's host.
pub(super) fn follow_routes(core: &Core, caller: &Caller, routes: &[String]) {
    let is_trusted = caller.role() == Role::Manager;
    let (routes, faults) = reports::routes(routes, &core.cluster().default_addr_pools, is_trusted);
    core.set_routes(caller.id(), routes);
    let mut faults = faults.into_iter();
    // Without a fault of this number, the former one ends.
    for number in 0..ROUTE_FAULTS {
        core.faults.set(caller.id(), &format!("routes {number}"), faults.next());
    }
}

/// Writes all addresses of the node's host into its record, for the other nodes.
pub(super) async fn follow_addresses(core: &Core, caller: &Caller, addresses: &[String]) {
    let (addresses, fault) = {
        let view = core.feed.view();
        let of_others = view.nodes.values().filter(|node| node.id != *caller.id());
        let of_others: BTreeSet<IpAddr> =
            of_others.flat_map(|node| [node.data_path_addr, node.advertise_addr.ip()]).collect();
        reports::addresses(addresses, |address| {
            let subnets = view.networks.values().flat_map(|network| &network.subnets);
            of_others.contains(&address) || subnets.into_iter().any(|subnet| subnet.subnet.contains(address))
        })
    };
    core.faults.set(caller.id(), "addresses", fault);
    let followed = update(core, caller.id(), |node| node.host_addrs.clone_from(&addresses)).await;
    if let Err(error) = followed {
        warn!(node = %caller.node().name, %error, "cannot update the addresses of the node's host");
    }
}

/// Updates the node's record with version and MTU of the host.
pub(super) async fn follow_host(core: &Core, node: &Node, hello: &Hello) -> Result<(), RecordError> {
    let version = reports::version(&hello.version);
    let mtu = reports::data_path_mtu(hello.data_path_mtu);
    core.faults.set(&node.id, "version", version.as_ref().err().cloned());
    core.faults.set(&node.id, "mtu", mtu.as_ref().err().cloned());
    update(core, &node.id, |wanted| {
        match &version {
            Ok(version) => wanted.version.clone_from(version),
            // One of an earlier manager, which did not check it.
            Err(_) if reports::version(&wanted.version).is_err() => wanted.version.clear(),
            Err(_) => {}
        }
        if let Ok(mtu) = mtu {
            wanted.data_path_mtu = mtu;
        }
    })
    .await
}

/// Changes a node's record, if there is one.
async fn update(core: &Core, id: &NodeId, change: impl Fn(&mut Node)) -> Result<(), RecordError> {
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let Some(current) = core.records.node(id).await? else { return Ok(()) };
        let mut wanted = current.value.clone();
        change(&mut wanted);
        if wanted == current.value {
            return Ok(());
        }
        let unchanged = Compare::mod_revision(keys::node(id), current.revision);
        let txn = Txn::when([unchanged]).then([put(keys::node(id), &wanted)]);
        if core.records.commit(txn).await?.is_some() {
            return Ok(());
        }
    }
}
