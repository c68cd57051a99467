//! Connects to a manager: the one in this process, or the first of the cluster's that answers.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_control::identity::tls;
use mesh_control::{Manager, NodeIdentity};
use mesh_model::Role;
use mesh_proto::{Problem, ProblemKind};
use mesh_state::Agent;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::transport::Channel;

/// The name under which the manager within this process appears.
const WITHIN: &str = "this node";

/// A connection to a manager.
#[derive(Debug, Clone)]
pub struct Connected {
    /// `HOST:PORT`, or `this node`.
    pub address: String,
    /// The connection.
    pub channel: Channel,
}

/// Connects to managers as this node.
#[derive(Debug)]
pub struct Managers {
    agent: Arc<Agent>,
    /// The manager that runs in this process.
    manager: Option<Manager>,
    identity: Mutex<NodeIdentity>,
    /// The managers as this node knew them when it joined.
    joined_by: Vec<String>,
    current: Mutex<Option<Connected>>,
    /// Number of connections that were closed because the host no longer had their address.
    reconnects: watch::Sender<u64>,
    /// One attempt at a time, which all who wait for it share.
    connecting: tokio::sync::Mutex<()>,
}

impl Managers {
    /// Creates the connections of this node.
    pub fn new(
        agent: Arc<Agent>,
        manager: Option<Manager>,
        identity: NodeIdentity,
        joined_by: Vec<String>,
    ) -> Self {
        Self {
            agent,
            manager,
            joined_by,
            identity: Mutex::new(identity),
            current: Mutex::new(None),
            reconnects: watch::Sender::new(0),
            connecting: tokio::sync::Mutex::new(()),
        }
    }

    /// A connection to a manager: the one there is, or a new one.
    pub async fn connected(&self) -> Result<Connected, Problem> {
        if let Some(manager) = &self.manager {
            return Ok(Connected { address: WITHIN.to_owned(), channel: manager.local_channel() });
        }
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let mut reconnects = self.reconnects.subscribe();
        let mut problem = Problem::new(ProblemKind::Unreachable, "no manager of the cluster is known");
        for address in self.addresses() {
            let config = tls::client_config(&self.identity()).map_err(|error| {
                Problem::new(ProblemKind::Failed, format!("this node's certificate cannot be used: {error}"))
            })?;
            let attempt = tokio::select! {
                attempt = mesh_control::connect(&address, config) => attempt,
                // The attempt may have begun from that address.
                Ok(()) = reconnects.changed() => {
                    Err(Problem::new(ProblemKind::Unreachable, "this host no longer has one of its addresses"))
                }
            };
            match attempt {
                Ok(channel) => {
                    let connected = Connected { address, channel };
                    *self.current.lock() = Some(connected.clone());
                    return Ok(connected);
                }
                Err(reason) => problem = reason,
            }
        }
        Err(problem)
    }

    /// Where managers are: by their records, as of the session's beginning, and as this node knew
    /// them when it joined. A manager may have moved to another address that a name leads to.
    fn addresses(&self) -> Vec<String> {
        let mut addresses = self.agent.read(|state| {
            let managers = state.view.nodes.values().filter(|node| node.role == Role::Manager);
            let records = managers.map(|node| node.advertise_addr.to_string());
            records.chain(state.view.managers.iter().cloned()).collect::<Vec<_>>()
        });
        addresses.extend(self.joined_by.iter().cloned());
        let mut seen = BTreeSet::new();
        addresses.retain(|address| seen.insert(address.clone()));
        addresses
    }

    /// Closes a connection, so that the next call opens another one.
    pub fn forget(&self, address: &str) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|connected| connected.address == address) {
            *current = None;
        }
    }

    /// Closes the connection and ends its session: the host no longer has the connection's address.
    pub fn reconnect(&self) {
        *self.current.lock() = None;
        self.reconnects.send_modify(|count| *count += 1);
    }

    /// Follows [`Managers::reconnect`].
    pub fn reconnects(&self) -> watch::Receiver<u64> {
        self.reconnects.subscribe()
    }

    /// Whether a manager can be asked now, as far as is known without trying.
    pub fn reachable(&self) -> bool {
        self.manager.is_some() || self.agent.read(|state| !state.manager.is_empty())
    }

    /// The manager that runs in this process.
    pub fn own(&self) -> Option<&Manager> {
        self.manager.as_ref()
    }

    /// This node's key and certificate.
    pub fn identity(&self) -> NodeIdentity {
        self.identity.lock().clone()
    }

    /// Takes a renewed certificate into use for connections from now on.
    pub fn set_identity(&self, identity: NodeIdentity) {
        if let Some(Err(error)) = self.manager.as_ref().map(|manager| manager.set_identity(&identity)) {
            tracing::error!(%error, "the renewed certificate cannot be served");
        }
        *self.identity.lock() = identity;
        *self.current.lock() = None;
    }

    fn current(&self) -> Option<Connected> {
        self.current.lock().clone()
    }
}
