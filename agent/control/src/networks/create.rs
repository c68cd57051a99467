//! Creating a network: checks that the requested values are free, and chooses the others.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use mesh_ipam::{Family, Pool, PoolError, SubnetSpec, find_overlap, next_subnet};
use mesh_model::{Network, NetworkId, Node, Prefix, Vni};
use mesh_proto::v1::CreateNetworkRequest;
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{Compare, Op, Txn};
use tracing::info;

use super::request::{RequestedNetwork, record};
use crate::core::Core;
use crate::keys;
use crate::records::{Fence, RecordError, Tries, Versioned, put};

/// Prefix length of automatic IPv6 subnets (RFC 4291, 2.5.1).
const IPV6_SUBNET: u8 = 64;

/// Creates a network.
pub(crate) async fn create(core: &Core, request: CreateNetworkRequest) -> Result<Network, Problem> {
    let wanted = RequestedNetwork::parse(request)?;
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let _turn = core.creating.lock().await;
        let taken = Taken::read(core).await?;
        let network = taken.fit(core, &wanted)?;
        let compares = [
            taken.fence.unchanged(),
            Compare::absent(keys::network_name(&network.name)),
            Compare::absent(keys::vni(network.vni)),
        ];
        let ops = [
            taken.fence.advance(),
            put(keys::network(&network.id), &network),
            put(keys::network_name(&network.name), &network.id),
            put(keys::vni(network.vni), &network.id),
        ];
        if core.records.commit(Txn::when(compares).then(ops)).await?.is_some() {
            info!(network = %network.id, name = %network.name, vni = %network.vni, "a network was created");
            return Ok(network);
        }
    }
}

/// Returns the network that a request would create, given the used values.
pub(crate) fn proposed(
    core: &Core,
    taken: &Taken,
    request: CreateNetworkRequest,
) -> Result<Network, Problem> {
    taken.fit(core, &RequestedNetwork::parse(request)?)
}

/// The values in use.
pub(crate) struct Taken {
    pub(crate) networks: Vec<Network>,
    /// Nodes' addresses, with a description of each for messages.
    addresses: Vec<(Prefix, String)>,
    /// The hosts' routes that automatic subnets must avoid, and all routes.
    automatic_routes: Vec<(Prefix, String)>,
    routes: Vec<(Prefix, String)>,
    fence: Fence,
}

impl Taken {
    pub(crate) async fn read(core: &Core) -> Result<Self, RecordError> {
        let fence = keys::address_fence();
        let mut read = core
            .records
            .read([Op::get_range(keys::networks()), Op::get_range(keys::nodes()), Op::get(fence.clone())])
            .await?;
        let networks: Vec<Versioned<Network>> = read.all()?;
        let nodes: Vec<Versioned<Node>> = read.all()?;
        let mut addresses = Vec::new();
        let routes = core.routes();
        let (mut all_routes, mut automatic_routes) = (Vec::new(), Vec::new());
        for Versioned { value: node, .. } in &nodes {
            let (name, address, advertised) = (&node.name, node.data_path_addr, node.advertise_addr.ip());
            addresses.push((address.into(), format!("data-path address {address} of node {name}")));
            addresses.push((advertised.into(), format!("address {advertised} of node {name}")));
            if let Some(of_node) = routes.get(&node.id) {
                let named = |route: &Prefix| (*route, format!("route {route} of node {name}"));
                all_routes.extend(of_node.all.iter().map(named));
                automatic_routes.extend(of_node.automatic.iter().map(named));
            }
        }
        let networks = networks.into_iter().map(|network| network.value).collect();
        let fence = read.fence(fence);
        Ok(Self { networks, addresses, automatic_routes, routes: all_routes, fence })
    }

    /// Returns the network to create, or the conflict.
    pub(super) fn fit(&self, core: &Core, wanted: &RequestedNetwork) -> Result<Network, Problem> {
        if let Some(other) = self.networks.iter().find(|other| other.name.is_same(&wanted.name)) {
            return Err(conflict(format!("network {} exists already: {}", other.name, other.id)));
        }
        let mut taken = self.addresses.clone();
        for network in &self.networks {
            let subnets = network.subnets.iter();
            taken.extend(
                subnets.map(|s| (s.subnet, format!("subnet {} of network {}", s.subnet, network.name))),
            );
        }
        for spec in &wanted.subnets {
            let overlap =
                find_overlap(&spec.subnet, &taken).or_else(|| find_overlap(&spec.subnet, &self.routes));
            if let Some((_, whose)) = overlap {
                return Err(conflict(format!("subnet {} overlaps {whose}", spec.subnet))
                    .hint("choose another subnet, or omit it to allocate a free one"));
            }
        }
        taken.extend(self.automatic_routes.iter().cloned());
        let mut specs = wanted.subnets.clone();
        taken.extend(specs.iter().map(|spec| (spec.subnet, "this network".to_owned())));
        for &family in &wanted.automatic {
            let pools = pools(core, family).map_err(|e| exhausted(&e))?;
            let subnet = next_subnet(&pools, family, &taken).map_err(|e| exhausted(&e))?;
            specs.push(SubnetSpec::new(subnet));
        }
        // IPv4 first, each family in the given order.
        specs.sort_by_key(|spec| spec.subnet.family());
        Ok(Network {
            id: NetworkId::random().map_err(RecordError::from)?,
            name: wanted.name.clone(),
            vni: self.vni(wanted.vni)?,
            subnets: specs.iter().map(record).collect::<Result<_, _>>()?,
            mtu: wanted.mtu,
            encrypted: wanted.encrypted,
            internal: wanted.internal,
            attachable: wanted.attachable,
            host_policy: wanted.host_policy,
            removing: false,
            labels: wanted.labels.clone(),
            options: wanted.options.clone(),
            created_at: Timestamp::now(),
        })
    }

    fn vni(&self, wanted: Option<Vni>) -> Result<Vni, Problem> {
        let taken: BTreeMap<Vni, &Network> =
            self.networks.iter().map(|network| (network.vni, network)).collect();
        if let Some(vni) = wanted {
            return match taken.get(&vni) {
                Some(other) => Err(conflict(format!("VNI {vni} belongs to network {}", other.name))),
                None => Ok(vni),
            };
        }
        let used: BTreeSet<u32> = taken.keys().map(|vni| vni.get()).collect();
        let free = (Vni::FIRST_AUTOMATIC.get()..=Vni::LAST.get()).find(|vni| !used.contains(vni));
        free.and_then(|vni| vni.try_into().ok())
            .ok_or_else(|| Problem::new(ProblemKind::Exhausted, "all VNIs are in use"))
    }
}

fn pools(core: &Core, family: Family) -> Result<Vec<Pool>, PoolError> {
    let cluster = core.cluster();
    match family {
        Family::Ipv4 => {
            let length = cluster.default_addr_pool_mask_length;
            cluster.default_addr_pools.iter().map(|&pool| Pool::new(pool, length)).collect()
        }
        Family::Ipv6 => Ok(vec![Pool::new(cluster.ipv6_pool, IPV6_SUBNET)?]),
    }
}

fn conflict(message: String) -> Problem {
    Problem::new(ProblemKind::Conflict, message)
}

fn exhausted(error: &PoolError) -> Problem {
    Problem::new(ProblemKind::Exhausted, error.to_string())
        .hint("specify a subnet with --subnet, or remove unused networks: meshctl network prune")
}
