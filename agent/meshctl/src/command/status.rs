//! `meshctl status`

use mesh_proto::{Problem, v1};
use serde::Serialize;

use super::results::in_form;
use crate::client::Client;
use crate::format::Format;
use crate::table::{NONE, columns, details, or_none};
use crate::terminal::line;
use crate::view::{self, Cluster, Member, present};

/// The agent and its datapath.
#[derive(Debug, Serialize)]
struct Status {
    version: String,
    membership: String,
    cluster: Option<Cluster>,
    node: Option<Member>,
    manager: Option<String>,
    revision: u64,
    applied_revision: u64,
    encapsulation: Chosen,
    /// Whether the data-path device's driver sends on what only passes through.
    xdp: Chosen,
    endpoints: u32,
    networks: u32,
    services: u32,
    name_servers: Vec<NameServer>,
    /// Null while no encrypted network needs it.
    wireguard: Option<Wireguard>,
    connections: Option<Connections>,
    counters: Vec<Counter>,
    problems: Vec<String>,
    resident_bytes: u64,
    data_path: DataPath,
}

/// What the agent has chosen, and why so.
#[derive(Debug, Serialize)]
struct Chosen {
    mode: Option<String>,
    reason: Option<String>,
}

/// What the name server of one network did since the agent started.
#[derive(Debug, Serialize)]
struct NameServer {
    network: String,
    queries: u64,
    forwarded: u64,
    failed: u64,
    malformed: u64,
}

/// What carries encrypted networks on this host, and why that.
#[derive(Debug, Serialize)]
struct Wireguard {
    /// `kernel` or `userspace`.
    engine: String,
    reason: Option<String>,
    /// What the engine in user space dropped since it started.
    drops: Vec<Drops>,
}

/// Packets that were dropped for one reason.
#[derive(Debug, Serialize)]
struct Drops {
    reason: String,
    packets: u64,
}

/// The flows to services that this node remembers. A flow takes one or two entries.
#[derive(Debug, Serialize)]
struct Connections {
    capacity: u64,
    networks: Vec<NetworkConnections>,
}

/// Those of one network, or those to published ports that came in by this node (`vni` 0, `network`
/// null).
#[derive(Debug, Serialize)]
struct NetworkConnections {
    vni: u32,
    network: Option<String>,
    entries: u64,
}

/// A counter of one network, or of none in particular (`vni` 0).
#[derive(Debug, Serialize)]
struct Counter {
    vni: u32,
    /// Null for no network in particular.
    network: Option<String>,
    reason: String,
    packets: u64,
    bytes: u64,
}

/// The underlay's end on this host.
#[derive(Debug, Serialize)]
struct DataPath {
    interface: Option<String>,
    address: Option<String>,
    mtu: Option<u32>,
}

pub(super) async fn run(client: &Client, format: Option<Format>) -> Result<String, Problem> {
    let answer = client.call(client.local().await?.status(v1::StatusRequest {})).await?;
    in_form(&status(answer)?, format, as_text)
}

fn status(answer: v1::StatusResponse) -> Result<Status, Problem> {
    let address = answer.node.as_ref().map(|node| node.data_path_addr.clone());
    let counter = |counter: v1::Counter| Counter {
        vni: counter.vni,
        network: present(counter.network),
        reason: counter.reason,
        packets: counter.packets,
        bytes: counter.bytes,
    };
    let name_server = |server: v1::NameServer| NameServer {
        network: server.network,
        queries: server.queries,
        forwarded: server.forwarded,
        failed: server.failed,
        malformed: server.malformed,
    };
    let drops = answer.wireguard_drops.into_iter();
    let drops = drops.map(|drops| Drops { reason: drops.reason, packets: drops.packets }).collect();
    let of_network = |one: v1::NetworkConnections| NetworkConnections {
        vni: one.vni,
        network: present(one.network),
        entries: one.entries,
    };
    let connections = answer.connections.map(|connections| Connections {
        capacity: connections.capacity,
        networks: connections.networks.into_iter().map(of_network).collect(),
    });
    Ok(Status {
        version: answer.version,
        membership: answer.membership,
        cluster: answer.cluster.map(Into::into),
        node: answer.node.map(Member::try_from).transpose()?,
        manager: present(answer.manager),
        revision: answer.revision,
        applied_revision: answer.applied_revision,
        encapsulation: Chosen {
            mode: present(answer.encapsulation),
            reason: present(answer.encapsulation_reason),
        },
        xdp: Chosen { mode: present(answer.xdp), reason: present(answer.xdp_reason) },
        endpoints: answer.endpoints,
        networks: answer.networks,
        services: answer.services,
        name_servers: answer.name_servers.into_iter().map(name_server).collect(),
        wireguard: present(answer.wireguard_engine).map(|engine| {
            let reason = present(answer.wireguard_engine_reason);
            Wireguard { engine, reason, drops }
        }),
        connections,
        counters: answer.counters.into_iter().map(counter).collect(),
        problems: answer.problems,
        resident_bytes: answer.resident_bytes,
        data_path: DataPath {
            interface: present(answer.data_path_interface),
            address,
            mtu: (answer.data_path_mtu != 0).then_some(answer.data_path_mtu),
        },
    })
}

fn as_text(status: &Status) -> String {
    let node =
        status.node.as_ref().map(|node| format!("{} ({}), {}", node.name, node.id, view::role(node.role)));
    let of = |one: &Chosen| one.mode.as_ref().map(|mode| chosen(mode, one.reason.as_ref()));
    let (encapsulation, xdp) = (of(&status.encapsulation), of(&status.xdp));
    let wireguard =
        status.wireguard.as_ref().map(|wireguard| chosen(&wireguard.engine, wireguard.reason.as_ref()));
    let DataPath { interface, address, mtu } = &status.data_path;
    let data_path = interface.as_ref().map(|interface| {
        format!("{interface}, address {}, MTU {}", or_none(address.as_ref()), or_none(*mtu))
    });
    let mut text = details([
        ("Version", status.version.clone()),
        ("Membership", status.membership.clone()),
        ("Cluster", or_none(status.cluster.as_ref().map(|cluster| &cluster.id))),
        ("Node", or_none(node)),
        ("Manager", or_none(status.manager.as_ref())),
        ("Revision", format!("{} applied of {}", status.applied_revision, status.revision)),
        ("Encapsulation", or_none(encapsulation)),
        ("Data path", or_none(data_path)),
        ("XDP", or_none(xdp)),
        ("WireGuard", or_none(wireguard)),
        ("Endpoints", status.endpoints.to_string()),
        ("Networks", status.networks.to_string()),
        ("Services", status.services.to_string()),
        ("Connections", or_none(status.connections.as_ref().map(occupancy))),
        ("Memory", mebibytes(status.resident_bytes)),
    ]);
    if !status.problems.is_empty() {
        text += "\nPROBLEMS\n";
        text.extend(status.problems.iter().map(|problem| format!("{}\n", line(problem))));
    }
    if !status.name_servers.is_empty() {
        let rows = status.name_servers.iter().map(|server| {
            let counts = [server.queries, server.forwarded, server.failed, server.malformed];
            let [queries, forwarded, failed, malformed] = counts.map(|count| count.to_string());
            [server.network.clone(), queries, forwarded, failed, malformed]
        });
        text += "\n";
        text += &columns(["NAMES OF", "QUERIES", "FORWARDED", "FAILED", "MALFORMED"], rows);
    }
    let drops = status.wireguard.as_ref().map_or(&[][..], |wireguard| &wireguard.drops);
    if !drops.is_empty() {
        let rows = drops.iter().map(|drops| [drops.reason.clone(), drops.packets.to_string()]);
        text += "\n";
        text += &columns(["WIREGUARD DROPS", "PACKETS"], rows);
    }
    if !status.counters.is_empty() {
        let rows = status.counters.iter().map(|counter| {
            [
                if counter.vni == 0 { NONE.to_owned() } else { counter.vni.to_string() },
                or_none(counter.network.as_ref()),
                counter.reason.clone(),
                counter.packets.to_string(),
                counter.bytes.to_string(),
            ]
        });
        text += "\n";
        text += &columns(["VNI", "NETWORK", "COUNTER", "PACKETS", "BYTES"], rows);
    }
    text
}

/// `direct (set by option)`
pub(super) fn chosen(what: &str, reason: Option<&String>) -> String {
    reason.map_or_else(|| what.to_owned(), |reason| format!("{what} ({reason})"))
}

/// `12 of 131072 entries: app 10, published ports 2`
fn occupancy(connections: &Connections) -> String {
    let Connections { capacity, networks } = connections;
    let used: u64 = networks.iter().map(|one| one.entries).sum();
    let each = networks.iter().map(|one| {
        let whose = match &one.network {
            Some(network) => network.clone(),
            None if one.vni == 0 => "published ports".to_owned(),
            None => format!("VNI {}", one.vni),
        };
        format!("{whose} {}", one.entries)
    });
    let each: Vec<String> = each.collect();
    let separator = if each.is_empty() { "" } else { ": " };
    format!("{used} of {capacity} entries{separator}{}", each.join(", "))
}

/// Bytes in MiB with one decimal, in whole numbers: this is for reading, not for reckoning.
fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
