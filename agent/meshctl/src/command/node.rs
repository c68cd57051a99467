//! `meshctl node ...`

use mesh_proto::{Problem, v1};
use serde::Serialize;

use super::results::{each, ids, in_form, inspect, list_of};
use super::status::chosen;
use crate::cli::node::{Command, Ls, Rm, Update};
use crate::client::Client;
use crate::filter::{Filter, NodeKey, matches_all};
use crate::format::Format;
use crate::report::Report;
use crate::table::{columns, details, or_none, short, yes_no};
use crate::view::{self, Named, Node, present};

pub(super) async fn run(client: &Client, command: Command, format: Option<Format>) -> Report {
    match command {
        Command::Ls(ls) => self::ls(client, &ls, format).await.into(),
        Command::Inspect(names) => {
            inspect(names.nodes, format, async |name| one(client, name).await, as_details).await
        }
        Command::Update(update) => self::update(client, update, format).await.into(),
        Command::Rm(rm) => self::rm(client, rm, format).await,
    }
}

async fn ls(client: &Client, ls: &Ls, format: Option<Format>) -> Result<String, Problem> {
    let answer = client.call(client.control().await?.list_nodes(v1::ListNodesRequest {})).await?;
    let nodes: Vec<Node> = answer.nodes.into_iter().map(Node::try_from).collect::<Result<_, _>>()?;
    let mut nodes: Vec<_> = nodes.into_iter().filter(|node| matches(&ls.filter, node)).collect();
    nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    if ls.quiet {
        return ids(nodes.iter().map(|node| node.id.as_str()), format);
    }
    in_form(&nodes, format, |nodes| {
        let headers = [
            "ID",
            "NAME",
            "STATE",
            "UNREACHABLE FROM",
            "AVAILABILITY",
            "ROLE",
            "ADDRESS",
            "DATA PATH",
            "VERSION",
        ];
        columns(headers, nodes.iter().map(row))
    })
}

/// The nodes that cannot reach it: `h1, h2 (encrypted)`, or nothing.
fn unreachable_from(node: &Node) -> Option<String> {
    let name = |from: &view::UnreachableFrom| {
        format!("{}{}", from.node, if from.encrypted { " (encrypted)" } else { "" })
    };
    let names: Vec<String> = node.unreachable_from.iter().map(name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn row(node: &Node) -> [String; 9] {
    let role = view::role(node.role);
    [
        short(&node.id),
        node.name.clone(),
        view::state(node.state).to_owned(),
        or_none(unreachable_from(node)),
        view::availability(node.availability).to_owned(),
        if node.leader { format!("{role} (leader)") } else { role.to_owned() },
        node.advertise_addr.clone(),
        node.data_path_addr.clone(),
        node.version.clone(),
    ]
}

fn matches(filters: &[Filter<NodeKey>], node: &Node) -> bool {
    matches_all(filters, |key, value| match key {
        NodeKey::Availability => view::availability(node.availability) == value,
        NodeKey::Id => node.id.starts_with(value),
        NodeKey::Name => node.name.contains(value),
        NodeKey::Role => view::role(node.role) == value,
        NodeKey::State => view::state(node.state) == value,
    })
}

/// A node with its end of the encrypted networks' tunnels.
#[derive(Debug, Serialize)]
struct Inspected {
    #[serde(flatten)]
    node: Node,
    /// Null while the node has announced no keys.
    wireguard: Option<Wireguard>,
}

/// What is known of a node's tunnels here.
#[derive(Debug, Serialize)]
struct Wireguard {
    /// UDP port of the node.
    port: u32,
    /// Of the node's newest key.
    generation: u32,
    /// What carries encrypted networks on this host: `kernel` or `userspace`; null while none is
    /// here.
    engine: Option<String>,
    /// Why it is this one.
    engine_reason: Option<String>,
    /// This host's tunnel to the node; all its tunnels for this host itself.
    peers: Vec<Peer>,
}

/// A tunnel of this host.
#[derive(Debug, Serialize)]
struct Peer {
    node: String,
    endpoint: Option<String>,
    /// Null: never.
    last_handshake: Option<String>,
    received_bytes: u64,
    sent_bytes: u64,
    /// Of the peer's key that is in use.
    generation: u32,
}

async fn one(client: &Client, node: String) -> Result<Inspected, Problem> {
    let request = v1::InspectNodeRequest { node };
    let status = client.call(client.control().await?.inspect_node(request)).await?;
    let keys = status.node.as_ref().and_then(|node| node.wireguard.clone());
    let node = Node::try_from(status)?;
    let wireguard = match keys {
        Some(keys) => Some(tunnels(client, &node, &keys).await?),
        None => None,
    };
    Ok(Inspected { node, wireguard })
}

async fn tunnels(client: &Client, node: &Node, keys: &v1::Wireguard) -> Result<Wireguard, Problem> {
    let here = client.call(client.local().await?.status(v1::StatusRequest {})).await?;
    let is_here = here.node.is_some_and(|here| here.id == node.id);
    let mut peers = here.wireguard_peers;
    peers.retain(|peer| is_here || peer.node_id == node.id);
    peers.sort_by(|a, b| (&a.node_name, &a.node_id).cmp(&(&b.node_name, &b.node_id)));
    let peer = |peer: v1::WireguardPeer| Peer {
        node: peer.node_name,
        endpoint: present(peer.endpoint),
        last_handshake: present(peer.last_handshake),
        received_bytes: peer.received_bytes,
        sent_bytes: peer.sent_bytes,
        generation: peer.generation,
    };
    Ok(Wireguard {
        port: keys.port,
        generation: keys.keys.keys().max().copied().unwrap_or_default(),
        engine: present(here.wireguard_engine),
        engine_reason: present(here.wireguard_engine_reason),
        peers: peers.into_iter().map(peer).collect(),
    })
}

fn as_details(inspected: &Inspected) -> String {
    let Inspected { node, wireguard } = inspected;
    let keys = wireguard
        .as_ref()
        .map(|wireguard| format!("UDP {}, key generation {}", wireguard.port, wireguard.generation));
    let engine = wireguard.as_ref().and_then(|wireguard| {
        let engine = wireguard.engine.as_ref()?;
        Some(chosen(engine, wireguard.engine_reason.as_ref()))
    });
    let mut text = details([
        ("ID", node.id.clone()),
        ("Name", node.name.clone()),
        ("Role", view::role(node.role).to_owned()),
        ("Leader", yes_no(node.leader)),
        ("Availability", view::availability(node.availability).to_owned()),
        ("State", view::state(node.state).to_owned()),
        ("Unreachable from", or_none(unreachable_from(node))),
        ("Last seen", or_none(node.last_seen.as_ref())),
        ("Advertised address", node.advertise_addr.clone()),
        ("Data-path address", node.data_path_addr.clone()),
        ("Host addresses", or_none(Some(node.host_addrs.join(", ")).filter(|all| !all.is_empty()))),
        ("Version", node.version.clone()),
        ("WireGuard", or_none(keys)),
        ("Engine here", or_none(engine)),
    ]);
    let peers = wireguard.as_ref().map_or(&[][..], |wireguard| &wireguard.peers);
    if !peers.is_empty() {
        let rows = peers.iter().map(|peer| {
            [
                peer.node.clone(),
                or_none(peer.endpoint.as_ref()),
                or_none(peer.last_handshake.as_ref()),
                peer.received_bytes.to_string(),
                peer.sent_bytes.to_string(),
                peer.generation.to_string(),
            ]
        });
        text += "\n";
        text += &columns(
            ["PEER", "ENDPOINT", "LAST HANDSHAKE", "RECEIVED BYTES", "SENT BYTES", "GENERATION"],
            rows,
        );
    }
    text
}

async fn update(client: &Client, update: Update, format: Option<Format>) -> Result<String, Problem> {
    let availability = update.availability.map_or(v1::Availability::Unspecified, |availability| {
        mesh_model::Availability::from(availability).into()
    });
    let request = v1::UpdateNodeRequest {
        node: update.node,
        availability: availability.into(),
        advertise_addr: update.advertise_addr.unwrap_or_default(),
        data_path_addr: update.data_path_addr.unwrap_or_default(),
    };
    let node = Node::try_from(client.call(client.control().await?.update_node(request)).await?)?;
    in_form(&node, format, |node| format!("{}\n", node.name))
}

async fn rm(client: &Client, rm: Rm, format: Option<Format>) -> Report {
    let removed = each(rm.nodes, async |node: String| {
        let request = v1::RemoveNodeRequest { node: node.clone(), force: rm.force };
        let answer = client.call(client.control().await?.remove_node(request)).await?;
        let node = answer.node.ok_or_else(|| crate::client::incomplete("node"))?;
        Ok(Named { id: node.id, name: node.name })
    });
    list_of(removed.await, format, |node| node.name.clone())
}
