//! Published ports: unique in the cluster by address, and free on every host.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::port_list::{numbers, ranges, shortened};
use mesh_model::{NodeId, Protocol, PublishedPort, Service, ServiceId};
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{Compare, Op, Revision};

use super::desk::{Choice, Choosing};
use super::{decoys, network_name, node_name};
use crate::core::Core;
use crate::records::{RecordError, Versioned, put};
use crate::sessions::registry::PortAnswer;
use crate::view::View;
use crate::{keys, limits};

/// The explanation for a node that claims more ports than it can use.
const DOUBTFUL: &str = "it claims to use nearly every port, so its answer is not trusted";

/// The agents' reports about their hosts' sockets.
#[derive(Debug, Default)]
pub(super) struct Checked {
    free: BTreeSet<PublishedPort>,
    /// Chosen ports that turned out to be in use.
    avoid: BTreeSet<(Protocol, u16)>,
    /// Nodes that were away: they check the ports when they return.
    unchecked: BTreeSet<NodeId>,
}

/// Returns the ports with open ones chosen; `own`: the service that will have them, if it exists.
pub(super) fn choose(
    view: &View,
    wanted: &[PublishedPort],
    own: Option<&ServiceId>,
    checked: &Checked,
    choosing: &mut Choosing<'_>,
) -> Result<Vec<PublishedPort>, Problem> {
    let mut ports = Vec::new();
    let mut published_by: BTreeMap<ServiceId, Vec<PublishedPort>> = BTreeMap::new();
    for port in wanted {
        let published = match (port.protocol, port.published) {
            // The kernel's helpers cannot update SCTP's checksum, so only addresses can be
            // translated.
            (Protocol::Sctp, 0) => port.target,
            (Protocol::Sctp, given) if given != port.target => return Err(renumbered_sctp(port)),
            (_, 0) => automatic(view, port.protocol, checked, choosing)?,
            (_, given) => given,
        };
        let port = PublishedPort { published, ..*port };
        if let Some((other, _)) = view.services.publisher(&port, own) {
            published_by.entry(other.id.clone()).or_default().push(port);
        }
        ports.push(port);
    }
    if published_by.is_empty() { Ok(ports) } else { Err(published_already(view, &published_by)) }
}

/// Returns the conflict for all requested ports that other services publish, in one line.
fn published_already(view: &View, by: &BTreeMap<ServiceId, Vec<PublishedPort>>) -> Problem {
    let each = by.iter().filter_map(|(id, ports)| {
        let service = view.services.get(id)?;
        let network = network_name(view, &service.network);
        Some(format!("{} published by service {} of network {network} already", are(ports), service.name))
    });
    Problem::new(ProblemKind::Conflict, each.collect::<Vec<_>>().join("; "))
        .hint("publish other ports, or remove these from the other service")
}

/// Formats `port 80/tcp is` or `ports 80-82/tcp are`.
fn are(ports: &[PublishedPort]) -> String {
    let verb = if ports.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", called(ports))
}

/// Formats `port 80/tcp` or `ports 80-82/tcp, 90/udp`.
fn called(ports: &[PublishedPort]) -> String {
    let plural = if ports.len() == 1 { "" } else { "s" };
    format!("port{plural} {}", shortened(numbers(ports)).join(", "))
}

fn renumbered_sctp(port: &PublishedPort) -> Problem {
    let PublishedPort { published, target, .. } = port;
    Problem::new(
        ProblemKind::Usage,
        format!("port {published}/sctp cannot be mapped to port {target}: sctp requires the same number"),
    )
    .hint(format!("publish {target}:{target}/sctp"))
}

fn automatic(
    view: &View,
    protocol: Protocol,
    checked: &Checked,
    choosing: &mut Choosing<'_>,
) -> Result<u16, Problem> {
    let mut all = PublishedPort::AUTOMATIC;
    let is_free = |port: &u16| {
        !view.services.is_published(protocol, *port)
            && !checked.avoid.contains(&(protocol, *port))
            && !choosing.taken().contains(&Choice::Port(protocol, *port))
    };
    let port = all.find(is_free).ok_or_else(|| {
        let (first, last) = (PublishedPort::AUTOMATIC.start(), PublishedPort::AUTOMATIC.end());
        Problem::new(
            ProblemKind::Exhausted,
            format!("every {protocol} port from {first} to {last} is in use"),
        )
        .hint("specify the published port")
    })?;
    choosing.take(Choice::Port(protocol, port));
    Ok(port)
}

impl Checked {
    /// Asks the agents of all nodes about the ports that were not checked yet. Returns false if a
    /// chosen port is in use and another must be chosen. Fails if a requested port is in use, or if
    /// an agent in session does not answer, since the port may not be free.
    pub(super) async fn check(
        &mut self,
        core: &Core,
        wanted: &[PublishedPort],
        chosen: &[PublishedPort],
    ) -> Result<bool, Problem> {
        let open: Vec<PublishedPort> =
            chosen.iter().filter(|port| !self.free.contains(port)).copied().collect();
        if open.is_empty() {
            return Ok(true);
        }
        let answers = check_host_ports(core, &open).await?;
        let wanted: BTreeSet<&PublishedPort> = wanted.iter().collect();
        self.free.extend(&open);
        let mut is_fit = true;
        for port in answers.taken.values().flatten() {
            self.free.remove(port);
            if !wanted.contains(port) {
                self.avoid.insert((port.protocol, port.published));
                is_fit = false;
            }
        }
        if let Some(problem) = answers.in_use(core, |port| wanted.contains(port)) {
            return Err(problem);
        }
        self.unchecked.extend(answers.away);
        Ok(is_fit)
    }

    /// Returns the names of the nodes that were away.
    pub(super) fn unchecked(&self, core: &Core) -> Vec<String> {
        let view = core.feed.view();
        self.unchecked.iter().map(|node| node_name(&view, node)).collect()
    }
}

/// The answers of the hosts' agents about ports.
#[derive(Debug, Default)]
pub(crate) struct HostAnswers {
    /// The ports that sockets of each host use.
    taken: BTreeMap<NodeId, Vec<PublishedPort>>,
    /// Nodes without a session.
    away: BTreeSet<NodeId>,
}

/// Asks the agents of all nodes about ports. Fails if an agent in session does not answer.
pub(crate) async fn check_host_ports(core: &Core, ports: &[PublishedPort]) -> Result<HostAnswers, Problem> {
    // Right after this manager's start, agents are about to reconnect. Its own agent is in this
    // process.
    if core.nodes_without_report().iter().any(|node| node != core.node_id()) {
        core.first_reports().await;
    }
    let nodes: Vec<NodeId> = core.feed.view().nodes.keys().cloned().collect();
    let decoys = decoys::of(ports);
    let question: Vec<PublishedPort> = ports.iter().chain(&decoys).copied().collect();
    let mut answers = core.sessions.check_ports(nodes, &question, limits::PORT_CHECK).await;
    for node in decoys::take_out(&mut answers, &decoys) {
        core.faults.set(&node, "ports", Some(DOUBTFUL.to_owned()));
    }
    let mut found = HostAnswers::default();
    let mut failure = None;
    for (node, answer) in answers {
        let name = || node_name(&core.feed.view(), &node);
        match answer {
            PortAnswer::Silent => failure = Some(unanswered(&name(), "its agent did not respond in time")),
            PortAnswer::Failed(why) => failure = Some(unanswered(&name(), &why)),
            PortAnswer::Away => _ = found.away.insert(node),
            PortAnswer::Taken(taken) if taken.is_empty() => {}
            PortAnswer::Taken(taken) => _ = found.taken.insert(node, taken),
        }
    }
    // A port that is known to be in use is the more useful answer.
    match failure {
        Some(failure) if found.taken.is_empty() => Err(failure),
        _ => Ok(found),
    }
}

impl HostAnswers {
    /// Returns the conflict for the ports that sockets use, in one line.
    pub(crate) fn in_use(&self, core: &Core, is_wanted: impl Fn(&PublishedPort) -> bool) -> Option<Problem> {
        let mut nodes = BTreeMap::<Vec<PublishedPort>, Vec<String>>::new();
        for (node, taken) in &self.taken {
            let taken: Vec<PublishedPort> = taken.iter().filter(|port| is_wanted(port)).copied().collect();
            if !taken.is_empty() {
                nodes.entry(taken).or_default().push(node_name(&core.feed.view(), node));
            }
        }
        let each = nodes.iter().map(|(ports, nodes)| {
            let node = if nodes.len() == 1 { "node" } else { "nodes" };
            let sockets = match (ports.len(), nodes.len()) {
                (1, 1) => "a socket of that host uses it",
                (1, _) => "sockets of those hosts use it",
                (_, 1) => "sockets of that host use them",
                (_, _) => "sockets of those hosts use them",
            };
            format!("{} in use on {node} {}: {sockets}", are(ports), nodes.join(", "))
        });
        let each: Vec<String> = each.collect();
        let nodes: BTreeSet<&str> = nodes.values().flatten().map(String::as_str).collect();
        let nodes: Vec<&str> = nodes.into_iter().collect();
        let first = nodes.first().copied().unwrap_or_default();
        let hint = format!(
            "publish another port, or stop the program that uses it on {} (`ss -lntup` shows it); a node that wrongly reports a conflict can be removed: meshctl node rm --force {first}",
            nodes.join(", ")
        );
        (!each.is_empty()).then(|| Problem::new(ProblemKind::Conflict, each.join("; ")).hint(hint))
    }

    /// Returns the names of the nodes that were away.
    pub(crate) fn unchecked(&self, core: &Core) -> Vec<String> {
        let view = core.feed.view();
        self.away.iter().map(|node| node_name(&view, node)).collect()
    }
}

fn unanswered(node: &str, why: &str) -> Problem {
    Problem::new(
        ProblemKind::Unreachable,
        format!("node {node} cannot say whether sockets of its host have the ports: {why}"),
    )
    .hint(format!("try again; if the error persists, see `meshctl status` on {node}"))
}

/// The publishers of one port: by host address or `any`.
type Publishers = BTreeMap<String, ServiceId>;

/// The records of some ports as read.
pub(super) struct PortRecords(BTreeMap<(Protocol, u16), (Revision, Publishers)>);

impl PortRecords {
    /// Returns the reads for [`PortRecords::of`].
    pub(super) fn reads(ports: &[PublishedPort]) -> impl Iterator<Item = Op> {
        keys_of(ports).into_iter().map(|(protocol, port)| Op::get(keys::port(protocol, port)))
    }

    pub(super) fn of(ports: &[PublishedPort], read: &mut crate::records::Read) -> Result<Self, RecordError> {
        let mut records = BTreeMap::new();
        for key in keys_of(ports) {
            let found: Option<Versioned<Publishers>> = read.one()?;
            let record = found.map_or((Revision::NEVER, Publishers::new()), |one| (one.revision, one.value));
            records.insert(key, record);
        }
        Ok(Self(records))
    }

    /// Releases a port, if it is the service's.
    pub(super) fn remove(&mut self, port: &PublishedPort, service: &ServiceId) {
        if let Some((_, publishers)) = self.0.get_mut(&(port.protocol, port.published)) {
            publishers.retain(|address, owner| *address != address_key(port) || owner != service);
        }
    }

    /// Takes a port; returns false if another service has it.
    pub(super) fn add(&mut self, port: &PublishedPort, service: &ServiceId) -> bool {
        let Some((_, publishers)) = self.0.get_mut(&(port.protocol, port.published)) else { return false };
        let address = address_key(port);
        let is_free = publishers.is_empty() || (port.host_ip.is_some() && !publishers.contains_key("any"));
        if !is_free || publishers.contains_key(&address) {
            return false;
        }
        publishers.insert(address, service.clone());
        true
    }

    /// Returns the condition that the records are unchanged, and the operations to write them.
    pub(super) fn write(&self) -> (Vec<Compare>, Vec<Op>) {
        let each = self.0.iter().map(|(&(protocol, port), (revision, publishers))| {
            let key = keys::port(protocol, port);
            let compare = Compare::mod_revision(key.clone(), *revision);
            (compare, if publishers.is_empty() { Op::delete(key) } else { put(key, publishers) })
        });
        each.unzip()
    }
}

fn keys_of(ports: &[PublishedPort]) -> BTreeSet<(Protocol, u16)> {
    ports.iter().map(|port| (port.protocol, port.published)).collect()
}

fn address_key(port: &PublishedPort) -> String {
    port.host_ip.map_or_else(|| "any".to_owned(), |address| address.to_string())
}

/// Lists the published ports of a service, for messages.
pub(super) fn named(service: &Service) -> String {
    shortened(ranges(&service.ports)).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<&str>) -> PublishedPort {
        let host_ip = host_ip.map(|address| address.parse().unwrap());
        PublishedPort { host_ip, ..PublishedPort::ingress(8080, 80, Protocol::Tcp) }
    }

    fn service(n: u8) -> ServiceId {
        format!("{n:024x}").parse().unwrap()
    }

    fn record() -> PortRecords {
        PortRecords(BTreeMap::from([((Protocol::Tcp, 8080), (Revision::NEVER, Publishers::new()))]))
    }

    #[test]
    fn a_port_has_one_publisher_for_all_addresses_or_one_for_each() {
        let (any, one, other) = (port(None), port(Some("192.0.2.1")), port(Some("192.0.2.2")));
        let mut record = record();
        assert!(record.add(&one, &service(1)));
        assert!(record.add(&other, &service(2)));
        assert!(!record.add(&one, &service(2)) && !record.add(&any, &service(3)));
        record.remove(&one, &service(1));
        record.remove(&other, &service(2));
        assert!(record.add(&any, &service(3)));
        assert!(!record.add(&one, &service(1)) && !record.add(&any, &service(1)));
    }

    #[test]
    fn only_its_publisher_releases_a_port() {
        let mut record = record();
        assert!(record.add(&port(None), &service(1)));
        record.remove(&port(None), &service(2));
        record.remove(&port(Some("192.0.2.1")), &service(1));
        assert!(!record.add(&port(None), &service(2)));
    }
}
