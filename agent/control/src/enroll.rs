//! The manager's side of joining.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use jiff::Timestamp;
use mesh_model::{Availability, Network, Node, NodeId, Role};
use mesh_proto::convert::{parse, parse_optional};
use mesh_proto::v1::{JoinRequest, JoinResponse};
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{Compare, Op, Txn};
use tracing::info;

use crate::core::Core;
use crate::errors::{identity_problem, usage};
use crate::identity::{NODE_VALIDITY, PeerIdentity};
use crate::records::{RecordError, Tries, Versioned, put};
use crate::token::{JoinToken, TokenRecord};
use crate::{keys, reports};

/// Admits a host with a token: checks the token, writes the node's record, and issues the
/// certificate.
///
/// `previous` is the identity whose certificate the host presented. A host that claims an earlier
/// identity keeps it if it has proved it and its record still exists. A removed node gets a new id:
/// its old certificate must not become valid again.
pub(crate) async fn join(
    core: &Core,
    request: JoinRequest,
    previous: Option<PeerIdentity>,
    address: Option<IpAddr>,
) -> Result<JoinResponse, Problem> {
    if let Some(address) = address {
        core.attempts.check(address, Instant::now())?;
    }
    let token: Result<JoinToken, _> = request.token.parse();
    let role = match token {
        Ok(token) => role_of(core, &token).await,
        Err(error) => Err(Problem::new(ProblemKind::Usage, error.to_string())),
    };
    if let (Some(address), Err(problem)) = (address, &role)
        && matches!(problem.kind, ProblemKind::Denied | ProblemKind::Usage)
    {
        core.attempts.failed(address, Instant::now());
    }
    let role = role?;
    check_role(core, role)?;
    let known: Option<NodeId> = parse_optional("node_id", &request.node_id).map_err(|e| usage(&e))?;
    // In a cluster within one host, whose manager has a loopback address, other nodes may have
    // loopback addresses too.
    let own = core.records.node(core.node_id()).await?;
    let is_local = own.is_some_and(|own| own.value.data_path_addr.is_loopback());
    let mut node = requested_node(&request, role, is_local).map_err(|error| match error {
        InvalidJoin::Message(error) => usage(&error),
        InvalidJoin::Random(error) => RecordError::from(error).into(),
    })?;
    if let Some(known) = known
        && core.records.node(&known).await?.is_some()
    {
        let is_proved = previous.is_some_and(|p| p.node == known && p.cluster == core.cluster().id);
        if !is_proved {
            return Err(Problem::new(
                ProblemKind::Denied,
                format!("the host claims to be node {known} but presents no valid certificate for it"),
            )
            .hint("remove the old node first: meshctl node rm on a manager"));
        }
        node.id = known;
    }
    // Sign before writing anything: a request that cannot be signed must leave nothing behind.
    let certificate = core
        .authority
        .issue(&request.csr_pem, &node.id, role, NODE_VALIDITY)
        .map_err(|e| identity_problem(&e))?;
    let node = register(core, node).await?;
    info!(node = %node.id, name = %node.name, ?role, "a node joined");
    Ok(JoinResponse {
        node: Some((&node).into()),
        cluster: Some(core.cluster().into()),
        certificate_pem: certificate,
        ca_pem: core.authority.cert_pem().to_owned(),
        managers: managers(core).await?,
    })
}

/// Refuses another manager if the store belongs to a single one.
pub(crate) fn check_role(core: &Core, role: Role) -> Result<(), Problem> {
    if role == Role::Worker || core.records.store().is_shared() {
        return Ok(());
    }
    Err(Problem::new(ProblemKind::Failed, "a cluster supports one manager for now: another one cannot join")
        .hint("join the host as a worker: meshctl cluster join-token worker"))
}

/// Returns `HOST:PORT` of every manager.
pub(crate) async fn managers(core: &Core) -> Result<Vec<String>, RecordError> {
    let nodes = core.records.nodes().await?;
    Ok(manager_addresses(nodes.iter().map(|node| &node.value)))
}

/// Returns `HOST:PORT` of the managers among some nodes.
pub(crate) fn manager_addresses<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<String> {
    nodes.filter(|node| node.role == Role::Manager).map(|node| node.advertise_addr.to_string()).collect()
}

async fn role_of(core: &Core, token: &JoinToken) -> Result<Role, Problem> {
    if token.ca != core.authority.fingerprint() {
        return Err(Problem::new(
            ProblemKind::Denied,
            "the token belongs to another cluster: its CA differs",
        )
        .hint("use this cluster's token: meshctl cluster join-token worker"));
    }
    for role in [Role::Worker, Role::Manager] {
        let record: Option<Versioned<TokenRecord>> = core.records.get(keys::token(role)).await?;
        if record.is_some_and(|r| r.value.secret(core.authority.key_der(), role) == token.secret) {
            return Ok(role);
        }
    }
    Err(Problem::new(ProblemKind::Denied, "the token was rotated or mistyped")
        .hint("use the current one: run meshctl cluster join-token worker on a manager"))
}

enum InvalidJoin {
    Message(mesh_proto::InvalidMessage),
    Random(getrandom::Error),
}

impl From<mesh_proto::InvalidMessage> for InvalidJoin {
    fn from(error: mesh_proto::InvalidMessage) -> Self {
        Self::Message(error)
    }
}

fn requested_node(request: &JoinRequest, role: Role, is_local: bool) -> Result<Node, InvalidJoin> {
    let invalid = |field| move |reason| mesh_proto::InvalidMessage { field, reason };
    let mtu = reports::data_path_mtu(request.data_path_mtu).map_err(invalid("data_path_mtu"))?;
    let data_path_addr = parse("data_path_addr", &request.data_path_addr)?;
    let check = |address: IpAddr| {
        if is_local && address.is_loopback() { Ok(address) } else { reports::underlay_address(address) }
    };
    let data_path_addr = check(data_path_addr).map_err(invalid("data_path_addr"))?;
    let advertise_addr: SocketAddr = parse("advertise_addr", &request.advertise_addr)?;
    check(advertise_addr.ip()).map_err(invalid("advertise_addr"))?;
    if advertise_addr.port() == 0 {
        return Err(invalid("advertise_addr")("port 0 is invalid".to_owned()).into());
    }
    Ok(Node {
        id: NodeId::random().map_err(InvalidJoin::Random)?,
        name: parse("name", &request.name)?,
        role,
        availability: Availability::Active,
        advertise_addr,
        data_path_addr,
        data_path_mtu: mtu,
        version: reports::version(&request.version).map_err(invalid("version"))?,
        wireguard: None,
        host_addrs: std::collections::BTreeSet::new(),
        created_at: Timestamp::now(),
    })
}

/// Writes the record of a new node, or of one that joins again, which keeps its availability and
/// its leases.
async fn register(core: &Core, wanted: Node) -> Result<Node, Problem> {
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let mut node = wanted.clone();
        let mut read = core
            .records
            .read([
                Op::get_range(keys::nodes()),
                Op::get_range(keys::networks()),
                Op::get(keys::address_fence()),
            ])
            .await?;
        let nodes: Vec<Versioned<Node>> = read.all()?;
        let networks: Vec<Versioned<Network>> = read.all()?;
        let fence = read.fence(keys::address_fence());
        let old = nodes.iter().find(|old| old.value.id == node.id);
        for other in nodes.iter().filter(|other| other.value.id != node.id) {
            check_distinct(&node, &other.value)?;
        }
        check_underlay(&node, networks.iter().map(|network| &network.value))?;
        let mut compares = vec![fence.unchanged()];
        let mut ops = vec![fence.advance()];
        match old {
            None => compares.push(Compare::absent(keys::node(&node.id))),
            Some(old) => {
                compares.push(Compare::mod_revision(keys::node(&node.id), old.revision));
                node.created_at = old.value.created_at;
                node.availability = old.value.availability;
                node.wireguard.clone_from(&old.value.wireguard);
                if old.value.name != node.name {
                    ops.push(Op::delete(keys::node_name(&old.value.name)));
                }
            }
        }
        ops.push(put(keys::node(&node.id), &node));
        ops.push(put(keys::node_name(&node.name), &node.id));
        if core.records.commit(Txn::when(compares).then(ops)).await?.is_some() {
            return Ok(node);
        }
    }
}

/// Checks that two nodes differ in name and data-path address.
pub(crate) fn check_distinct(node: &Node, other: &Node) -> Result<(), Problem> {
    if node.name.is_same(&other.name) {
        return Err(Problem::new(
            ProblemKind::Conflict,
            format!("node name {} is taken by node {} at {}", other.name, other.id, other.data_path_addr),
        )
        .hint("choose another one with --node-name, or remove the old node: meshctl node rm on a manager"));
    }
    if node.data_path_addr == other.data_path_addr {
        return Err(Problem::new(
            ProblemKind::Conflict,
            format!("data-path address {} belongs to node {}", node.data_path_addr, other.name),
        )
        .hint("if this host was that node, remove it first: meshctl node rm on a manager"));
    }
    let advertised = node.advertise_addr.ip();
    if advertised != node.data_path_addr
        && [other.advertise_addr.ip(), other.data_path_addr].contains(&advertised)
    {
        return Err(Problem::new(
            ProblemKind::Conflict,
            format!("advertised address {advertised} belongs to node {}", other.name),
        )
        .hint("choose another one with --advertise-addr"));
    }
    Ok(())
}

/// Checks that no network contains the node's own addresses.
pub(crate) fn check_underlay<'a>(
    node: &Node,
    networks: impl Iterator<Item = &'a Network>,
) -> Result<(), Problem> {
    let addresses: [(&str, IpAddr); 2] =
        [("data-path", node.data_path_addr), ("advertised", node.advertise_addr.ip())];
    for network in networks {
        for subnet in &network.subnets {
            for (what, address) in addresses {
                if subnet.subnet.contains(address) {
                    return Err(Problem::new(
                        ProblemKind::Conflict,
                        format!(
                            "{what} address {address} is inside {} of network {}",
                            subnet.subnet, network.name
                        ),
                    )
                    .hint("choose another address, or remove that network"));
                }
            }
        }
    }
    Ok(())
}
