//! `meshctl cluster ...`

use mesh_model::{NodeState, Role};
use mesh_proto::{Problem, ProblemKind, v1};
use serde::Serialize;

use super::results::in_form;
use crate::cli::cluster::{Addresses, Command, Init, Join, JoinToken, Leave};
use crate::client::{Client, incomplete};
use crate::format::Format;
use crate::report::Report;
use crate::table::{self, details};
use crate::view::{self, Cluster, Member, Node, present};

pub(super) async fn run(client: &Client, command: Command, format: Option<Format>) -> Report {
    match command {
        Command::Init(init) => self::init(client, init, format).await.into(),
        Command::Join(join) => self::join(client, join, format).await.into(),
        Command::JoinToken(token) => join_token(client, &token, format).await.into(),
        Command::Status => status(client, format).await,
        Command::RotateKeys => rotate_keys(client, format).await.into(),
        Command::Leave(leave) => self::leave(client, &leave, format).await.into(),
    }
}

async fn init(client: &Client, init: Init, format: Option<Format>) -> Result<String, Problem> {
    #[derive(Serialize)]
    struct Initialised {
        node: Member,
        worker_token: String,
        manager: String,
    }
    let (advertise_addr, data_path_addr, node_name) = addresses(init.addresses);
    let request = v1::InitClusterRequest {
        advertise_addr,
        data_path_addr,
        data_path_port: init.data_path_port.into(),
        default_addr_pools: init.default_addr_pool.iter().map(ToString::to_string).collect(),
        default_addr_pool_mask_length: init.default_addr_pool_mask_length.into(),
        node_name,
        dsr: init.dsr,
    };
    let answer = client.call(client.local().await?.init_cluster(request)).await?;
    let initialised = Initialised {
        node: answer.node.ok_or_else(|| incomplete("node"))?.try_into()?,
        worker_token: answer.worker_token,
        manager: answer.manager,
    };
    in_form(&initialised, format, |done| {
        format!(
            "This host, {} ({}), is now the manager of a new cluster.\n\n{}",
            done.node.name,
            done.node.id,
            how_to_join(Role::Worker, &done.worker_token, &done.manager),
        )
    })
}

async fn join(client: &Client, join: Join, format: Option<Format>) -> Result<String, Problem> {
    #[derive(Serialize)]
    struct Joined {
        node: Member,
    }
    let (advertise_addr, data_path_addr, node_name) = addresses(join.addresses);
    let request = v1::JoinClusterRequest {
        token: join.token,
        manager: join.manager,
        advertise_addr,
        data_path_addr,
        node_name,
    };
    let answer = client.call(client.local().await?.join_cluster(request)).await?;
    let joined = Joined { node: answer.node.ok_or_else(|| incomplete("node"))?.try_into()? };
    in_form(&joined, format, |Joined { node }| {
        format!(
            "This host, {} ({}), is now a {} of the cluster.\n",
            node.name,
            node.id,
            view::role(node.role)
        )
    })
}

async fn join_token(client: &Client, asked: &JoinToken, format: Option<Format>) -> Result<String, Problem> {
    #[derive(Serialize)]
    struct Invitation {
        role: Role,
        token: String,
        manager: String,
    }
    let role = asked.role.into();
    let request = v1::JoinTokenRequest { role: v1::Role::from(role).into(), rotate: asked.rotate };
    let answer = client.call(client.control().await?.join_token(request)).await?;
    let invitation = Invitation { role, token: answer.token, manager: answer.manager };
    in_form(&invitation, format, |Invitation { role, token, manager }| {
        if asked.quiet { format!("{token}\n") } else { how_to_join(*role, token, manager) }
    })
}

async fn rotate_keys(client: &Client, format: Option<Format>) -> Result<String, Problem> {
    #[derive(Serialize)]
    struct Rotated {
        generation: u32,
        /// Nodes that have not announced theirs yet; those whose agents are away follow later.
        pending: Vec<String>,
    }
    let answer = client.call(client.control().await?.rotate_keys(v1::RotateKeysRequest {})).await?;
    let rotated = Rotated { generation: answer.generation, pending: answer.pending };
    in_form(&rotated, format, |Rotated { generation, pending }| {
        let pending = match pending.as_slice() {
            [] => String::new(),
            nodes => format!("Nodes that have not announced their keys yet: {}\n", table::list(nodes)),
        };
        format!("Every node creates a key of generation {generation}.\n{pending}")
    })
}

async fn leave(client: &Client, leave: &Leave, format: Option<Format>) -> Result<String, Problem> {
    #[derive(Serialize)]
    struct Left {
        membership: &'static str,
    }
    client.call(client.local().await?.leave_cluster(v1::LeaveClusterRequest { force: leave.force })).await?;
    in_form(&Left { membership: "none" }, format, |_| "This host has left the cluster.\n".to_owned())
}

/// What `cluster status` shows.
#[derive(Debug, Serialize)]
struct ClusterStatus {
    #[serde(flatten)]
    cluster: Cluster,
    node: Option<Member>,
    /// The manager that this host's agent talks to; null when there is none now.
    manager: Option<String>,
    /// Null when no manager answers.
    nodes: Option<Nodes>,
}

/// How many nodes there are.
#[derive(Debug, Default, Serialize)]
struct Nodes {
    total: usize,
    managers: usize,
    ready: usize,
    unknown: usize,
    down: usize,
}

/// The cluster as this host knows it is shown even when no manager answers, and that it is so is an
/// error.
async fn status(client: &Client, format: Option<Format>) -> Report {
    let local = match local_status(client).await {
        Ok(local) => local,
        Err(problem) => return problem.into(),
    };
    let Some(cluster) = local.cluster else {
        return Problem::new(ProblemKind::Conflict, "cluster status, this host is not in a cluster")
            .hint("create one with `meshctl cluster init`, or join one with `meshctl cluster join`")
            .into();
    };
    let (nodes, mut problems) = match count(client).await {
        Ok(nodes) => (Some(nodes), Vec::new()),
        Err(problem) => (None, vec![problem]),
    };
    let text = local.node.map(Member::try_from).transpose().and_then(|node| {
        let status = ClusterStatus { cluster: cluster.into(), node, manager: present(local.manager), nodes };
        in_form(&status, format, as_text)
    });
    let text = text.unwrap_or_else(|problem| {
        problems.push(problem);
        String::new()
    });
    Report { text, problems, ..Report::default() }
}

async fn local_status(client: &Client) -> Result<v1::StatusResponse, Problem> {
    client.call(client.local().await?.status(v1::StatusRequest {})).await
}

async fn count(client: &Client) -> Result<Nodes, Problem> {
    let answer = client.call(client.control().await?.list_nodes(v1::ListNodesRequest {})).await?;
    let mut nodes = Nodes::default();
    for node in answer.nodes {
        let node = Node::try_from(node)?;
        nodes.total += 1;
        nodes.managers += usize::from(node.role == Role::Manager);
        match node.state {
            NodeState::Ready => nodes.ready += 1,
            NodeState::Unknown => nodes.unknown += 1,
            NodeState::Down => nodes.down += 1,
        }
    }
    Ok(nodes)
}

fn as_text(status: &ClusterStatus) -> String {
    let nodes = status.nodes.as_ref().map(|nodes| {
        let Nodes { total, managers, ready, unknown, down } = nodes;
        format!("{total} ({managers} managers; {ready} ready, {unknown} unknown, {down} down)")
    });
    let cluster = &status.cluster;
    let node =
        status.node.as_ref().map(|node| format!("{} ({}), {}", node.name, node.id, view::role(node.role)));
    details([
        ("Cluster", cluster.id.clone()),
        ("Created", cluster.created_at.clone()),
        ("This node", table::or_none(node)),
        ("Manager", table::or_none(status.manager.as_ref())),
        ("Nodes", table::or_none(nodes)),
        ("VXLAN port", cluster.data_path_port.to_string()),
        (
            "Address pools",
            format!(
                "{} in /{}",
                table::list(&cluster.default_addr_pools),
                cluster.default_addr_pool_mask_length
            ),
        ),
        ("IPv6 pool", cluster.ipv6_pool.clone()),
        ("Direct return", if cluster.dsr { "on" } else { "off" }.to_owned()),
    ])
}

fn addresses(addresses: Addresses) -> (String, String, String) {
    (
        addresses.advertise_addr.unwrap_or_default(),
        addresses.data_path_addr.unwrap_or_default(),
        addresses.node_name.map(String::from).unwrap_or_default(),
    )
}

fn how_to_join(role: Role, token: &str, manager: &str) -> String {
    let role = view::role(role);
    format!(
        "To add a {role}, run on the other host:\n\n    meshctl cluster join --token {token} {manager}\n\n\
         To see this again: meshctl cluster join-token {role}\n"
    )
}
