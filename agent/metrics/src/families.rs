//! The families of metrics and how a status fills them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use mesh_ebpf_types::Reason;
use mesh_proto::v1;
use mesh_wireguard::{DropReason, EngineKind};

use crate::exposition::{Labels, Writer, bytes, family, seconds};

/// Writes every family for which the status has values. Without a cluster there are the agent's
/// own.
pub(super) fn write(to: &mut Writer<'_>, status: &v1::StatusResponse) -> fmt::Result {
    agent(to, status)?;
    if let Some(node) = &status.node {
        member(to, status, node)?;
    }
    paths(to, &status.paths)?;
    connections(to, status)?;
    packets(to, &status.counters)?;
    names(to, &status.name_servers)?;
    wireguard(to, status)
}

fn agent(to: &mut Writer<'_>, status: &v1::StatusResponse) -> fmt::Result {
    to.info(family("mesh_build", "The agent's version."), [vec![("version", status.version.clone())]])?;
    let datapath = vec![
        ("encapsulation", status.encapsulation.clone()),
        ("interface", status.data_path_interface.clone()),
        ("xdp", status.xdp.clone()),
    ];
    to.info(family("mesh_datapath", "Encapsulation, data-path interface and XDP mode."), [datapath])?;
    to.value(
        family("mesh_member", "Whether the host is a member of a cluster."),
        u64::from(status.node.is_some()),
    )?;
    to.value(
        family("mesh_problems", "Current problems, as listed by meshctl status."),
        count(&status.problems),
    )?;
    to.value(bytes("process_resident_memory", "Resident memory of the agent."), status.resident_bytes)
}

fn member(to: &mut Writer<'_>, status: &v1::StatusResponse, node: &v1::Node) -> fmt::Result {
    let cluster = status.cluster.as_ref().map(|cluster| cluster.id.clone()).unwrap_or_default();
    let itself = vec![("cluster", cluster), ("node", node.name.clone()), ("node_id", node.id.clone())];
    to.info(family("mesh_node", "Cluster and node of this host."), [itself])?;
    for (family, value) in [
        (
            family("mesh_session", "Whether the agent has a session with a manager."),
            u64::from(!status.manager.is_empty()),
        ),
        (
            family("mesh_revision", "Last revision of the cluster's records that the agent received."),
            status.revision,
        ),
        (
            family("mesh_applied_revision", "Last revision that is applied in the kernel."),
            status.applied_revision,
        ),
        (family("mesh_endpoints", "Endpoints on this host."), status.endpoints.into()),
        (family("mesh_networks", "Networks of the cluster."), status.networks.into()),
        (family("mesh_services", "Services that this host knows."), status.services.into()),
        (
            bytes("mesh_datapath_mtu", "MTU of the data-path interface; 0 until it is known."),
            status.data_path_mtu.into(),
        ),
    ] {
        to.value(family, value)?;
    }
    match status.refused_joins {
        Some(refused) => {
            let help = "Join attempts with a wrong token that this manager refused since it started.";
            to.total(family("mesh_refused_joins", help), refused)
        }
        None => Ok(()),
    }
}

fn paths(to: &mut Writer<'_>, paths: &[v1::PeerPath]) -> fmt::Result {
    let each = paths.iter().map(|path| {
        let by = if path.encrypted { "wireguard" } else { "vxlan" };
        (vec![("peer", path.node.clone()), ("path", by.to_owned())], u64::from(path.reachable))
    });
    let help = "Whether the other node answers probes of this path.";
    to.gauge(family("mesh_path_reachable", help), each)
}

fn connections(to: &mut Writer<'_>, status: &v1::StatusResponse) -> fmt::Result {
    // Before the programs are loaded there is no table.
    let Some(connections) = &status.connections else { return Ok(()) };
    to.value(
        family("mesh_connections_capacity", "Capacity of the table of connections to services, in entries."),
        connections.capacity,
    )?;
    let none = counted_networks(&status.counters).into_iter().map(|one| (one, 0));
    let some = connections.networks.iter().map(|one| ((one.vni, one.network.as_str()), one.entries));
    let entries: BTreeMap<(u32, &str), u64> = none.chain(some).collect();
    let entries = entries.into_iter().map(|((vni, name), entries)| (network(name, vni), entries));
    let help = "Entries in the table of connections to services; VNI 0: connections to published ports that entered on this host.";
    to.gauge(family("mesh_connections", help), entries)?;
    let forgotten = connections.networks.iter().map(|one| (network(&one.network, one.vni), one.forgotten));
    let help = "Entries removed because their network used more than its share.";
    to.counter(family("mesh_connections_forgotten", help), forgotten)
}

/// The networks, by VNI and name, of which anything is counted, and none in particular.
fn counted_networks(counters: &[v1::Counter]) -> BTreeSet<(u32, &str)> {
    let counted = counters.iter().map(|one| (one.vni, one.network.as_str()));
    counted.chain([(0, "")]).collect()
}

/// What was dropped is not among what was carried or answered; what the XDP program sent on is, and
/// is reported beside it.
fn packets(to: &mut Writer<'_>, counters: &[v1::Counter]) -> fmt::Result {
    let early = |counter: &&v1::Counter| counter.reason == Reason::SentEarly.name();
    let carried =
        |counter: &&v1::Counter| !early(counter) && !drop_reasons().any(|drop| drop == counter.reason);
    let with_reason = |counter: &v1::Counter| {
        let mut labels = network(&counter.network, counter.vni);
        labels.push(("reason", counter.reason.clone()));
        labels
    };
    let carried_packets = counters.iter().filter(carried).map(|one| (with_reason(one), one.packets));
    to.counter(
        family("mesh_packets", "Packets that were carried or answered, by counter."),
        carried_packets,
    )?;
    let carried_bytes = counters.iter().filter(carried).map(|one| (with_reason(one), one.bytes));
    to.counter(bytes("mesh", "Bytes of packets that were carried or answered, by counter."), carried_bytes)?;
    let help = "Packets that the driver of the data-path interface forwarded (XDP).";
    let early = counters.iter().filter(early).map(|one| (network(&one.network, one.vni), one.packets));
    to.counter(family("mesh_xdp_packets", help), early)?;
    to.counter(family("mesh_dropped_packets", "Dropped packets, by reason."), drops(counters))
}

/// The drops of each network of which anything is counted, and those of no network in particular.
/// Those that have not happened are 0: the first of a kind could not be distinguished from a series
/// that is merely new.
fn drops(counters: &[v1::Counter]) -> Vec<(Labels, u64)> {
    if counters.is_empty() {
        return Vec::new();
    }
    let counted: BTreeMap<(u32, &str), u64> =
        counters.iter().map(|one| ((one.vni, one.reason.as_str()), one.packets)).collect();
    let networks = counted_networks(counters).into_iter();
    let series = networks.flat_map(|one| drop_reasons().map(move |reason| (one, reason)));
    let sample = |((vni, name), reason): ((u32, &str), &'static str)| {
        let mut labels = network(name, vni);
        labels.push(("reason", reason.to_owned()));
        (labels, counted.get(&(vni, reason)).copied().unwrap_or_default())
    };
    series.map(sample).collect()
}

fn drop_reasons() -> impl Iterator<Item = &'static str> {
    Reason::ALL.iter().filter(|reason| reason.is_drop()).map(|reason| reason.name())
}

fn names(to: &mut Writer<'_>, servers: &[v1::NameServer]) -> fmt::Result {
    let each = |value: fn(&v1::NameServer) -> u64| {
        servers.iter().map(move |server| (vec![("network", server.network.clone())], value(server)))
    };
    let help = "DNS queries that the network's name server received.";
    to.counter(family("mesh_dns_queries", help), each(|server| server.queries))?;
    let help = "DNS queries that were forwarded to the host's resolvers.";
    to.counter(family("mesh_dns_forwarded", help), each(|server| server.forwarded))?;
    let help = "DNS queries that were answered with SERVFAIL.";
    to.counter(family("mesh_dns_failed", help), each(|server| server.failed))?;
    let help = "Messages to the network's name server that were not a valid query.";
    to.counter(family("mesh_dns_malformed", help), each(|server| server.malformed))
}

fn wireguard(to: &mut Writer<'_>, status: &v1::StatusResponse) -> fmt::Result {
    // While no network here is encrypted there is no engine.
    if status.wireguard_engine.is_empty() {
        return Ok(());
    }
    let engine = vec![("engine", status.wireguard_engine.clone())];
    to.info(family("mesh_wireguard", "WireGuard engine of this host."), [engine])?;
    to.counter(
        family("mesh_wireguard_dropped_packets", "Packets that the WireGuard engine dropped, by reason."),
        engine_drops(status),
    )?;
    let peers = &status.wireguard_peers;
    let endpoints = peers.iter().map(|peer| {
        let mut labels = node(peer);
        labels.push(("endpoint", peer.endpoint.clone()));
        labels
    });
    to.info(
        family("mesh_wireguard_peer", "Address and port of the other node's end of the tunnel."),
        endpoints,
    )?;
    let received = peers.iter().map(|peer| (node(peer), peer.received_bytes));
    to.counter(
        bytes("mesh_wireguard_peer_received", "Bytes received from the node through WireGuard."),
        received,
    )?;
    let sent = peers.iter().map(|peer| (node(peer), peer.sent_bytes));
    to.counter(bytes("mesh_wireguard_peer_sent", "Bytes sent to the node through WireGuard."), sent)?;
    let handshakes = peers.iter().filter_map(|peer| Some((node(peer), handshake(peer)?)));
    let help = "Time of the last handshake with the node, as Unix time; absent without a handshake.";
    to.gauge(seconds("mesh_wireguard_peer_last_handshake", help), handshakes)
}

/// The kernel's engine does not say what it drops.
fn engine_drops(status: &v1::StatusResponse) -> Vec<(Labels, u64)> {
    if status.wireguard_engine == EngineKind::Kernel.name() {
        return Vec::new();
    }
    let counted: BTreeMap<&str, u64> =
        status.wireguard_drops.iter().map(|drops| (drops.reason.as_str(), drops.packets)).collect();
    let sample = |reason: DropReason| {
        let packets = counted.get(reason.name()).copied().unwrap_or_default();
        (vec![("reason", reason.name().to_owned())], packets)
    };
    DropReason::ALL.into_iter().map(sample).collect()
}

fn handshake(peer: &v1::WireguardPeer) -> Option<u64> {
    let at: Timestamp = peer.last_handshake.parse().ok()?;
    u64::try_from(at.as_second()).ok()
}

/// Which network; the name is empty where there is none, and the VNI 0 where it is not known.
fn network(name: &str, vni: u32) -> Labels {
    vec![("network", name.to_owned()), ("vni", vni.to_string())]
}

/// Which node; two that have gone may both be without a name.
fn node(peer: &v1::WireguardPeer) -> Labels {
    vec![("node", peer.node_name.clone()), ("node_id", peer.node_id.clone())]
}

fn count<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A status for which every family has a sample.
    fn complete() -> v1::StatusResponse {
        v1::StatusResponse {
            node: Some(v1::Node::default()),
            refused_joins: Some(0),
            paths: vec![v1::PeerPath::default()],
            connections: Some(v1::Connections {
                capacity: 1,
                networks: vec![v1::NetworkConnections::default()],
            }),
            counters: [Reason::Received, Reason::SentEarly]
                .map(|reason| v1::Counter { reason: reason.name().into(), ..v1::Counter::default() })
                .to_vec(),
            name_servers: vec![v1::NameServer::default()],
            wireguard_engine: EngineKind::Userspace.name().into(),
            wireguard_peers: vec![v1::WireguardPeer {
                last_handshake: "1970-01-01T00:01:00Z".into(),
                ..v1::WireguardPeer::default()
            }],
            ..v1::StatusResponse::default()
        }
    }

    /// The rows that the reference must have: name, type and labels of the first sample, help.
    fn rows(text: &str) -> Vec<String> {
        let mut rows = Vec::new();
        let (mut help, mut kind) = ("", "");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                (help, kind) = (rest.split_once(' ').unwrap().1, "");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                kind = rest.split_once(' ').unwrap().1;
            } else if !line.starts_with('#') && !kind.is_empty() {
                let (series, _) = line.rsplit_once(' ').unwrap();
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let labels: Vec<String> = labels
                    .trim_end_matches('}')
                    .split(',')
                    .filter_map(|label| label.split_once('='))
                    .map(|(label, _)| format!("`{label}`"))
                    .collect();
                rows.push(
                    format!("| `{name}` | {kind} | {} | {help} |", labels.join(", ")).replace("  ", " "),
                );
                kind = "";
            }
        }
        rows
    }

    #[test]
    fn the_reference_has_every_metric_with_its_type_labels_and_help() {
        let page = include_str!("../../../docs/reference/metrics.md");
        let documented: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        let expected = rows(&crate::text::text(complete()));
        assert!(expected.len() > 30, "{expected:?}");
        assert!(documented == expected, "docs/reference/metrics.md must have:\n{}", expected.join("\n"));
    }

    /// The samples of the families whose names begin so, in order.
    fn samples(status: v1::StatusResponse, start: &str) -> Vec<String> {
        let text = crate::text::text(status);
        text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
    }

    #[test]
    fn packets_are_told_once_and_drops_apart_from_what_was_carried() {
        let counter = |vni, network: &str, reason: Reason, packets| v1::Counter {
            vni,
            network: network.into(),
            reason: reason.name().into(),
            packets,
            bytes: 100 * packets,
        };
        let status = v1::StatusResponse {
            counters: vec![
                counter(4096, "app", Reason::Published, 5),
                counter(4096, "app", Reason::SentEarly, 4),
                counter(4096, "app", Reason::Isolated, 3),
            ],
            ..v1::StatusResponse::default()
        };
        let of = |start| samples(status.clone(), start);
        let app = "network=\"app\",vni=\"4096\"";
        assert_eq!(of("mesh_packets_total"), [format!("mesh_packets_total{{{app},reason=\"published\"}} 5")]);
        assert_eq!(of("mesh_bytes_total"), [format!("mesh_bytes_total{{{app},reason=\"published\"}} 500")]);
        assert_eq!(of("mesh_xdp_packets_total"), [format!("mesh_xdp_packets_total{{{app}}} 4")]);
        let drops = of("mesh_dropped_packets_total");
        assert_eq!(drops.len(), 2 * drop_reasons().count(), "of the network and of none: {drops:?}");
        let happened: Vec<_> = drops.iter().filter(|line| !line.ends_with(" 0")).collect();
        assert_eq!(happened, [&format!("mesh_dropped_packets_total{{{app},reason=\"isolated\"}} 3")]);
    }

    #[test]
    fn a_network_without_flows_has_none_of_them_and_is_told_once() {
        let entries = |vni, network: &str, entries| v1::NetworkConnections {
            vni,
            network: network.into(),
            entries,
            forgotten: 0,
        };
        let counter = |vni, network: &str| v1::Counter {
            vni,
            network: network.into(),
            reason: Reason::Received.name().into(),
            ..v1::Counter::default()
        };
        let status = v1::StatusResponse {
            counters: vec![counter(4096, "app"), counter(4097, "idle")],
            connections: Some(v1::Connections { capacity: 9, networks: vec![entries(4096, "app", 3)] }),
            ..v1::StatusResponse::default()
        };
        assert_eq!(
            samples(status, "mesh_connections{"),
            [
                "mesh_connections{network=\"\",vni=\"0\"} 0",
                "mesh_connections{network=\"app\",vni=\"4096\"} 3",
                "mesh_connections{network=\"idle\",vni=\"4097\"} 0",
            ]
        );
    }

    #[test]
    fn peers_without_names_are_told_apart_and_the_kernels_engine_counts_no_drops() {
        let peer = |id: &str, last_handshake: &str| v1::WireguardPeer {
            node_id: id.into(),
            last_handshake: last_handshake.into(),
            ..v1::WireguardPeer::default()
        };
        let status = v1::StatusResponse {
            wireguard_engine: EngineKind::Kernel.name().into(),
            wireguard_peers: vec![peer("a", ""), peer("b", "1970-01-01T00:01:00Z")],
            ..v1::StatusResponse::default()
        };
        assert_eq!(samples(status.clone(), "mesh_wireguard_dropped"), [""; 0]);
        assert_eq!(samples(status.clone(), "mesh_wireguard_peer_sent_bytes_total").len(), 2);
        assert_eq!(
            samples(status, "mesh_wireguard_peer_last_handshake_seconds"),
            ["mesh_wireguard_peer_last_handshake_seconds{node=\"\",node_id=\"b\"} 60"]
        );
    }
}
