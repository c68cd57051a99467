//! The desired state of this node's WireGuard engine. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use mesh_model::wireguard::{peer_indexes, tunnel_address, tunnel_source};
use mesh_model::{Node, NodeId};
use mesh_planner::services::Records;
use mesh_wireguard::{OwnKey, PeerConfig, PublicKey, TunnelSources};

use crate::view::ClusterView;

/// The desired state of the engine, without this node's own keys and the MTU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredTunnels {
    /// UDP port of VXLAN, inside the tunnels as outside.
    pub vxlan_port: u16,
    /// This node's own number.
    pub number: u16,
    /// The nodes that share an encrypted network with this one and have announced a key.
    pub peers: BTreeMap<u16, PeerConfig>,
    /// Which nodes these are.
    pub nodes: BTreeMap<u16, NodeId>,
}

impl DesiredTunnels {
    /// Derives it from the view; `None` while this node has no part in an encrypted network.
    pub fn of(view: &ClusterView, own: &NodeId) -> Option<Self> {
        let sharing = sharing(view, own)?;
        let indexes = peer_indexes(view.nodes.values().map(|node| (&node.id, node.created_at)));
        let number = *indexes.get(own)?;
        let mut tunnels = Self {
            vxlan_port: view.cluster.data_path_port,
            number,
            peers: BTreeMap::new(),
            nodes: BTreeMap::new(),
        };
        // No two nodes have one key: who joined first has it.
        let mut known = BTreeSet::new();
        let mut nodes: Vec<&Node> = view.nodes.values().filter(|node| sharing.contains(&node.id)).collect();
        nodes.sort_by_key(|node| (node.created_at, &node.id));
        for node in nodes.into_iter().filter(|node| node.id != *own) {
            let (Some(index), Some(peer)) = (indexes.get(&node.id), peer(node, &indexes)) else { continue };
            let are_new = peer.keys.values().all(|key| !known.contains(key));
            if are_new {
                known.extend(peer.keys.values().copied());
                tunnels.nodes.insert(*index, node.id.clone());
                tunnels.peers.insert(*index, peer);
            } else {
                tracing::warn!(node = %node.name, "a node announced another node's key and is ignored");
            }
        }
        Some(tunnels)
    }

    /// The peers, without any that claims one of this node's own keys.
    pub fn peers_beside(&self, own: &[OwnKey]) -> BTreeMap<u16, PeerConfig> {
        let ours: BTreeSet<PublicKey> = own.iter().map(|key| key.private.public()).collect();
        let honest = |peer: &PeerConfig| peer.keys.values().all(|key| !ours.contains(key));
        self.peers
            .iter()
            .filter(|(_, peer)| honest(peer))
            .map(|(index, peer)| (*index, peer.clone()))
            .collect()
    }

    /// The numbers of the peers, by node.
    pub fn indexes(&self) -> BTreeMap<NodeId, u16> {
        self.nodes.iter().map(|(index, node)| (node.clone(), *index)).collect()
    }
}

/// Returns the nodes that share an encrypted network with this one; `None` if this node is in none.
/// If a service of such a network publishes ports, every node is in it: the nodes of its backends
/// have tunnels to all nodes.
fn sharing<'v>(view: &'v ClusterView, own: &NodeId) -> Option<BTreeSet<&'v NodeId>> {
    let mut sharing = BTreeSet::new();
    let mut has_part = false;
    for network in view.networks.values().filter(|network| network.encrypted) {
        let of_network = |records: &&Records| records.service.network == network.id;
        let mut published = view.services.published().filter(of_network).peekable();
        let holders: BTreeSet<_> = view.leases_of(&network.id).map(|lease| &lease.node).collect();
        let held = holders.contains(own);
        if !held && published.peek().is_none() {
            continue;
        }
        has_part = true;
        sharing.extend(holders);
        if published.peek().is_some() && held {
            sharing.extend(view.nodes.keys());
        }
        sharing.extend(published.flat_map(|records| records.backends.values()).map(|backend| &backend.node));
    }
    has_part.then_some(sharing)
}

/// A node as the engine knows it; `None` without a key that can be read.
fn peer(node: &Node, indexes: &BTreeMap<NodeId, u16>) -> Option<PeerConfig> {
    let wireguard = node.wireguard.as_ref()?;
    let keys: BTreeMap<u32, PublicKey> = wireguard
        .keys
        .iter()
        .filter_map(|(generation, key)| Some((*generation, key.parse().ok()?)))
        .collect();
    // The newest two, of which one is odd: more than a rotation takes is of no use.
    let newest = |odd| keys.iter().rev().find(|(generation, _)| *generation % 2 == odd);
    let keys: BTreeMap<_, _> = [0, 1].into_iter().filter_map(newest).map(|(g, key)| (*g, *key)).collect();
    let endpoint = SocketAddr::new(node.data_path_addr, wireguard.port);
    let number = *indexes.get(&node.id)?;
    let (tunnel_address, sources) = (tunnel_address(number), sources(number));
    (!keys.is_empty()).then_some(PeerConfig { endpoint: Some(endpoint), tunnel_address, sources, keys })
}

/// Where packets of the node with that number come from inside the tunnels.
pub fn sources(number: u16) -> TunnelSources {
    TunnelSources { even: tunnel_source(number, false), odd: tunnel_source(number, true) }
}
