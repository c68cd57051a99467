//! Conversions between messages and the model's records: total in one direction, checked in the
//! other.

mod field;
pub mod host_policy;
mod owner;
mod service;

use mesh_model as model;

pub use self::field::{InvalidMessage, parse, parse_optional, required};
use self::field::{checked, port};
use crate::v1;

impl From<model::Role> for v1::Role {
    fn from(role: model::Role) -> Self {
        match role {
            model::Role::Manager => Self::Manager,
            model::Role::Worker => Self::Worker,
        }
    }
}

impl TryFrom<v1::Role> for model::Role {
    type Error = InvalidMessage;

    fn try_from(role: v1::Role) -> Result<Self, InvalidMessage> {
        match role {
            v1::Role::Manager => Ok(Self::Manager),
            v1::Role::Worker => Ok(Self::Worker),
            v1::Role::Unspecified => Err(InvalidMessage { field: "role", reason: "is missing".into() }),
        }
    }
}

impl From<model::Availability> for v1::Availability {
    fn from(availability: model::Availability) -> Self {
        match availability {
            model::Availability::Active => Self::Active,
            model::Availability::Drain => Self::Drain,
        }
    }
}

impl TryFrom<v1::Availability> for model::Availability {
    type Error = InvalidMessage;

    fn try_from(availability: v1::Availability) -> Result<Self, InvalidMessage> {
        match availability {
            v1::Availability::Active => Ok(Self::Active),
            v1::Availability::Drain => Ok(Self::Drain),
            v1::Availability::Unspecified => {
                Err(InvalidMessage { field: "availability", reason: "is missing".into() })
            }
        }
    }
}

impl From<model::NodeState> for v1::NodeState {
    fn from(state: model::NodeState) -> Self {
        match state {
            model::NodeState::Ready => Self::Ready,
            model::NodeState::Unknown => Self::Unknown,
            model::NodeState::Down => Self::Down,
        }
    }
}

impl TryFrom<v1::NodeState> for model::NodeState {
    type Error = InvalidMessage;

    fn try_from(state: v1::NodeState) -> Result<Self, InvalidMessage> {
        match state {
            v1::NodeState::Ready => Ok(Self::Ready),
            v1::NodeState::Unknown => Ok(Self::Unknown),
            v1::NodeState::Down => Ok(Self::Down),
            v1::NodeState::Unspecified => Err(InvalidMessage { field: "state", reason: "is missing".into() }),
        }
    }
}

impl From<&model::Node> for v1::Node {
    fn from(node: &model::Node) -> Self {
        Self {
            id: node.id.to_string(),
            name: node.name.to_string(),
            role: v1::Role::from(node.role).into(),
            availability: v1::Availability::from(node.availability).into(),
            advertise_addr: node.advertise_addr.to_string(),
            data_path_addr: node.data_path_addr.to_string(),
            data_path_mtu: node.data_path_mtu.get(),
            version: node.version.clone(),
            created_at: node.created_at.to_string(),
            wireguard: node.wireguard.as_ref().map(Into::into),
            host_addrs: node.host_addrs.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<v1::Node> for model::Node {
    type Error = InvalidMessage;

    fn try_from(node: v1::Node) -> Result<Self, InvalidMessage> {
        Ok(Self {
            id: parse("id", &node.id)?,
            name: parse("name", &node.name)?,
            role: node.role().try_into()?,
            availability: node.availability().try_into()?,
            advertise_addr: parse("advertise_addr", &node.advertise_addr)?,
            data_path_addr: parse("data_path_addr", &node.data_path_addr)?,
            data_path_mtu: checked("data_path_mtu", node.data_path_mtu)?,
            created_at: parse("created_at", &node.created_at)?,
            version: node.version,
            wireguard: node.wireguard.map(TryInto::try_into).transpose()?,
            host_addrs: node
                .host_addrs
                .iter()
                .map(|address| parse("host_addrs", address))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&model::Wireguard> for v1::Wireguard {
    fn from(wireguard: &model::Wireguard) -> Self {
        Self { port: wireguard.port.into(), keys: wireguard.keys.clone().into_iter().collect() }
    }
}

impl TryFrom<v1::Wireguard> for model::Wireguard {
    type Error = InvalidMessage;

    fn try_from(wireguard: v1::Wireguard) -> Result<Self, InvalidMessage> {
        Ok(Self { port: port("port", wireguard.port)?, keys: wireguard.keys.into_iter().collect() })
    }
}

impl From<&model::Subnet> for v1::Subnet {
    fn from(subnet: &model::Subnet) -> Self {
        Self {
            subnet: subnet.subnet.to_string(),
            gateway: subnet.gateway.to_string(),
            ip_range: subnet.ip_range.map(|range| range.to_string()),
            aux: subnet.aux.iter().map(|(name, ip)| (name.clone(), ip.to_string())).collect(),
        }
    }
}

impl TryFrom<v1::Subnet> for model::Subnet {
    type Error = InvalidMessage;

    fn try_from(subnet: v1::Subnet) -> Result<Self, InvalidMessage> {
        Ok(Self {
            subnet: parse("subnet", &subnet.subnet)?,
            gateway: parse("gateway", &subnet.gateway)?,
            ip_range: subnet.ip_range.map(|range| parse("ip_range", &range)).transpose()?,
            aux: subnet
                .aux
                .into_iter()
                .map(|(name, ip)| Ok((name, parse("aux", &ip)?)))
                .collect::<Result<_, InvalidMessage>>()?,
        })
    }
}

impl From<&model::Network> for v1::Network {
    fn from(network: &model::Network) -> Self {
        Self {
            id: network.id.to_string(),
            name: network.name.to_string(),
            vni: network.vni.get(),
            subnets: network.subnets.iter().map(Into::into).collect(),
            mtu: network.mtu.map(model::Mtu::get),
            encrypted: network.encrypted,
            internal: network.internal,
            attachable: network.attachable,
            removing: network.removing,
            labels: network.labels.clone().into_iter().collect(),
            options: network.options.clone().into_iter().collect(),
            created_at: network.created_at.to_string(),
            host_access: v1::HostAccess::from(network.host_policy.access).into(),
            metadata: v1::MetadataAccess::from(network.host_policy.metadata).into(),
        }
    }
}

impl TryFrom<v1::Network> for model::Network {
    type Error = InvalidMessage;

    fn try_from(network: v1::Network) -> Result<Self, InvalidMessage> {
        let host_policy = host_policy::read(network.host_access, network.metadata)?;
        Ok(Self {
            host_policy,
            id: parse("id", &network.id)?,
            name: parse("name", &network.name)?,
            vni: checked("vni", network.vni)?,
            subnets: network.subnets.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            mtu: network.mtu.map(|mtu| checked("mtu", mtu)).transpose()?,
            encrypted: network.encrypted,
            internal: network.internal,
            attachable: network.attachable,
            removing: network.removing,
            labels: network.labels.into_iter().collect(),
            options: network.options.into_iter().collect(),
            created_at: parse("created_at", &network.created_at)?,
        })
    }
}

impl From<&model::Lease> for v1::Lease {
    fn from(lease: &model::Lease) -> Self {
        let (pending_from, pending_replaced) = match &lease.state {
            model::LeaseState::Active => (String::new(), false),
            model::LeaseState::Pending { from, replaced } => (from.to_string(), *replaced),
        };
        Self {
            network: lease.network.to_string(),
            prefix: lease.prefix.to_string(),
            node: lease.node.to_string(),
            pending_from,
            revision: lease.revision,
            pending_replaced,
        }
    }
}

impl TryFrom<v1::Lease> for model::Lease {
    type Error = InvalidMessage;

    fn try_from(lease: v1::Lease) -> Result<Self, InvalidMessage> {
        let state = match parse_optional("pending_from", &lease.pending_from)? {
            None => model::LeaseState::Active,
            Some(from) => model::LeaseState::Pending { from, replaced: lease.pending_replaced },
        };
        Ok(Self {
            network: parse("network", &lease.network)?,
            prefix: parse("prefix", &lease.prefix)?,
            node: parse("node", &lease.node)?,
            state,
            revision: lease.revision,
        })
    }
}

impl From<&model::cluster::Cluster> for v1::Cluster {
    fn from(cluster: &model::cluster::Cluster) -> Self {
        Self {
            id: cluster.id.clone(),
            data_path_port: cluster.data_path_port.into(),
            default_addr_pools: cluster.default_addr_pools.iter().map(ToString::to_string).collect(),
            default_addr_pool_mask_length: cluster.default_addr_pool_mask_length.into(),
            ipv6_pool: cluster.ipv6_pool.to_string(),
            created_at: cluster.created_at.to_string(),
            dsr: cluster.dsr,
        }
    }
}

impl TryFrom<v1::Cluster> for model::cluster::Cluster {
    type Error = InvalidMessage;

    fn try_from(cluster: v1::Cluster) -> Result<Self, InvalidMessage> {
        Ok(Self {
            id: cluster.id,
            data_path_port: checked("data_path_port", cluster.data_path_port)?,
            default_addr_pools: cluster
                .default_addr_pools
                .iter()
                .map(|pool| parse("default_addr_pools", pool))
                .collect::<Result<_, _>>()?,
            default_addr_pool_mask_length: checked(
                "default_addr_pool_mask_length",
                cluster.default_addr_pool_mask_length,
            )?,
            ipv6_pool: parse("ipv6_pool", &cluster.ipv6_pool)?,
            created_at: parse("created_at", &cluster.created_at)?,
            dsr: cluster.dsr,
        })
    }
}
