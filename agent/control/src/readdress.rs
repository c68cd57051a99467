//! Changes of a node's addresses, by its host or by an administrator.

use std::net::{IpAddr, SocketAddr};

use mesh_model::{Network, Node, NodeId};
use mesh_proto::v1::NodeStatus;
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{Compare, Op, Txn};
use tracing::{info, warn};

use crate::core::Core;
use crate::enroll::{check_distinct, check_underlay};
use crate::node_status::status;
use crate::records::{Tries, Versioned, put};
use crate::reports::underlay_address;
use crate::{keys, limits};

/// The new addresses of a node; `None` for those that do not change.
#[derive(Debug, Default)]
pub(crate) struct RequestedAddresses {
    advertise: Option<(IpAddr, Option<u16>)>,
    data_path: Option<IpAddr>,
}

impl RequestedAddresses {
    /// Parses `IP` or `IP:PORT`, and `IP`; an empty text keeps the address.
    pub(crate) fn parse(advertise: &str, data_path: &str) -> Result<Self, Problem> {
        let invalid = |what: &str, text: &str| {
            Problem::new(
                ProblemKind::Usage,
                format!("{what} address {text:?} is not an IP address of a host"),
            )
            .hint("an interface name is accepted only on the node itself")
        };
        let host = |address: &IpAddr| underlay_address(*address).is_ok();
        let ip = |text: &str| text.parse::<IpAddr>().ok().filter(host);
        let socket =
            |text: &str| text.parse::<SocketAddr>().ok().filter(|to| host(&to.ip()) && to.port() != 0);
        let advertise = match advertise {
            "" => None,
            text => Some(
                ip(text)
                    .map(|ip| (ip, None))
                    .or_else(|| socket(text).map(|to| (to.ip(), Some(to.port()))))
                    .ok_or_else(|| invalid("advertised", text))?,
            ),
        };
        let data_path = match data_path {
            "" => None,
            text => Some(ip(text).filter(IpAddr::is_ipv4).ok_or_else(|| invalid("data-path", text))?),
        };
        Ok(Self { advertise, data_path })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.advertise.is_none() && self.data_path.is_none()
    }

    fn of(&self, node: &Node) -> Node {
        let mut node = node.clone();
        if let Some((ip, port)) = self.advertise {
            node.advertise_addr = SocketAddr::new(ip, port.unwrap_or(node.advertise_addr.port()));
        }
        node.data_path_addr = self.data_path.unwrap_or(node.data_path_addr);
        node
    }
}

/// Changes a node's addresses, and returns once every agent in session has applied the change.
pub(crate) async fn set(
    core: &Core,
    id: &NodeId,
    wanted: &RequestedAddresses,
) -> Result<NodeStatus, Problem> {
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let reads =
            [Op::get_range(keys::nodes()), Op::get_range(keys::networks()), Op::get(keys::address_fence())];
        let mut read = core.records.read(reads).await?;
        let nodes: Vec<Versioned<Node>> = read.all()?;
        let networks: Vec<Versioned<Network>> = read.all()?;
        let fence = read.fence(keys::address_fence());
        let Some(current) = nodes.iter().find(|node| node.value.id == *id) else {
            return Err(Problem::new(ProblemKind::NotFound, format!("node {id} does not exist")));
        };
        let node = wanted.of(&current.value);
        if node == current.value {
            return Ok(status(core, &node));
        }
        for other in nodes.iter().filter(|other| other.value.id != *id) {
            check_distinct(&node, &other.value)?;
        }
        check_underlay(&node, networks.iter().map(|network| &network.value))?;
        let compares = vec![fence.unchanged(), Compare::mod_revision(keys::node(id), current.revision)];
        let ops = vec![fence.advance(), put(keys::node(id), &node)];
        let Some(revision) = core.records.commit(Txn::when(compares).then(ops)).await? else { continue };
        info!(node = %node.name, advertised = %node.advertise_addr, data_path = %node.data_path_addr, "a node's addresses changed");
        let everyone: Vec<NodeId> = nodes.into_iter().map(|node| node.value.id).collect();
        let late = core.sessions.wait_applied(everyone, revision.0, limits::APPLIED).await;
        if !late.is_empty() {
            warn!(node = %node.name, ?late, "nodes have not applied a node's addresses in time");
        }
        return Ok(status(core, &node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_a_host_can_have_are_accepted() {
        for text in ["eth0", "0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1:0", "192.0.2.300"] {
            assert!(RequestedAddresses::parse(text, "").is_err(), "{text}");
        }
        for text in ["eth0", "0.0.0.0", "224.0.0.1", "192.0.2.1:4789", "2001:db8::1"] {
            assert!(RequestedAddresses::parse("", text).is_err(), "{text}");
        }
        assert!(RequestedAddresses::parse("", "").unwrap().is_empty());
        assert_eq!(RequestedAddresses::parse("192.0.2.1:99", "").unwrap().advertise.unwrap().1, Some(99));
        assert!(!RequestedAddresses::parse("", "192.0.2.1").unwrap().is_empty());
    }
}
