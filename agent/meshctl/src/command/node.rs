//! `meshctl node ...`

use mesh_proto::{Problem, v1};

use super::{each, ids, in_form, inspect, list_of};
use crate::cli::Format;
use crate::cli::node::{Command, Ls, Rm, Update};
use crate::client::Client;
use crate::filter::{Filter, NodeKey, passes};
use crate::report::Report;
use crate::table::{columns, details, or_none, short, yes_no};
use crate::view::{self, Named, Node};

pub(super) async fn run(client: &Client, command: Command, format: Option<Format>) -> Report {
    match command {
        Command::Ls(ls) => self::ls(client, &ls, format).await.into(),
        Command::Inspect(names) => {
            let call = async |node| {
                let request = v1::InspectNodeRequest { node };
                Node::try_from(client.call(client.control().await?.inspect_node(request)).await?)
            };
            inspect(names.nodes, format, call, as_details).await
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
        let headers = ["ID", "NAME", "STATE", "AVAILABILITY", "ROLE", "ADDRESS", "DATA PATH", "VERSION"];
        columns(headers, nodes.iter().map(row))
    })
}

fn row(node: &Node) -> [String; 8] {
    let role = view::role(node.role);
    [
        short(&node.id),
        node.name.clone(),
        view::state(node.state).to_owned(),
        view::availability(node.availability).to_owned(),
        if node.leader { format!("{role} (leader)") } else { role.to_owned() },
        node.advertise_addr.clone(),
        node.data_path_addr.clone(),
        node.version.clone(),
    ]
}

fn matches(filters: &[Filter<NodeKey>], node: &Node) -> bool {
    passes(filters, |key, value| match key {
        NodeKey::Availability => view::availability(node.availability) == value,
        NodeKey::Id => node.id.starts_with(value),
        NodeKey::Name => node.name.contains(value),
        NodeKey::Role => view::role(node.role) == value,
        NodeKey::State => view::state(node.state) == value,
    })
}

fn as_details(node: &Node) -> String {
    details([
        ("ID", node.id.clone()),
        ("Name", node.name.clone()),
        ("Role", view::role(node.role).to_owned()),
        ("Leader", yes_no(node.leader)),
        ("Availability", view::availability(node.availability).to_owned()),
        ("State", view::state(node.state).to_owned()),
        ("Last seen", or_none(node.last_seen.as_ref())),
        ("Advertised address", node.advertise_addr.clone()),
        ("Data-path address", node.data_path_addr.clone()),
        ("Version", node.version.clone()),
    ])
}

async fn update(client: &Client, update: Update, format: Option<Format>) -> Result<String, Problem> {
    let availability = v1::Availability::from(mesh_model::Availability::from(update.availability)).into();
    let request = v1::UpdateNodeRequest { node: update.node, availability };
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
