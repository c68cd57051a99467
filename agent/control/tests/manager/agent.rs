//! An agent without a kernel: it stores the manager's messages, and answers as configured.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_control::limits::HEARTBEAT;
use mesh_control::session_client::session_client;
use mesh_proto::v1::agent_message::Kind as Say;
use mesh_proto::v1::manager_message::Kind as Hear;
use mesh_proto::v1::{
    AgentMessage, Applied, Backend, BackendHealth, BackendHealthEntry, Cede, CedeAnswer, Change, Endpoint,
    EndpointReport, Endpoints, HealthReport, Heartbeat, Hello, Lease, Network, Node, NodeState, PortCheck,
    PortCheckAnswer, Probe, ProbeReport, Service, change,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::cluster::{Member, PATIENCE};

/// In [`Behaviour::used_ports`]: the agent cannot list the sockets of its host.
pub(crate) const CANNOT_LIST: u32 = 0;

/// How an agent behaves.
#[derive(Debug, Clone)]
pub(crate) struct Behaviour {
    /// Reports that it has applied revisions.
    pub(crate) applies: bool,
    /// Its answer when asked for an address; `None`: no answer.
    pub(crate) cedes: Option<bool>,
    /// Reads incoming messages.
    pub(crate) reads: bool,
    /// Sends heartbeats.
    pub(crate) sends_heartbeats: bool,
    /// Its endpoints.
    pub(crate) endpoints: Vec<Endpoint>,
    /// The routes of its host.
    pub(crate) routes: Vec<String>,
    /// Where others may reach its host.
    pub(crate) addresses: Vec<String>,
    pub(crate) mtu: u32,
    pub(crate) version: String,
    pub(crate) clock_ahead_ms: i64,
    /// Ports that sockets of its host use; `None`: no answer.
    pub(crate) used_ports: Option<BTreeSet<u32>>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            applies: true,
            cedes: Some(true),
            reads: true,
            sends_heartbeats: true,
            endpoints: Vec::new(),
            routes: Vec::new(),
            addresses: Vec::new(),
            mtu: 1500,
            version: "test".into(),
            clock_ahead_ms: 0,
            used_ports: Some(BTreeSet::new()),
        }
    }
}

/// The state of an agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) snapshots: usize,
    pub(crate) revision: u64,
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) networks: BTreeMap<String, Network>,
    /// By network and prefix.
    pub(crate) leases: BTreeMap<(String, String), Lease>,
    pub(crate) states: BTreeMap<String, NodeState>,
    pub(crate) asked: Vec<Cede>,
    pub(crate) services: BTreeMap<String, Service>,
    pub(crate) backends: BTreeMap<u32, Backend>,
    pub(crate) health: BTreeMap<u32, bool>,
    /// Other nodes' endpoints, by id.
    pub(crate) endpoints: BTreeMap<String, Endpoint>,
    /// The nodes whose health and endpoints the manager does not know, as last reported.
    pub(crate) unheard: (Option<Vec<String>>, Option<Vec<String>>),
    pub(crate) refused: BTreeMap<String, String>,
    /// The reports of the node that the manager refused.
    pub(crate) problems: Vec<String>,
    /// The received port checks.
    pub(crate) checks: Vec<PortCheck>,
    /// The requested generation of keys.
    pub(crate) generation: u32,
    pub(crate) ended: Option<Status>,
}

impl Known {
    fn receive(&mut self, message: Hear) {
        match message {
            Hear::Snapshot(snapshot) => {
                self.snapshots += 1;
                self.revision = snapshot.revision;
                self.nodes = snapshot.nodes.into_iter().map(|node| (node.id.clone(), node)).collect();
                self.networks = snapshot.networks.into_iter().map(|n| (n.id.clone(), n)).collect();
                self.leases = snapshot.leases.into_iter().map(|lease| (lease_key(&lease), lease)).collect();
                self.services = snapshot.services.into_iter().map(|s| (s.id.clone(), s)).collect();
                self.backends = snapshot.backends.into_iter().map(|b| (b.id, b)).collect();
            }
            Hear::Delta(delta) => {
                assert!(delta.revision > self.revision, "{} after {}", delta.revision, self.revision);
                self.revision = delta.revision;
                delta.changes.into_iter().for_each(|change| self.change(change));
            }
            Hear::States(states) => {
                self.states =
                    states.nodes.into_iter().map(|entry| (entry.node.clone(), entry.state())).collect();
            }
            Hear::Cede(cede) => self.asked.push(cede),
            Hear::EndpointsTaken(taken) => {
                self.refused.extend(taken.refused.into_iter().map(|refused| (refused.endpoint, refused.why)));
            }
            Hear::BackendHealth(BackendHealth { put, all, unheard }) => {
                if all {
                    let nodes = |id: &u32| self.backends.get(id).map(|backend| &backend.node);
                    self.health.retain(|id, _| nodes(id).is_some_and(|node| unheard.contains(node)));
                    self.unheard.0 = Some(unheard);
                }
                for entry in put {
                    if entry.unknown {
                        self.health.remove(&entry.backend);
                    } else {
                        self.health.insert(entry.backend, entry.healthy);
                    }
                }
            }
            Hear::Endpoints(Endpoints { put, removed, all, networks, unheard }) => {
                if all {
                    let is_void = |one: &Endpoint| {
                        networks.contains(&one.network_id) && !unheard.contains(&one.node_id)
                    };
                    self.endpoints.retain(|_, endpoint| !is_void(endpoint));
                    self.unheard.1 = Some(unheard);
                }
                for id in removed {
                    self.endpoints.remove(&id);
                }
                self.endpoints.extend(put.into_iter().map(|endpoint| (endpoint.id.clone(), endpoint)));
            }
            Hear::PortCheck(check) => self.checks.push(check),
            Hear::ReportProblems(report) => self.problems = report.problems,
            Hear::RotateKeys(rotate) => self.generation = rotate.number,
            Hear::Ping(_) => {}
        }
    }

    fn change(&mut self, change: Change) {
        match change.kind.unwrap() {
            change::Kind::PutNode(node) => {
                self.nodes.insert(node.id.clone(), node);
            }
            change::Kind::RemoveNode(id) => {
                self.nodes.remove(&id).unwrap();
            }
            change::Kind::PutNetwork(network) => {
                self.networks.insert(network.id.clone(), network);
            }
            change::Kind::RemoveNetwork(id) => {
                self.networks.remove(&id).unwrap();
                self.leases.retain(|(network, _), _| *network != id);
                self.services.retain(|_, service| service.network != id);
                self.backends.retain(|_, backend| backend.network != id);
                self.endpoints.retain(|_, endpoint| endpoint.network_id != id);
            }
            change::Kind::PutLease(lease) => {
                assert!(self.networks.contains_key(&lease.network), "a lease of an unknown network");
                self.leases.insert(lease_key(&lease), lease);
            }
            change::Kind::RemoveLease(lease) => {
                self.leases.remove(&lease_key(&lease)).unwrap();
            }
            change::Kind::PutService(service) => {
                assert!(self.networks.contains_key(&service.network), "a service of an unknown network");
                self.services.insert(service.id.clone(), service);
            }
            change::Kind::RemoveService(id) => {
                self.services.remove(&id).unwrap();
                self.backends.retain(|_, backend| backend.service != id);
            }
            change::Kind::PutBackend(backend) => {
                assert!(self.services.contains_key(&backend.service), "a backend of an unknown service");
                self.backends.insert(backend.id, backend);
            }
            change::Kind::RemoveBackend(id) => {
                self.backends.remove(&id).unwrap();
            }
        }
    }
}

fn beat_of(clock_ahead_ms: i64) -> Say {
    Say::Heartbeat(Heartbeat { unix_ms: mesh_control::clock::unix_ms() + clock_ahead_ms })
}

fn lease_key(lease: &Lease) -> (String, String) {
    (lease.network.clone(), lease.prefix.clone())
}

/// An agent in a session; the session is aborted when this is dropped.
pub(crate) struct Agent {
    say: mpsc::Sender<AgentMessage>,
    known: watch::Receiver<Known>,
    behaviour: watch::Sender<Behaviour>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    /// Begins a session and waits for the first snapshot.
    pub(crate) async fn start(member: &Member, behaviour: Behaviour) -> Self {
        let agent = Self::open(member, behaviour).await;
        agent.until(|known| known.snapshots > 0 && !known.states.is_empty()).await;
        agent
    }

    pub(crate) async fn open(member: &Member, behaviour: Behaviour) -> Self {
        let (say, said) = mpsc::channel(64);
        let hello = Hello {
            version: behaviour.version.clone(),
            data_path_mtu: behaviour.mtu,
            endpoints: behaviour.endpoints.clone(),
            routes: behaviour.routes.clone(),
            addresses: behaviour.addresses.clone(),
        };
        say.send(AgentMessage { kind: Some(Say::Hello(hello)) }).await.unwrap();
        let (state_sender, known) = watch::channel(Known::default());
        let (behaviour, mut behaves) = watch::channel(behaviour);
        let stream = session_client(member.channel.clone()).open(ReceiverStream::new(said)).await;
        let answers = say.clone();
        let task = tokio::spawn(async move {
            let mut stream = match stream {
                Ok(stream) => stream.into_inner(),
                Err(status) => return state_sender.send_modify(|known| known.ended = Some(status)),
            };
            let mut beat = interval(HEARTBEAT);
            loop {
                let reads = behaves.borrow_and_update().reads;
                let message = tokio::select! {
                    biased;
                    _ = behaves.changed() => continue,
                    message = stream.message(), if reads => message,
                    _ = beat.tick() => {
                        let now = behaves.borrow().clone();
                        if now.sends_heartbeats {
                            let beat = beat_of(now.clock_ahead_ms);
                            let _ = answers.send(AgentMessage { kind: Some(beat) }).await;
                        }
                        continue;
                    }
                };
                let message = match message {
                    Ok(Some(message)) => message.kind.unwrap(),
                    Ok(None) => {
                        return state_sender.send_modify(|known| known.ended = Some(Status::ok("end")));
                    }
                    Err(status) => return state_sender.send_modify(|known| known.ended = Some(status)),
                };
                let now = behaves.borrow().clone();
                let mut replies = Vec::new();
                let revision = match &message {
                    Hear::Snapshot(snapshot) => Some(snapshot.revision),
                    Hear::Delta(delta) => Some(delta.revision),
                    _ => None,
                };
                if let Some(revision) = revision.filter(|_| now.applies) {
                    replies.push(Say::Applied(Applied { revision }));
                }
                if let (Hear::Cede(cede), Some(accepted)) = (&message, now.cedes) {
                    let (network, address) = (cede.network.clone(), cede.address.clone());
                    replies.push(Say::Cede(CedeAnswer {
                        network,
                        address,
                        accepted,
                        revision: cede.revision,
                    }));
                }
                if let (Hear::PortCheck(check), Some(used_ports)) = (&message, &now.used_ports) {
                    let taken = check.ports.iter().filter(|port| used_ports.contains(&port.published));
                    let taken = taken.cloned().collect();
                    let fails = used_ports.contains(&CANNOT_LIST);
                    let failure = if fails { "the tables are unreadable".to_owned() } else { String::new() };
                    replies.push(Say::PortCheck(PortCheckAnswer { number: check.number, taken, failure }));
                }
                // Update the state before answering, so that a test never sees an answer before the
                // state.
                state_sender.send_modify(|known| known.receive(message));
                for reply in replies {
                    let _ = answers.send(AgentMessage { kind: Some(reply) }).await;
                }
            }
        });
        Self { say, known, behaviour, task }
    }

    pub(crate) fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        self.behaviour.send_modify(change);
    }

    /// Waits until the agent's state satisfies a condition.
    pub(crate) async fn until(&self, condition: impl Fn(&Known) -> bool) -> Known {
        self.within(PATIENCE, condition).await.expect("the agent did not reach the expected state in time")
    }

    /// As [`Self::until`], with another timeout.
    pub(crate) async fn within(&self, limit: Duration, condition: impl Fn(&Known) -> bool) -> Option<Known> {
        let mut known = self.known.clone();
        let found = timeout(limit, known.wait_for(|known| condition(known))).await.ok()?;
        Some(found.expect("the agent's task ended").clone())
    }

    pub(crate) async fn say(&self, kind: Say) {
        self.say.send(AgentMessage { kind: Some(kind) }).await.unwrap();
    }

    pub(crate) async fn applied(&self, revision: u64) {
        self.say(Say::Applied(Applied { revision })).await;
    }

    pub(crate) async fn report(&self, put: Vec<Endpoint>, removed: Vec<String>) {
        self.say(Say::Endpoints(EndpointReport { put, removed, number: 1 })).await;
    }

    pub(crate) async fn healthy(&self, backends: &[(u32, bool)], all: bool) {
        let entry = |&(backend, healthy): &(u32, bool)| {
            let error = if healthy { String::new() } else { "it answers 503".to_owned() };
            BackendHealthEntry { backend, healthy, error, unknown: false }
        };
        self.say(Say::Health(HealthReport { put: backends.iter().map(entry).collect(), all })).await;
    }

    pub(crate) async fn probed(&self, node: &Member, answering: bool) {
        let probes = vec![Probe { node: node.id.to_string(), answering }];
        self.say(Say::Probes(ProbeReport { probes, ..ProbeReport::default() })).await;
    }

    pub(crate) async fn answer(&self, cede: &Cede, accepted: bool) {
        let (network, address) = (cede.network.clone(), cede.address.clone());
        self.say(Say::Cede(CedeAnswer { network, address, accepted, revision: cede.revision })).await;
    }
}
