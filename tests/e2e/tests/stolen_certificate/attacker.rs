//! A thief of a certificate: speaks the agents' protocol from a machine that is no member, with a
//! key and a certificate that were copied from a host.

use std::collections::BTreeMap;
use std::path::Path;

use mesh_control::clock::unix_ms;
use mesh_control::identity::tls::client_config;
use mesh_control::limits::HEARTBEAT;
use mesh_control::session_client::{control_client, session_client};
use mesh_control::{NodeIdentity, connect};
use mesh_e2e::PATIENCE;
use mesh_harness::{Netns, poll_until};
use mesh_proto::v1::agent_message::Kind as Say;
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::v1::manager_message::Kind as Hear;
use mesh_proto::v1::{AgentMessage, Applied, Endpoint, EndpointReport, Heartbeat, Hello, PortCheckAnswer};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::interval;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// What the attacker has received.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received {
    snapshots: usize,
    /// Why endpoints are refused, by id.
    pub(crate) refused: BTreeMap<String, String>,
    pub(crate) problems: Vec<String>,
    ended: bool,
}

/// A stolen identity on a machine from which the managers can be reached.
pub(crate) struct Attacker {
    runtime: Runtime,
    identity: NodeIdentity,
    manager: String,
}

impl Attacker {
    /// Reads the identity from a host's state directory.
    pub(crate) fn new(machine: &Netns, state_dir: &Path, manager: &str) -> Self {
        let machine = machine.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || machine.enter_for_good().expect("the machine exists"))
            .build()
            .expect("a runtime");
        let identity = NodeIdentity::load(&state_dir.join("identity.pem")).expect("the host's identity");
        Self { runtime, identity, manager: manager.to_owned() }
    }

    /// Runs on a thread in the attacker's machine: connections are made from there.
    fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.block_on(self.runtime.spawn(future)).expect("no panic")
    }

    fn channel(&self) -> Channel {
        let (manager, config) = (self.manager.clone(), client_config(&self.identity).expect("a certificate"));
        self.run(async move { connect(&manager, config).await }).expect("the manager takes the certificate")
    }

    /// Makes one call.
    pub(crate) fn call<T, F>(&self, call: impl FnOnce(ControlClient<Channel>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.run(call(control_client(self.channel())))
    }

    /// Begins a session on a new connection. `taken`: every port that the manager asks for is in
    /// use.
    pub(crate) fn session(&self, hello: Hello, taken: bool) -> LyingSession {
        let (say, said) = mpsc::channel(256);
        say.try_send(AgentMessage { kind: Some(Say::Hello(hello)) }).expect("an empty queue");
        let (sender, received) = watch::channel(Received::default());
        let (channel, answers) = (self.channel(), say.clone());
        let task = self.runtime.spawn(async move {
            follow(channel, said, answers, &sender, taken).await;
            sender.send_modify(|received| received.ended = true);
        });
        LyingSession { say, received, task }
    }
}

async fn follow(
    channel: Channel,
    said: mpsc::Receiver<AgentMessage>,
    answers: mpsc::Sender<AgentMessage>,
    sender: &watch::Sender<Received>,
    taken: bool,
) {
    let Ok(stream) = session_client(channel).open(ReceiverStream::new(said)).await else { return };
    let mut stream = stream.into_inner();
    let mut beat = interval(HEARTBEAT);
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            _ = beat.tick() => {
                let beat = Say::Heartbeat(Heartbeat { unix_ms: unix_ms() });
                let _ = answers.send(AgentMessage { kind: Some(beat) }).await;
                continue;
            }
        };
        let Ok(Some(message)) = message else { return };
        let mut answer = None;
        match message.kind {
            Some(Hear::Snapshot(snapshot)) => {
                sender.send_modify(|received| received.snapshots += 1);
                answer = Some(Say::Applied(Applied { revision: snapshot.revision }));
            }
            Some(Hear::Delta(delta)) => answer = Some(Say::Applied(Applied { revision: delta.revision })),
            Some(Hear::EndpointsTaken(taken)) => sender.send_modify(|received| {
                let refused = taken.refused.into_iter();
                received.refused = refused.map(|refused| (refused.endpoint, refused.why)).collect();
            }),
            Some(Hear::ReportProblems(report)) => {
                sender.send_modify(|received| received.problems = report.problems);
            }
            Some(Hear::PortCheck(check)) => {
                let ports = if taken { check.ports } else { Vec::new() };
                let check = PortCheckAnswer { number: check.number, taken: ports, failure: String::new() };
                answer = Some(Say::PortCheck(check));
            }
            _ => {}
        }
        if let Some(kind) = answer {
            let _ = answers.send(AgentMessage { kind: Some(kind) }).await;
        }
    }
}

/// A session that reports anything; it ends when it is dropped.
pub(crate) struct LyingSession {
    say: mpsc::Sender<AgentMessage>,
    received: watch::Receiver<Received>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for LyingSession {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LyingSession {
    /// Waits until a condition holds for what it has received.
    pub(crate) fn until(&self, what: &str, is_so: impl Fn(&Received) -> bool) -> Received {
        let found = poll_until(PATIENCE, || Some(self.received.borrow().clone()).filter(|now| is_so(now)));
        found.unwrap_or_else(|| panic!("{what}: {:?}", self.received.borrow()))
    }

    /// Waits until the manager has read the session's first message.
    pub(crate) fn begun(&self) {
        self.until("a session begins", |received| received.snapshots > 0);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.received.borrow().ended
    }

    pub(crate) fn say(&self, kind: Say) {
        self.say.blocking_send(AgentMessage { kind: Some(kind) }).expect("the session lives");
    }

    /// Reports an endpoint and takes the others of these ids back.
    pub(crate) fn report(&self, put: Vec<Endpoint>, removed: Vec<String>) {
        self.say(Say::Endpoints(EndpointReport { put, removed, number: 1 }));
    }
}
