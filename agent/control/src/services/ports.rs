//! Published ports: unique in the cluster by address, and free on every host.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::{NodeId, Protocol, PublishedPort, Service, ServiceId};
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{Compare, Op, Revision};

use super::desk::{Choice, Choosing};
use super::{decoys, network_name, node_name};
use crate::core::Core;
use crate::records::{RecordError, Versioned, put};
use crate::sessions::PortAnswer;
use crate::view::View;
use crate::{keys, limits};

/// What is shown of a node that claims ports of which it cannot use all.
const DOUBTFUL: &str = "it claims to use nearly every port: its answers about ports are not believed";

/// What the agents said about their hosts' sockets.
#[derive(Debug, Default)]
pub(super) struct Checked {
    free: BTreeSet<PublishedPort>,
    /// Chosen ports that turned out to be taken.
    avoid: BTreeSet<(Protocol, u16)>,
    /// Nodes that were away: they check by themselves when they return.
    unchecked: BTreeSet<NodeId>,
}

/// The ports with those that are open chosen; `own`: the service whose they are to be, if there is one.
pub(super) fn choose(
    view: &View,
    wanted: &[PublishedPort],
    own: Option<&ServiceId>,
    checked: &Checked,
    choosing: &mut Choosing<'_>,
) -> Result<Vec<PublishedPort>, Problem> {
    let mut ports = Vec::new();
    for port in wanted {
        let published = match (port.protocol, port.published) {
            // The kernel's helpers cannot mend SCTP's checksum, so only addresses can be translated.
            (Protocol::Sctp, 0) => port.target,
            (Protocol::Sctp, given) if given != port.target => return Err(renumbered_sctp(port)),
            (_, 0) => automatic(view, port.protocol, checked, choosing)?,
            (_, given) => given,
        };
        let port = PublishedPort { published, ..*port };
        if let Some((other, _)) = view.services.publisher(&port, own) {
            return Err(Problem::new(
                ProblemKind::Conflict,
                format!(
                    "port {published}/{} is published by service {} of network {} already",
                    port.protocol,
                    other.name,
                    network_name(view, &other.network)
                ),
            ));
        }
        ports.push(port);
    }
    Ok(ports)
}

fn renumbered_sctp(port: &PublishedPort) -> Problem {
    let PublishedPort { published, target, .. } = port;
    Problem::new(
        ProblemKind::Usage,
        format!("port {published}/sctp cannot lead to port {target}: sctp ports keep their number"),
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
        .hint("publish a port of your own choice")
    })?;
    choosing.take(Choice::Port(protocol, port));
    Ok(port)
}

impl Checked {
    /// Asks the agents of all nodes about those ports that they were not asked about. Returns false when a port that was
    /// chosen here is taken, and another has to be; one that was asked for and is taken is an error. So is an agent in
    /// session that does not answer: nobody knows then whether the port is free.
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
        // Right after this manager began, agents are about to return. Its own is in this process.
        if core.unheard().iter().any(|node| node != core.node_id()) {
            core.first_reports().await;
        }
        let nodes: Vec<NodeId> = core.feed.view().nodes.keys().cloned().collect();
        let decoys = decoys::of(&open);
        let question: Vec<PublishedPort> = open.iter().chain(&decoys).copied().collect();
        let mut answers = core.sessions.check_ports(nodes, &question, limits::PORT_CHECK).await;
        for node in decoys::take_out(&mut answers, &decoys) {
            core.faults.set(&node, "ports", Some(DOUBTFUL.to_owned()));
        }
        let name = |node: &NodeId| node_name(&core.feed.view(), node);
        let wanted: BTreeSet<&PublishedPort> = wanted.iter().collect();
        self.free.extend(&open);
        let mut is_fit = true;
        for (node, port) in answers.iter().flat_map(taken) {
            self.free.remove(port);
            if wanted.contains(port) {
                return Err(in_use(port, &name(node)));
            }
            self.avoid.insert((port.protocol, port.published));
            is_fit = false;
        }
        for (node, answer) in answers {
            match answer {
                PortAnswer::Taken(_) => {}
                PortAnswer::Away => _ = self.unchecked.insert(node),
                PortAnswer::Silent => {
                    return Err(unanswered(&name(&node), "its agent has not answered in time"));
                }
                PortAnswer::Failed(why) => return Err(unanswered(&name(&node), &why)),
            }
        }
        Ok(is_fit)
    }

    /// The names of the nodes that were away.
    pub(super) fn unchecked(&self, core: &Core) -> Vec<String> {
        let view = core.feed.view();
        self.unchecked.iter().map(|node| node_name(&view, node)).collect()
    }
}

fn taken((node, answer): &(NodeId, PortAnswer)) -> impl Iterator<Item = (&NodeId, &PublishedPort)> {
    let ports = match answer {
        PortAnswer::Taken(ports) => ports.as_slice(),
        PortAnswer::Failed(_) | PortAnswer::Silent | PortAnswer::Away => &[],
    };
    ports.iter().map(move |port| (node, port))
}

fn in_use(port: &PublishedPort, node: &str) -> Problem {
    let PublishedPort { published, protocol, .. } = port;
    Problem::new(
        ProblemKind::Conflict,
        format!("port {published}/{protocol} is in use on node {node}: a socket of that host has it"),
    )
    .hint(format!(
        "publish another port, or stop what has this one on {node} (`ss -lntup` shows it); a node that objects without \
         a reason can be removed: meshctl node rm --force {node}"
    ))
}

fn unanswered(node: &str, why: &str) -> Problem {
    Problem::new(
        ProblemKind::Unreachable,
        format!("node {node} cannot say whether sockets of its host have the ports: {why}"),
    )
    .hint(format!("try again; if it stays so, see `meshctl status` on {node}"))
}

/// The publishers of one port: by host address or `any`.
type Publishers = BTreeMap<String, ServiceId>;

/// The records of some ports as they were read.
pub(super) struct PortRecords(BTreeMap<(Protocol, u16), (Revision, Publishers)>);

impl PortRecords {
    /// The reads that [`PortRecords::of`] takes the results of.
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

    /// Gives a port up, if it is the service's.
    pub(super) fn remove(&mut self, port: &PublishedPort, service: &ServiceId) {
        if let Some((_, publishers)) = self.0.get_mut(&(port.protocol, port.published)) {
            publishers.retain(|address, owner| *address != address_key(port) || owner != service);
        }
    }

    /// Takes a port; false when somebody has it.
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

    /// Nobody has changed them since, and how they are written.
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

/// The published ports of a service, for messages.
pub(super) fn named(service: &Service) -> String {
    let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
    ports.join(", ")
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
    fn only_its_publisher_gives_a_port_up() {
        let mut record = record();
        assert!(record.add(&port(None), &service(1)));
        record.remove(&port(None), &service(2));
        record.remove(&port(Some("192.0.2.1")), &service(1));
        assert!(!record.add(&port(None), &service(2)));
    }
}
